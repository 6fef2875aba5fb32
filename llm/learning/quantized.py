r"""The linear layers of a network as training runs them: moved, and with the errors of their quantization.

With feedback and :math:`H^{-1} = U^\top U` the error of a row is :math:`e = d \operatorname{diag}(U)^{-1} U`, with
:math:`d` uniform in the steps. Those of integers are the ranges of their groups, in the coordinates in question. Under
entropy coding they are :math:`c\, U_{jj} / \sqrt{g_i}`, so that :math:`e = \frac{c}{\sqrt{g_i}}\, n U` with white
noise :math:`n`: it costs the same in every direction of the inputs, in whatever basis, and :math:`U` need not be moved.

What integers need to know of their coordinates, what later columns do and the best ranges of the groups, is dearer than
all else. It has no gradient (both are optima of what is minimised) and changes slowly: :func:`make_errors` makes it
once for several steps. What later columns do is kept in original coordinates and moved with the weights in every step.
It is then a little off the best in the new columns, and costs exactly what was expected; had it stayed behind while the
inputs turn, it would no longer avoid the few directions in which they are loud.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.learned import Ranges, regressions
from occ_jax.quantization import prepare_hessian
from occ_jax.quantization.base import uniform_noise
from occ_jax.transforms import dual

from ..calibration import conjugate, moved_diagonal, space_of
from ..calibration.moments import positive
from ..calibration.statistics import fisher_name, hessian_name
from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates, moves
from ..model import LINEARS
from ..roles import INPUT_OF, linear_name
from .losses import Coded, Integers, Objective, moved_weight
from .problem import Matrix, Problem


@pytree_dataclass
class Errors:
    """What the errors of quantization are made of, stacked over layers.

    Attributes:
        shapes: of errors, for each kind of input, their rows in original coordinates: :math:`U` under entropy coding,
            what later columns do for integers with feedback, none for others.
        ranges: of integers with feedback and clipped ranges, by kind of matrix.
    """

    shapes: dict[str, Float[Array, "*layers d d"]]
    ranges: dict[str, Ranges]


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


def follows_coordinates(objective: Objective) -> TypeGuard[Integers]:
    """Whether errors are made of something else in other coordinates."""
    return isinstance(objective, Integers) and objective.feedback


def make_errors(
    config: ModelConfig,
    objective: Objective,
    coordinates: Callable[[BlockCoordinates], Coordinates],
    blocks: BlockCoordinates,
    matrices: Mapping[str, Matrix],
    factors: Mapping[str, Float[Array, "layers d d"]],
) -> Errors:
    """What errors are made of in some coordinates; arguments as those of :func:`quantized_blocks`.

    Args:
        config: architecture.
        objective: how matrices are quantized.
        coordinates: of one block.
        blocks: what the blocks have of their own, as a stack.
        matrices: by kind, stacked.
        factors: by :func:`error_factors`.
    """
    if not follows_coordinates(objective):
        return Errors(dict(factors), {})

    def one_block(item: tuple[Any, Any, Any]) -> Errors:
        layer, weights, hessians = item
        place, shapes, costs = coordinates(layer), {}, {}
        for tap, hessian in hessians.items():
            space = space_of(config, hessian_name(0, tap), place)
            rows, costs[tap] = regressions(conjugate(space, hessian))
            shapes[tap] = dual(space).inverse(rows)
        if not objective.clip:
            return Errors(shapes, {})
        moved = {kind: _coefficients(config, place, kind, w) for kind, w in weights.items()}
        return Errors(shapes, {kind: objective.search(w, costs[INPUT_OF[kind]]) for kind, w in moved.items()})

    weights = {kind: matrix.weight for kind, matrix in matrices.items()}
    return jax.lax.stop_gradient(jax.lax.map(one_block, (blocks, weights, dict(factors))))


def quantized_blocks(
    config: ModelConfig,
    objective: Objective,
    coordinates: Callable[[BlockCoordinates], Coordinates],
    blocks: BlockCoordinates,
    matrices: Mapping[str, Matrix],
    errors: Errors,
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
        errors: by :func:`make_errors`, in these coordinates or in some nearby.
        biases: of the network's layers that have some, stacked.
        key: source of the noise.
    """

    def one_block(item: tuple[Any, Any, Any, Array]) -> dict[str, Any]:
        layer, parts, biases, number = item
        return _moved_block(config, objective, coordinates(layer), parts, biases, jax.random.fold_in(key, number))

    parts = {
        kind: (m.weight, m.fisher, errors.shapes.get(INPUT_OF[kind]), errors.ranges.get(kind))
        for kind, m in matrices.items()
    }
    # To move a matrix is dear: what products make is kept for the way back, and all else is made again.
    remade = jax.checkpoint(one_block, policy=jax.checkpoint_policies.dots_saveable)
    return jax.lax.map(remade, (blocks, parts, dict(biases), jnp.arange(config.num_layers)))


def _moved_block(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    matrices: dict[str, tuple[Array, Array, Array | None, Ranges | None]],
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
    shape: Float[Array, "d_in d_in"] | None,
    ranges: Ranges | None,
    key: Key[Array, ""],
) -> Float[Array, "d_out d_in"]:
    name, tap = linear_name(0, kind), INPUT_OF[kind]
    if isinstance(objective, Integers):
        space = dual(space_of(config, hessian_name(0, tap), coordinates))
        passed_on = None if shape is None else jax.lax.stop_gradient(space.forward(shape))
        made = objective.reconstruct(_coefficients(config, coordinates, kind, w), passed_on, key, ranges)
        return coordinates.stored_of(0, tap).inverse(made)
    assert shape is not None
    moved = moved_weight(config, name, coordinates, w)
    rows = positive(moved_diagonal(space_of(config, fisher_name(name), coordinates), fisher))
    noise = uniform_noise(jnp.zeros_like(w), key=key)
    columns, _ = moves(config, name, coordinates)
    shaped = columns.forward(jnp.matmul(noise, shape, precision="highest"))
    return moved + shaped * (objective.step / jnp.sqrt(rows))[:, None]


def _coefficients(
    config: ModelConfig, coordinates: Coordinates, kind: str, w: Float[Array, "d_out d_in"]
) -> Float[Array, "d_out d_in"]:
    """What the quantizer sees of a matrix: moved, and through the transform that is stored with it."""
    moved = moved_weight(config, linear_name(0, kind), coordinates, w)
    return coordinates.stored_of(0, INPUT_OF[kind]).forward(moved)
