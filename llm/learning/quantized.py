r"""The errors of the linear layers of a network in training coordinates, brought back to where the network runs.

With feedback and :math:`H^{-1} = U^\top U` the error of a row is :math:`e = d \operatorname{diag}(U)^{-1} U`, with
:math:`d` uniform in the steps. Those of integers are the ranges of their groups, in the coordinates in question. Under
entropy coding they are :math:`c\, U_{jj} / \sqrt{g_i}`, so that :math:`e = \frac{c}{\sqrt{g_i}}\, n U` with white
noise :math:`n`: it costs the same in every direction of the inputs, in whatever basis, and :math:`U` need not be moved.

A matrix that is moved, quantized and moved back is the original one with an error. So the network stays in its own
coordinates, in which blocks of different coordinates fit together, and a step may make the errors of some blocks anew.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from occ_jax.learned import RANGES, upper_root
from occ_jax.quantization import prepare_hessian
from occ_jax.quantization.base import uniform_noise

from ..calibration import conjugate, moved_diagonal, space_of
from ..calibration.moments import positive
from ..calibration.statistics import fisher_name, hessian_name
from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates, moves
from ..model import LINEARS
from ..roles import INPUT_OF, linear_name
from .losses import Coded, Integers, Objective, moved_weight
from .problem import Matrix, Problem

KINDS = {
    linear: [projection.rpartition(".")[2].removesuffix("_proj") for projection in projections]
    for linear, projections in LINEARS.items()
}
"""Linear layer of a block, as the network fuses them -> the kinds of matrices in it."""


def error_factors(problem: Problem, objective: Objective) -> dict[str, Float[Array, "layers d d"]]:
    r"""What errors are shaped by, for each kind of input, stacked over layers.

    :math:`U` under entropy coding, :math:`H` of integers with feedback, nothing without.

    Args:
        problem: with damped second moments, if there is feedback.
        objective: how matrices are quantized.
    """
    factors: dict[str, Array] = {}
    if isinstance(objective, Integers) and not objective.feedback:
        return factors
    for kind, matrix in problem.blocks.items():
        if INPUT_OF[kind] in factors:
            continue
        assert matrix.hessian is not None
        factors[INPUT_OF[kind]] = matrix.hessian
        if isinstance(objective, Coded):
            upper = [prepare_hessian(hessian, damping=0.0).upper for hessian in np.asarray(matrix.hessian)]
            factors[INPUT_OF[kind]] = jnp.asarray(np.stack(upper), matrix.hessian.dtype)
    return factors


def quantized_blocks(
    config: ModelConfig,
    objective: Objective,
    coordinates: Callable[[BlockCoordinates], Coordinates],
    blocks: BlockCoordinates,
    matrices: Mapping[str, Matrix],
    factors: Mapping[str, Float[Array, "layers d d"]],
    key: Key[Array, ""],
    numbers: Int[Array, " k"] | None = None,
) -> dict[str, Float[Array, "made d_out d_in"]]:
    """Matrices of the linear layers in original coordinates with their errors; differentiable in ``blocks``.

    Args:
        config: architecture.
        objective: how they are quantized.
        coordinates: of one block, from its slice of ``blocks``; it may hold parameters that are trained, too.
        blocks: what the blocks have of their own, as a stack.
        matrices: by kind, stacked.
        factors: by :func:`error_factors`.
        key: source of the noise.
        numbers: of the blocks to make; all by default.

    Returns:
        The matrices of these blocks, fused as the network has them.
    """

    def one_block(item: tuple[Any, Any, Array]) -> dict[str, Any]:
        layer, parts, number = item
        place, own = coordinates(layer), jax.random.fold_in(key, number)
        made = {
            kind: w + _error(config, objective, place, kind, w, fisher, factor, jax.random.fold_in(own, i))
            for i, (kind, (w, fisher, factor)) in enumerate(parts.items())
        }
        return {linear: jnp.concatenate([made[kind] for kind in kinds]) for linear, kinds in KINDS.items()}

    parts = {kind: (m.weight, m.fisher, factors.get(INPUT_OF[kind])) for kind, m in matrices.items()}
    factors = dict(factors)
    if numbers is not None:
        blocks, parts, factors = jax.tree.map(lambda leaf: leaf[numbers], (blocks, parts, factors))
    if isinstance(objective, Integers) and objective.feedback:

        def moved_roots(item: tuple[Any, Any]) -> dict[str, Array]:
            return _moved_roots(config, coordinates(item[0]), item[1])

        # What later columns do is the best there is: it has no gradient.
        roots = jax.lax.stop_gradient(jax.lax.map(moved_roots, (blocks, factors)))
        parts = {kind: (w, fisher, roots[INPUT_OF[kind]]) for kind, (w, fisher, _) in parts.items()}
    # To move a matrix is dear, and so is a search for ranges: both are kept for the way back. All else is made again.
    policies = jax.checkpoint_policies
    kept = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(RANGES))
    remade = jax.checkpoint(one_block, policy=kept)
    return jax.lax.map(remade, (blocks, parts, jnp.arange(config.num_layers) if numbers is None else numbers))


def _error(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    kind: str,
    w: Float[Array, "d_out d_in"],
    fisher: Array,
    factor: Float[Array, "d_in d_in"] | None,
    key: Key[Array, ""],
) -> Float[Array, "d_out d_in"]:
    """What quantization in some coordinates does to a matrix in its own."""
    name = linear_name(0, kind)
    columns, rows = moves(config, name, coordinates)
    if isinstance(objective, Integers):
        stored = coordinates.stored_of(0, kind)
        moved = stored.forward(moved_weight(config, name, coordinates, w))
        return rows.inverse(columns.inverse(stored.inverse(objective.reconstruct(moved, factor, key) - moved)))
    assert factor is not None
    costs = positive(moved_diagonal(space_of(config, fisher_name(name), coordinates), fisher))
    noise = uniform_noise(jnp.zeros_like(w), key=key)
    return rows.inverse(jnp.matmul(noise, factor, precision="highest") * (objective.step / jnp.sqrt(costs))[:, None])


def _moved_roots(
    config: ModelConfig, coordinates: Coordinates, hessians: dict[str, Float[Array, "d d"]]
) -> dict[str, Float[Array, "d d"]]:
    r""":math:`U^{-1}` of the inputs of one block in new coordinates."""
    spaces = {tap: space_of(config, hessian_name(0, tap), coordinates) for tap in hessians}
    return {tap: upper_root(conjugate(spaces[tap], hessian)) for tap, hessian in hessians.items()}
