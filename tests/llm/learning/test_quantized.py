"""What errors are made of is found in some coordinates, and used in others nearby."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.coordinates import choose_coordinates, moves
from occ_llm.learning.layerwise import stacked
from occ_llm.learning.losses import Integers, moved_weight
from occ_llm.learning.placements import learned_coordinates, with_block
from occ_llm.learning.problem import Problem
from occ_llm.learning.quantized import error_factors, make_errors, quantized_blocks
from occ_llm.model import LINEARS
from occ_llm.model.parameters import projection_rows
from occ_llm.roles import linear_name

KEY = jax.random.key(0)
OBJECTIVE = Integers(2, 16, feedback=True, clip=True)


@pytest.fixture(scope="module")
def loud_problem(toy_problem) -> Problem:
    """Inputs that are loud in one direction, as those of real networks are."""

    def loud(matrix):
        d = matrix.hessian.shape[-1]
        direction = jnp.asarray(np.random.default_rng(0).standard_normal(d), jnp.float32) / np.sqrt(d)
        energy = 100 * jnp.trace(matrix.hessian, axis1=1, axis2=2) / d
        return dataclasses.replace(
            matrix, hessian=matrix.hessian + jnp.einsum("l,i,j->lij", energy, direction, direction)
        )

    return Problem({kind: loud(matrix) for kind, matrix in toy_problem.blocks.items()}, {})


def test_errors_of_nearby_coordinates_cost_what_fresh_ones_do(toy, loud_problem, drawn_parameters):
    config, matrices = toy.config, loud_problem.blocks
    start = choose_coordinates("hadamard", config, key=KEY)
    near = learned_coordinates(
        config, start, drawn_parameters(config, ("residual", "values", "unit-scales"), start, size=0.02)
    )
    factors, biases = error_factors(loud_problem, OBJECTIVE), {linear: {} for linear in LINEARS}

    def place(coordinates):
        shared, stack = stacked(config, coordinates)
        return partial(with_block, shared, None), stack

    def cost(found_at) -> dict[str, float]:
        """Of errors that are made in the nearby coordinates, brought back to where the second moments are."""
        errors = make_errors(config, OBJECTIVE, *place(found_at), matrices, factors)
        made = [quantized_blocks(config, OBJECTIVE, *place(near), matrices, errors, biases, key) for key in keys]
        costs = {}
        for projection, (linear, rows) in projection_rows(config).items():
            kind, total = projection.rpartition(".")[2].removesuffix("_proj"), 0.0
            for layer in range(config.num_layers):
                name = linear_name(layer, kind)
                moved = moved_weight(config, name, near, matrices[kind].weight[layer])
                columns, _ = moves(config, name, near)
                for params in made:
                    e = np.asarray(columns.inverse(params[linear]["weight"][layer, rows] - moved), np.float64)
                    total += np.einsum("ij,jk,ik->", e, np.asarray(matrices[kind].hessian[layer], np.float64), e)
            costs[kind] = total
        return costs

    keys = jax.random.split(KEY, 4)
    fresh, nearby = cost(near), cost(start)
    for kind, value in fresh.items():
        assert nearby[kind] == pytest.approx(value, rel=0.1), kind
