"""Problems and random parameters of every placement, for small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.coordinates import Coordinates, choose_coordinates
from occ_llm.folding import fold_norms
from occ_llm.learning.placements import Parameters, default_placements, initial_parameters, learned_coordinates
from occ_llm.learning.problem import make_problem


@pytest.fixture(scope="session")
def drawn_parameters():
    """Parameters of some placements, moved away from where they begin."""

    def draw(config, placements, start, seed: int = 0, size: float = 0.3, structure="butterfly") -> Parameters:
        rng = np.random.default_rng(seed)
        first = initial_parameters(config, placements, start, structure)
        starts = set() if first.residual is None or first.residual.start is None else {id(first.residual.start)}
        return jax.tree.map(
            lambda leaf: (
                leaf if id(leaf) in starts else leaf + jnp.asarray(rng.normal(0, size, leaf.shape), leaf.dtype)
            ),
            first,
        )

    return draw


@pytest.fixture(scope="session")
def drawn_coordinates(drawn_parameters):
    """Random coordinates in every place that is free, or in some."""

    def draw(config, placements=None, seed: int = 0) -> Coordinates:
        start = choose_coordinates("identity", config, key=jax.random.key(0))
        chosen = placements or (*default_placements(config, scalings=True), "attention-inputs", "o-inputs", "hidden")
        return learned_coordinates(config, start, drawn_parameters(config, chosen, start, seed))

    return draw


@pytest.fixture(scope="session")
def toy_folded(toy):
    return dict(fold_norms(toy.config, toy.weights))


@pytest.fixture(scope="session")
def toy_problem(toy_folded, toy_statistics):
    return make_problem(toy_folded, toy_statistics, hessians=True, outer=True, damping=0.01)
