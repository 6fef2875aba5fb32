"""What layer-wise learning looks at: the folded matrices and their sensitivities, blocks stacked."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.learned import gaussian_control
from occ_jax.quantization.hessian import damp
from occ_jax.transforms import Identity

from ..calibration import Statistics, space_of
from ..calibration.statistics import TURNING_OUTPUTS, fisher_name, hessian_name
from ..compression.factors import output_factor
from ..compression.sensitivity import or_alike, sensitivity_of
from ..config import ModelConfig
from ..coordinates import Coordinates, moves
from ..roles import EMBEDDING, HEAD, INPUT_OF, LINEAR_KINDS, linear_name
from ..weights import DerivedWeights, Weights


@pytree_dataclass
class Matrix:
    """One matrix (or a stack of them) with the quadratic form of its errors, in original coordinates.

    Attributes:
        weight: with folded norms; of an embedding or a head less the mean of its rows.
        fisher: second moment of the gradients of its outputs, or the diagonal of it; or what an error in each row costs
            once later rows have made up for it.
        hessian: second moment of its inputs, damped; ``None`` where the objective does not ask for it.
        feeds_rows: whether rows make up for each other. What that leaves keeps its geometric mean in every basis, so
            where outputs turn every row has it, and no basis changes it.
    """

    weight: Float[Array, "*layers d_out d_in"]
    fisher: Float[Array, "..."]
    hessian: Float[Array, "*layers d_in d_in"] | None
    feeds_rows: bool = static_field(default=False)


@pytree_dataclass
class Problem:
    """Everything that a layer-wise objective reads.

    Attributes:
        blocks: matrices of the blocks by kind, stacked over layers.
        outer: the embedding and a head of its own, by name.
    """

    blocks: dict[str, Matrix]
    outer: dict[str, Matrix]

    @property
    def num_weights(self) -> int:
        """Weights of all matrices."""
        return sum(matrix.weight.size for matrix in (*self.blocks.values(), *self.outer.values()))


def make_problem(
    weights: Weights,
    statistics: Statistics,
    *,
    hessians: bool,
    outer: bool,
    damping: float,
    kinds: Iterable[str] = LINEAR_KINDS,
    feeds_rows: bool = False,
    token_weights: bool = True,
) -> Problem:
    """Read the matrices and statistics of a network.

    Args:
        weights: with folded norms.
        statistics: in original coordinates, with the Fisher information.
        hessians: whether the second moments of the inputs are needed.
        outer: with the embedding and a head of its own.
        damping: share of the mean diagonal that is added to every second moment.
        kinds: of linear layers.
        feeds_rows: whether their rows will make up for each other.
        token_weights: whether feedback will follow the second moment of weighted tokens. Without, it follows the plain
            one, at the same trace.
    """
    config = statistics.config

    def moment(name: str) -> np.ndarray:
        followed = statistics.error_moment(name)
        if token_weights or not statistics.weights_tokens(name):
            return followed
        plain = statistics.hessian(name)
        return plain * np.asarray(np.trace(followed) / np.trace(plain), plain.dtype)

    def outputs(kind: str, name: str) -> np.ndarray:
        turning = kind in TURNING_OUTPUTS
        if not feeds_rows:
            return or_alike(statistics.fisher_matrix(name) if turning else statistics.fisher(name))
        left = np.asarray(output_factor(name, statistics.fisher_matrix(name)).weights)
        return np.full_like(left, np.exp(np.log(left).mean())) if turning else left

    def read(kind: str) -> Matrix:
        names = [linear_name(layer, kind) for layer in range(config.num_layers)]
        return Matrix(
            _stack([weights[name] for name in names]),
            _stack([outputs(kind, name) for name in names]),
            _stack([damp(np.array(moment(name)), damping) for name in names]) if hessians else None,
            feeds_rows,
        )

    def read_outer(name: str) -> Matrix:
        form = sensitivity_of(name, statistics)
        hessian = jnp.asarray(damp(np.array(form.hessian, np.float32), damping)) if hessians else None
        w = jnp.asarray(weights[name])
        centred = w - w.mean(0, keepdims=True)  # the mean row is stored apart
        return Matrix(centred, jnp.asarray(form.rows, jnp.float32), hessian)

    names = (EMBEDDING,) if config.tie_word_embeddings else (EMBEDDING, HEAD)
    return Problem(
        {kind: read(kind) for kind in kinds},
        {name: read_outer(name) for name in names} if outer else {},
    )


def moving_kinds(config: ModelConfig, coordinates: Coordinates) -> tuple[str, ...]:
    """Kinds of linear layers whose coefficients or sensitivities depend on what coordinates have."""

    def moves_at_all(kind: str) -> bool:
        name = linear_name(0, kind)
        statistics = (fisher_name(name), hessian_name(0, INPUT_OF[kind]))
        found = [*moves(config, name, coordinates), *(space_of(config, n, coordinates) for n in statistics)]
        return any(not isinstance(t, Identity) for t in found)

    return tuple(kind for kind in LINEAR_KINDS if moves_at_all(kind))


def split(problem: Problem, kinds: Iterable[str], *, outer: bool) -> tuple[Problem, Problem]:
    """The part of a problem with some kinds of linear layers (and the outer matrices), and the rest."""
    chosen = set(kinds)
    inside = {kind: matrix for kind, matrix in problem.blocks.items() if kind in chosen}
    rest = {kind: matrix for kind, matrix in problem.blocks.items() if kind not in chosen}
    return (
        Problem(inside, problem.outer if outer else {}),
        Problem(rest, {} if outer else problem.outer),
    )


def control_weights(weights: Weights, matrices: Iterable[str], *, key: jax.Array) -> Weights:
    """The same network with Gaussian matrices of the same row and column scales: what learning finds in noise.

    Args:
        weights: with folded norms.
        matrices: names of those that are replaced.
        key: source of randomness.
    """

    def rule(name: str, number: int) -> Any:
        mine = jax.random.fold_in(key, number)
        return lambda source: np.asarray(_control(jnp.asarray(source[name]), mine))

    return DerivedWeights(weights, {name: rule(name, number) for number, name in enumerate(matrices)})


_control = jax.jit(lambda w, key: gaussian_control(w, key=key))


def _stack(arrays: list[np.ndarray]) -> Array:
    return jnp.asarray(np.stack(arrays), jnp.float32)
