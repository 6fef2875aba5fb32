"""Layer-wise learning: one objective over all layers of a network, in the memory of one layer."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from occ_jax.learned import RateDistortion, Step
from occ_jax.transforms import Identity

from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates
from .losses import Coded, Objective, block_points, outer_points, sample
from .placements import Parameters, learned_coordinates, shared_and_blocks, with_block
from .problem import Matrix, Problem, moving_kinds, split
from .settings import LearnSettings
from .steps import coded_at
from .train import Learned, OnChunk, first_parameters, train

Points = dict[str, RateDistortion]
"""By kind of matrix: mean bits per weight, and the distortion (of coded matrices its mean, of integers its sum)."""

LEAST_BLOCKS = 4
"""In a sample of the blocks."""


class Layerwise:
    """Layer-wise objectives of one network.

    Args:
        config: architecture.
        problem: all of its matrices.
        start: coordinates in which training begins.
        settings: of the training.
        objective: one that was made for another problem, to be used for this one too.
    """

    def __init__(
        self,
        config: ModelConfig,
        problem: Problem,
        start: Coordinates,
        settings: LearnSettings,
        objective: Objective | None = None,
    ):
        self._config, self._problem, self._start, self._settings = config, problem, start, settings
        self.objective = objective or self._make_objective()

    def measure(self, coordinates: Coordinates) -> tuple[RateDistortion, Points]:
        """The objective and its parts by kind of matrix, in given coordinates."""
        return self._points(self.objective, self._problem, coordinates)

    def train(self, *, key: Key[Array, ""], state: Path | None = None, on_chunk: OnChunk | None = None) -> Learned:
        """Train every placement together.

        Args:
            key: of the noise.
            state: where to keep an unfinished training.
            on_chunk: told about the progress.
        """
        config, start, settings, total = self._config, self._start, self._settings, self._problem.num_weights
        parameters = first_parameters(config, start, settings)
        nowhere = Coordinates(Identity(), Identity(), Identity())
        kinds = moving_kinds(config, learned_coordinates(config, nowhere, parameters))
        moving, fixed = split(self._problem, kinds, outer=parameters.residual is not None)
        rest = self._points(self.objective, fixed, start)[0]

        def loss(parameters: Parameters, data: tuple[Objective, Problem], step: Step) -> RateDistortion:
            objective, problem = data
            if isinstance(objective, Coded):
                objective = objective.at(step.temperature)
            residual, blocks = shared_and_blocks(config, parameters)
            blocks_key, key = jax.random.split(step.key)
            value, points = network_points(
                config, objective, problem, partial(with_block, start), residual, blocks, key,
                total=total, row_share=settings.row_share,
                chosen=sample(config.num_layers, settings.block_share, blocks_key, least=LEAST_BLOCKS),
            )  # fmt: skip
            found = overall(objective, problem, points, total=total)
            # All of the gradient is in the Lagrangian, whose value the two numbers are.
            bits = jax.lax.stop_gradient(found.bits + rest.bits - value) + value
            return RateDistortion(bits, jax.lax.stop_gradient(found.distortion + rest.distortion))

        data, lmbda = (self.objective, moving), self.objective.lmbda
        return train(config, start, settings, loss, data, lmbda=lmbda, key=key, state=state, on_chunk=on_chunk)

    def _make_objective(self) -> Objective:
        settings = self._settings
        if settings.is_integer:
            return settings.integers

        temperature = None if settings.temperature is None else jnp.float32(settings.temperature)

        def measure(objective: Coded) -> float:
            return float(self._points(objective, self._problem, self._start)[0].bits)

        return coded_at(settings.target_bits, settings.rate, self._problem, measure, temperature=temperature)

    def _points(
        self, objective: Objective, problem: Problem, coordinates: Coordinates
    ) -> tuple[RateDistortion, Points]:
        shared, stack = stacked(self._config, coordinates)
        key, total = jax.random.key(self._settings.seed), self._problem.num_weights
        return _measured(self._config, objective, problem, shared, stack, key, total)


def stacked(config: ModelConfig, coordinates: Coordinates) -> tuple[Coordinates, BlockCoordinates]:
    """Coordinates without blocks, and what the blocks have of their own as one stack."""
    blocks = coordinates.blocks or (BlockCoordinates(),) * config.num_layers
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return Coordinates(coordinates.residual, coordinates.values, coordinates.hidden), stack


@partial(jax.jit, static_argnames=("config", "total"))
def _measured(
    config: ModelConfig,
    objective: Objective,
    problem: Problem,
    shared: Coordinates,
    stack: BlockCoordinates,
    key: Key[Array, ""],
    total: int,
) -> tuple[RateDistortion, Points]:
    _, points = network_points(config, objective, problem, partial(with_block, shared), None, stack, key, total=total)
    return overall(objective, problem, points, total=total), points


def network_points(
    config: ModelConfig,
    objective: Objective,
    problem: Problem,
    coordinates: Callable[[Any, Any], Coordinates],
    shared: Any,
    layers: Any,
    key: Key[Array, ""],
    *,
    total: int,
    row_share: float = 1.0,
    chosen: Int[Array, " k"] | None = None,
) -> tuple[Float[Array, ""], Points]:
    """The Lagrangian of a whole problem, and its parts by kind of matrix.

    Values and gradients of a block are taken together, one block at a time, so that memory holds one moved block: what
    is differentiated is the first result alone.

    Args:
        config: architecture.
        objective: what to measure.
        problem: matrices.
        coordinates: of one block, from what all share and the block's slice of ``layers``.
        shared: parameters that all blocks share.
        layers: parameters of blocks, with a leading axis of layers.
        key: source of the noise.
        total: weights over which the mean is taken.
        row_share: share of the rows of every matrix that is looked at.
        chosen: blocks that stand for all of them; all by default.

    Returns:
        Bits per weight plus the weighted distortion over all matrices, and the points.
    """

    def lagrangian(points: Mapping[str, RateDistortion], sizes: Mapping[str, int]) -> Array:
        return sum(
            (_share(objective, point, sizes[name] / total) for name, point in points.items()),
            jnp.zeros((), jnp.float32),
        )

    sizes = {kind: matrix.weight[0].size for kind, matrix in problem.blocks.items()}

    def one_block(shared: Any, layer: Any, item: tuple[dict[str, Matrix], Array]) -> tuple[Array, dict]:
        matrices, number = item
        place, own_key = coordinates(shared, layer), jax.random.fold_in(key, number)
        points = block_points(config, objective, place, matrices, own_key, row_share=row_share)
        return lagrangian(points, sizes), points

    first = jax.tree.map(lambda leaf: leaf[0], layers)
    blocks, numbers, scale = problem.blocks, jnp.arange(config.num_layers), 1.0
    if chosen is not None:
        blocks, layers, numbers = jax.tree.map(lambda leaf: leaf[chosen], (blocks, layers, numbers))
        scale = config.num_layers / len(chosen)
    value, points = sum_over_layers(one_block, shared, layers, (blocks, numbers))
    value, by_kind = scale * value, {kind: _summary(objective, point, scale) for kind, point in points.items()}
    if problem.outer:
        own_key = jax.random.fold_in(key, config.num_layers)
        outer = outer_points(config, objective, coordinates(shared, first), problem.outer, own_key, row_share=row_share)
        value = value + lagrangian(outer, {name: matrix.weight.size for name, matrix in problem.outer.items()})
        by_kind |= outer
    return value, by_kind


def overall(objective: Objective, problem: Problem, points: Points, *, total: int) -> RateDistortion:
    """Bits and distortion of a problem in the means over ``total`` weights; of integers, the sum of distortions."""
    zero = jnp.zeros((), jnp.float32)
    shares = {n: m.weight.size / total for n, m in (*problem.blocks.items(), *problem.outer.items())}
    weights = dict.fromkeys(shares, 1.0) if objective.adds_up else shares
    return RateDistortion(
        sum((shares[name] * point.bits for name, point in points.items()), zero),
        sum((weights[name] * point.distortion for name, point in points.items()), zero),
    )


def sum_over_layers(f: Callable, shared: Any, layers: Any, items: Any) -> tuple[Float[Array, ""], Any]:
    """Sum of a scalar over the layers, differentiable in what it is given of parameters, in the memory of one layer.

    Args:
        f: ``f(shared, layer, item) -> (value, rest)``.
        shared: parameters that all layers share.
        layers: parameters with a leading axis of layers.
        items: arrays with a leading axis of layers, without gradients.

    Returns:
        The sum of the values, and the stacked rest, through which no gradient goes.

    Example:
        >>> f = lambda a, b, x: (a * b * x, x)
        >>> grad = jax.grad(lambda a: sum_over_layers(f, a, jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0]))[0])
        >>> print(grad(2.0))
        11.0
    """

    def plain(shared: Any, layers: Any) -> tuple[Array, Any]:
        def step(total: Array, xs: tuple[Any, Any]) -> tuple[Array, Any]:
            value, rest = f(shared, *xs)
            return total + value, rest

        return jax.lax.scan(step, jnp.zeros((), jnp.float32), (layers, items))

    def forward(shared: Any, layers: Any) -> tuple[tuple[Array, Any], tuple[Any, Any]]:
        def step(carry: tuple[Array, Any], xs: tuple[Any, Any]) -> tuple[tuple[Array, Any], tuple[Any, Any]]:
            total, gradient = carry
            layer, item = xs
            (value, rest), (g, g_layer) = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(shared, layer, item)
            return (total + value, jax.tree.map(jnp.add, gradient, g)), (g_layer, rest)

        start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, shared)
        (total, gradient), (g_layers, rest) = jax.lax.scan(step, start, (layers, items))
        return (total, rest), (gradient, g_layers)

    def backward(gradients: tuple[Any, Any], cotangent: tuple[Array, Any]) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: (cotangent[0] * g).astype(g.dtype), gradients)

    run = jax.custom_vjp(plain)
    run.defvjp(forward, backward)
    value, rest = run(shared, layers)
    return value, jax.lax.stop_gradient(rest)


def _share(objective: Objective, point: RateDistortion, share: float) -> Float[Array, ""]:
    """What one matrix adds to the Lagrangian."""
    weight = 1.0 if objective.adds_up else share
    return share * point.bits + weight * objective.lmbda * point.distortion


def _summary(objective: Objective, stacked: RateDistortion, scale: float) -> RateDistortion:
    """Of some blocks that stand for ``scale`` times as many."""
    distortion = scale * stacked.distortion.sum() if objective.adds_up else stacked.distortion.mean()
    return RateDistortion(stacked.bits.mean(), distortion)
