r"""The end-to-end objective: what the quantized network predicts, against the original, on calibration windows.

.. math::

    \min_\theta\; \mathbb{E}_x\, D_{KL}\big(p(\cdot \mid x) \,\|\, p_{Q(T_\theta W)}(\cdot \mid x)\big)

The linear layers are moved, rounded to integers with shared scales (gradients go straight through) or given the noise
that quantization with feedback leaves, and run. Embedding and head stay as they are: their rows enter and leave the
moved stream through the same rotation. Under entropy coding they cost bytes too, and join the objective as they do
layer by layer, with their rate and distortion under the water level.

With feedback and :math:`H^{-1} = U^\top U` the error of a row is :math:`e = d \operatorname{diag}(U)^{-1} U`, with
:math:`d` uniform in the steps. Those of integers are the ranges of their groups, in the coordinates in question. Under
entropy coding they are :math:`c\, U_{jj} / \sqrt{g_i}`, so that :math:`e = \frac{c}{\sqrt{g_i}}\, n U` with white
noise :math:`n`: it costs the same in every direction of the inputs, in whatever basis, and :math:`U` need not be moved.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.learned import RANGES, RateDistortion, Step, upper_root
from occ_jax.quantization.base import uniform_noise
from occ_jax.transforms import Identity, Scaling, Transform, along_axis

from ..calibration import moved_diagonal, space_of
from ..calibration.moments import positive
from ..calibration.statistics import INPUT_OF, fisher_name, hessian_name
from ..compression.finishing import KEPT_BYTES, Target, activation_bytes, visits
from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates, moves
from ..model import LINEARS, LanguageModel, mean_divergence, observe
from ..roles import linear_name
from .layerwise import network_points, overall, stacked
from .losses import Coded, Integers, Objective, moved_weight
from .placements import Parameters, shared_and_blocks, with_block
from .problem import Problem
from .settings import LearnSettings
from .train import Learned, OnChunk, train


@pytree_dataclass
class Windows:
    """Calibration windows, what the original predicts for them, and the order in which they are visited.

    Attributes:
        tokens: the windows.
        hidden: the original's final hidden states.
        order: window of each step.
    """

    tokens: Int[Array, "windows length"]
    hidden: Float[Array, "windows length width"]
    order: Int[Array, " steps"]


@pytree_dataclass
class Network:
    """The folded network in original coordinates, with the factors of its inputs' second moments if there is noise.

    Attributes:
        params: of the network, without the matrices of the linear layers.
        problem: its linear layers with their sensitivities, and the outer matrices if they count.
        factors: for each kind of input, stacked over layers, :math:`U` under entropy coding, :math:`U^{-1}` of integers
            with feedback; empty without.
        head: output matrix.
    """

    params: Any
    problem: Problem
    factors: dict[str, Float[Array, "layers d d"]]
    head: Float[Array, "vocab width"]


class EndToEnd:
    """The end-to-end objective of one network.

    Args:
        model: with folded norms, in original coordinates.
        problem: its linear layers; with second moments, embedding and head for entropy coding.
        target: the predictions of the original.
        start: coordinates in which training begins.
        settings: of the training.
        objective: how the linear layers are quantized.
    """

    def __init__(
        self,
        model: LanguageModel,
        problem: Problem,
        target: Target,
        start: Coordinates,
        settings: LearnSettings,
        objective: Objective,
    ):
        self._model, self._start, self._settings, self.objective = model, start, settings, objective
        self._network = make_network(model, problem, objective)
        order = np.array(list(visits(len(target.tokens), settings.num_steps)), np.int32)
        self._windows = Windows(jnp.asarray(target.tokens), jnp.asarray(target.hidden), jnp.asarray(order))

    def measure(self, coordinates: Coordinates, *, windows: int = 4) -> float:
        """Divergence of the moved and quantized network on the first windows, nats per token."""
        shared, stack = stacked(self._model.config, coordinates)
        key = jax.random.key(self._settings.seed)
        found = [
            _measured(
                self._model.graphdef, self.objective, shared, stack, self._network, tokens, hidden,
                jax.random.fold_in(key, i), self._model.config,
            )
            for i, (tokens, hidden) in enumerate(zip(self._windows.tokens[:windows], self._windows.hidden[:windows]))
        ]  # fmt: skip
        return float(np.mean(found))

    def train(self, *, key: Key[Array, ""], state: Path | None = None, on_chunk: OnChunk | None = None) -> Learned:
        """Train every placement together; arguments as those of :meth:`~.layerwise.Layerwise.train`."""
        config, start, graphdef = self._model.config, self._start, self._model.graphdef
        lmbda, row_share = 1.0, self._settings.row_share
        total = self._network.problem.num_weights
        if isinstance(self.objective, Coded):
            # Divergence goes with the square of the step and the rate with its logarithm: what a nat is worth in bits.
            linear = Problem(self._network.problem.blocks, {})
            lmbda = linear.num_weights / total / (2 * float(np.log(2)) * self.measure(start))

        def loss(parameters: Parameters, data: tuple[Objective, Network, Windows], step: Step) -> RateDistortion:
            objective, network, windows = data
            residual, blocks = shared_and_blocks(config, parameters)
            window = windows.order[step.index]
            tokens, hidden = windows.tokens[window], windows.hidden[window]
            kl = divergence(config, graphdef, objective, start, residual, blocks, network, tokens, hidden, step.key)
            if isinstance(objective, Integers):
                return RateDistortion(jnp.float32(objective.bits), kl)
            lagrangian, bits = jnp.zeros(()), jnp.zeros(())
            for part, chosen in _parts(objective, network.problem):
                value, points = network_points(
                    config, part, chosen, partial(with_block, start), residual, blocks, step.key,
                    total=total, row_share=row_share,
                )  # fmt: skip
                lagrangian, bits = lagrangian + value, bits + overall(part, chosen, points, total=total).bits
            return RateDistortion(jax.lax.stop_gradient(bits - lagrangian) + lagrangian, kl)

        data = (self.objective, self._network, self._windows)
        return train(config, start, self._settings, loss, data, lmbda=lmbda, key=key, state=state, on_chunk=on_chunk)


def _parts(objective: Coded, problem: Problem) -> list[tuple[Coded, Problem]]:
    """What counts beside the divergence: the rate of the linear layers, rate and distortion of the outer matrices."""
    linear, outer = Problem(problem.blocks, {}), Problem({}, problem.outer)
    return [(objective, linear)] + ([(Coded(objective.step, "water"), outer)] if problem.outer else [])


def make_network(model: LanguageModel, problem: Problem, objective: Objective) -> Network:
    """Prepare a folded network.

    Args:
        model: with folded norms.
        problem: its linear layers; with second moments for noise, and with the outer matrices if they count.
        objective: how they are quantized.
    """
    factors: dict[str, Array] = {}
    if isinstance(objective, Coded) or objective.feedback:
        factor = _factor if isinstance(objective, Coded) else upper_root
        for kind, matrix in problem.blocks.items():
            if INPUT_OF[kind] not in factors:
                assert matrix.hessian is not None
                factors[INPUT_OF[kind]] = jax.lax.map(factor, matrix.hessian)
    bare = Problem({k: dataclasses.replace(m, hessian=None) for k, m in problem.blocks.items()}, problem.outer)
    blocks = {
        name: {"bias": part["bias"]} if "bias" in part else {} if name in LINEARS else part
        for name, part in model.params["blocks"].items()
    }
    return Network({**model.params, "blocks": blocks}, bare, factors, model.head)


def divergence(
    config: ModelConfig,
    graphdef: Any,
    objective: Objective,
    start: Coordinates,
    residual: Transform | None,
    blocks: BlockCoordinates,
    network: Network,
    tokens: Int[Array, " length"],
    hidden: Float[Array, "length width"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Divergence of the moved and quantized network from the original on one window, nats per token.

    Args:
        config: architecture.
        graphdef: of the network.
        objective: how linear layers are quantized.
        start: coordinates beside what is learned.
        residual: learned rotation of the residual stream.
        blocks: what the blocks have of their own, as a stack.
        network: folded, in original coordinates.
        tokens: a window.
        hidden: the original's final hidden states there.
        key: source of the noise.
    """
    basis = start.residual if residual is None else residual

    def moved_block(item: tuple[Any, Any, Any, Array]) -> dict[str, Any]:
        layer, matrices, biases, number = item
        coordinates = with_block(start, residual, layer)
        return _moved_block(config, objective, coordinates, matrices, biases, jax.random.fold_in(key, number))

    factors = network.factors
    if isinstance(objective, Integers) and objective.feedback:

        def moved_roots(item: tuple[Any, Any]) -> dict[str, Array]:
            return _moved_roots(config, with_block(start, residual, item[0]), item[1])

        # What later columns do is the best there is: it has no gradient.
        factors = jax.lax.stop_gradient(jax.lax.map(moved_roots, (blocks, factors)))
    matrices = {kind: (m.weight, m.fisher, factors.get(INPUT_OF[kind])) for kind, m in network.problem.blocks.items()}
    biases = {linear: network.params["blocks"][linear] for linear in LINEARS}
    # To move a matrix is dear, and so is a search for ranges: both are kept for the way back. All else is made again.
    policies = jax.checkpoint_policies
    kept = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(RANGES))
    remade = jax.checkpoint(moved_block, policy=kept)
    moved = jax.lax.map(remade, (blocks, matrices, biases, jnp.arange(config.num_layers)))
    # Only the rows of the embedding that occur enter the stream; they are numbered by position.
    params = {
        **network.params,
        "embedding": basis.forward(network.params["embedding"][tokens]),
        "blocks": {**network.params["blocks"], **moved},
        "norm": {"gain": jnp.ones_like(network.params["norm"]["gain"])},
    }
    length = tokens.shape[0]
    remat = activation_bytes(config, length) > KEPT_BYTES
    states, _ = observe(graphdef, params, jnp.arange(length)[None], reduce=lambda taps: None, remat=remat)
    states = basis.inverse(states[0]) * network.params["norm"]["gain"][None, :]
    return mean_divergence(states, network.head, hidden, network.head)


