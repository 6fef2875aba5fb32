r"""The linear layers of a network as training runs them: moved, and with the errors of their quantization.

With feedback and :math:`H^{-1} = U^\top U` the error of a row is :math:`e = d \operatorname{diag}(U)^{-1} U`, with
:math:`d` uniform in the steps. Those of integers are the ranges of their groups, in the coordinates in question. Under
entropy coding they are :math:`c\, U_{jj} / \sqrt{g_i}`, so that :math:`e = \frac{c}{\sqrt{g_i}}\, n U` with white
noise :math:`n`: it costs the same in every direction of the inputs, in whatever basis, and :math:`U` need not be moved.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

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
    biases: Mapping[str, dict[str, Array]],
    key: Key[Array, ""],
) -> dict[str, Any]:
    """Parameters of the linear layers of all blocks, in the layout of the network; differentiable in ``blocks``.

    Args:
        config: architecture.
        objective: how they are quantized.
        coordinates: of one block, from its slice of ``blocks``; it may hold parameters that are trained, too.
        blocks: what the blocks have of their own, as a stack.
        matrices: by kind, stacked.
        factors: by :func:`error_factors`.
        biases: of the network's layers that have some, stacked.
        key: source of the noise.
    """

    def one_block(item: tuple[Any, Any, Any, Array]) -> dict[str, Any]:
        layer, parts, biases, number = item
        return _moved_block(config, objective, coordinates(layer), parts, biases, jax.random.fold_in(key, number))

    if isinstance(objective, Integers) and objective.feedback:

        def moved_roots(item: tuple[Any, Any]) -> dict[str, Array]:
            return _moved_roots(config, coordinates(item[0]), item[1])

        # What later columns do is the best there is: it has no gradient.
        factors = jax.lax.stop_gradient(jax.lax.map(moved_roots, (blocks, dict(factors))))
    parts = {kind: (m.weight, m.fisher, factors.get(INPUT_OF[kind])) for kind, m in matrices.items()}
    # To move a matrix is dear, and so is a search for ranges: both are kept for the way back. All else is made again.
    policies = jax.checkpoint_policies
    kept = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(RANGES))
    remade = jax.checkpoint(one_block, policy=kept)
    return jax.lax.map(remade, (blocks, parts, dict(biases), jnp.arange(config.num_layers)))


def _moved_block(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    matrices: dict[str, tuple[Array, Array, Array | None]],
    biases: dict[str, dict[str, Array]],
    key: Key[Array, ""],
) -> dict[str, Any]:
    """Parameters of the linear layers of one block, moved and quantized."""
    layer: dict[str, Any] = {}
    for number, (linear, projections) in enumerate(LINEARS.items()):
        kinds = [projection.rpartition(".")[2].removesuffix("_proj") for projection in projections]
        keys = jax.random.split(jax.random.fold_in(key, number), len(kinds))
        parts = [_quantized(config, objective, coordinates, kind, *matrices[kind], k) for kind, k in zip(kinds, keys)]
        layer[linear] = {"weight": jnp.concatenate(parts)}
        if "bias" in biases[linear]:
            ends = np.cumsum([part.shape[0] for part in parts])[:-1]
            names = [linear_name(0, kind).removesuffix("weight") + "bias" for kind in kinds]
            old = jnp.split(biases[linear]["bias"], ends)
            moved = [moves(config, name, coordinates)[0].forward(b) for name, b in zip(names, old, strict=True)]
            layer[linear]["bias"] = jnp.concatenate(moved)
    return layer


def _quantized(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    kind: str,
    w: Float[Array, "d_out d_in"],
    fisher: Array,
    factor: Float[Array, "d_in d_in"] | None,
    key: Key[Array, ""],
) -> Float[Array, "d_out d_in"]:
    name = linear_name(0, kind)
    moved = moved_weight(config, name, coordinates, w)
    if isinstance(objective, Integers):
        stored = coordinates.stored_of(0, INPUT_OF[kind])
        return stored.inverse(objective.reconstruct(stored.forward(moved), factor, key))
    assert factor is not None
    rows = positive(moved_diagonal(space_of(config, fisher_name(name), coordinates), fisher))
    noise = uniform_noise(jnp.zeros_like(w), key=key)
    columns, _ = moves(config, name, coordinates)
    shaped = columns.forward(jnp.matmul(noise, factor, precision="highest"))
    return moved + shaped * (objective.step / jnp.sqrt(rows))[:, None]


def _moved_roots(
    config: ModelConfig, coordinates: Coordinates, hessians: dict[str, Float[Array, "d d"]]
) -> dict[str, Float[Array, "d d"]]:
    r""":math:`U^{-1}` of the inputs of one block in new coordinates."""
    spaces = {tap: space_of(config, hessian_name(0, tap), coordinates) for tap in hessians}
    return {tap: upper_root(conjugate(spaces[tap], hessian)) for tap, hessian in hessians.items()}