@partial(jax.jit, static_argnames=("config", "graphdef"))
def _measured(
    graphdef: Any,
    objective: Objective,
    shared: Coordinates,
    stack: BlockCoordinates,
    network: Network,
    tokens: Int[Array, " length"],
    hidden: Float[Array, "length width"],
    key: Key[Array, ""],
    config: ModelConfig,
) -> Float[Array, ""]:
    return divergence(config, graphdef, objective, shared, None, stack, network, tokens, hidden, key)


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
    hidden = coordinates.hidden_of(0) if kind == "down" else Identity()
    if isinstance(objective, Integers):
        return hidden.inverse(objective.reconstruct(hidden.forward(moved), factor, key))
    assert factor is not None
    rows = positive(moved_diagonal(space_of(config, fisher_name(name), coordinates), fisher))
    noise = uniform_noise(jnp.zeros_like(w), key=key)
    columns, _ = moves(config, name, coordinates)
    shaped = columns.forward(jnp.matmul(noise, factor, precision="highest"))
    return moved + shaped * (objective.step / jnp.sqrt(rows))[:, None]


def _moved_roots(
    config: ModelConfig, coordinates: Coordinates, roots: dict[str, Float[Array, "d d"]]
) -> dict[str, Float[Array, "d d"]]:
    r""":math:`U^{-1}` of the inputs of one block in new coordinates."""

    def move(tap: str, root: Array) -> Array:
        space = space_of(config, hessian_name(0, tap), coordinates)
        moved = along_axis(space, 0).forward(root)
        is_triangular = isinstance(space, Identity | Scaling)
        return moved if is_triangular else upper_root(jnp.matmul(moved, moved.T, precision="highest"))

    return {tap: move(tap, root) for tap, root in roots.items()}


def _factor(hessian: Float[Array, "d d"]) -> Float[Array, "d d"]:
    r"""Upper triangular :math:`U` with :math:`H^{-1} = U^\top U`."""
    root = upper_root(hessian)
    return jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root), dtype=root.dtype), lower=False)
