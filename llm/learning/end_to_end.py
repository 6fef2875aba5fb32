r"""The end-to-end objective: what the quantized network predicts, against the original, on calibration windows.

.. math::

    \min_\theta\; \mathbb{E}_x\, D_{KL}\big(p(\cdot \mid x) \,\|\, p_{Q(T_\theta W)}(\cdot \mid x)\big)

The linear layers are moved, rounded to integers with shared scales (gradients go straight through) or given the noise
that quantization with feedback leaves, and run. Embedding and head stay as they are: their rows enter and leave the
moved stream through the same rotation. Under entropy coding they cost bytes too, and join the objective as they do
layer by layer, with their rate and distortion under the water level.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.learned import RateDistortion, Step, mean_over_batch
from occ_jax.learned.sharing import place, sharing_mesh
from occ_jax.transforms import Transform

from ..compression.finishing import KEPT_BYTES, Target, activation_bytes, visits
from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates
from ..model import LINEARS, LanguageModel, mean_divergence, observe
from .layerwise import network_points, overall, stacked
from .losses import Coded, Integers, Objective
from .placements import Parameters, shared_and_blocks, with_block
from .problem import Problem
from .quantized import Errors, error_factors, follows_coordinates, make_errors, quantized_blocks
from .settings import LearnSettings
from .train import Learned, OnChunk, train

_MEASURED = 4  # windows of the training, where nothing better is at hand


@pytree_dataclass
class Lessons:
    """Calibration windows, what the original predicts for them, and the order in which they are visited.

    Attributes:
        tokens: the windows.
        hidden: the original's final hidden states.
        order: windows of each step.
    """

    tokens: Int[Array, "windows length"]
    hidden: Float[Array, "windows length width"]
    order: Int[Array, "steps batch"]


@pytree_dataclass
class Folded:
    """The folded network in original coordinates, with the factors of its inputs' second moments if there is noise.

    Attributes:
        params: of the network, without the matrices of the linear layers.
        problem: its linear layers with their sensitivities, and the outer matrices if they count.
        factors: of the second moments of its inputs, as :func:`~.quantized.error_factors` makes them.
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
        devices: as many of them as divide the windows of a step share these. Matrices are moved and quantized on each.
            One device when left out.
    """

    def __init__(
        self,
        model: LanguageModel,
        problem: Problem,
        target: Target,
        start: Coordinates,
        settings: LearnSettings,
        objective: Objective,
        devices: Sequence[Any] | None = None,
    ):
        self._model, self._start, self._settings, self.objective = model, start, settings, objective
        self._network = make_network(model, problem, objective)
        order = list(visits(len(target.tokens), settings.num_steps * settings.batch))
        order = jnp.asarray(order, jnp.int32).reshape(settings.num_steps, settings.batch)
        self._lessons = Lessons(jnp.asarray(target.tokens), jnp.asarray(target.hidden), order)
        self._mesh = sharing_mesh(devices, None, settings.batch)

    def measure(self, coordinates: Coordinates, trial: Target | None = None) -> float:
        """Divergence of the moved and quantized network, nats per token.

        Args:
            coordinates: to measure in.
            trial: windows to measure on, with the predictions of the original; some of the training by default.
        """
        shared, stack = stacked(self._model.config, coordinates)
        lessons = self._lessons
        seen = lessons.tokens[:_MEASURED], lessons.hidden[:_MEASURED]
        if trial is not None:
            seen = jnp.asarray(trial.tokens), jnp.asarray(trial.hidden)
        keys = jax.random.split(jax.random.key(self._settings.seed), len(seen[0]))
        found = _measured(
            self._model.graphdef, self.objective, shared, stack, self._network, *seen, keys, self._model.config
        )
        return float(np.mean(found))

    def train(self, *, key: Key[Array, ""], state: Path | None = None, on_chunk: OnChunk | None = None) -> Learned:
        """Train every placement together; arguments as those of :meth:`~.layerwise.Layerwise.train`."""
        config, start, graphdef = self._model.config, self._start, self._model.graphdef
        lmbda, row_share = 1.0, self._settings.row_share
        total, mesh = self._network.problem.num_weights, self._mesh
        if isinstance(self.objective, Coded):
            # Divergence goes with the square of the step and the rate with its logarithm: what a nat is worth in bits.
            linear = Problem(self._network.problem.blocks, {})
            lmbda = linear.num_weights / total / (2 * float(np.log(2)) * self.measure(start))

        follows = follows_coordinates(self.objective)

        def refresh(parameters: Parameters, data: tuple[Objective, Folded, Lessons]) -> Errors:
            residual, blocks = shared_and_blocks(config, parameters)
            return errors_of(config, data[0], start, residual, blocks, data[1])

        def loss(parameters: Parameters, data: Any, step: Step) -> RateDistortion:
            (objective, network, lessons), errors = data if follows else (data, refresh(parameters, data))
            residual, blocks = shared_and_blocks(config, parameters)
            windows = lessons.order[step.index]
            tokens, hidden = lessons.tokens[windows], lessons.hidden[windows]
            noise_key, rate_key = jax.random.split(step.key)
            kl = divergence(
                config, graphdef, objective, start, residual, blocks, network, errors, tokens, hidden, noise_key,
                mesh=mesh,
            )  # fmt: skip
            if isinstance(objective, Integers):
                return RateDistortion(jnp.float32(objective.bits), kl)
            lagrangian, bits = jnp.zeros(()), jnp.zeros(())
            for part, chosen in _parts(objective, network.problem):
                value, points = network_points(
                    config, part, chosen, partial(with_block, start), residual, blocks, rate_key,
                    total=total, row_share=row_share,
                )  # fmt: skip
                lagrangian, bits = lagrangian + value, bits + overall(part, chosen, points, total=total).bits
            return RateDistortion(jax.lax.stop_gradient(bits - lagrangian) + lagrangian, kl)

        data = place(mesh, (self.objective, self._network, self._lessons), stacked=False)
        return train(
            config, start, self._settings, loss, data, lmbda=lmbda, key=key, state=state, on_chunk=on_chunk,
            refresh=refresh if follows else None, refresh_every=self._settings.refresh if follows else 1,
        )  # fmt: skip


def _parts(objective: Coded, problem: Problem) -> list[tuple[Coded, Problem]]:
    """What counts beside the divergence: the rate of the linear layers, rate and distortion of the outer matrices."""
    linear, outer = Problem(problem.blocks, {}), Problem({}, problem.outer)
    return [(objective, linear)] + ([(Coded(objective.step, "water"), outer)] if problem.outer else [])


def make_network(model: LanguageModel, problem: Problem, objective: Objective) -> Folded:
    """Prepare a folded network.

    Args:
        model: with folded norms.
        problem: its linear layers; with second moments for noise, and with the outer matrices if they count.
        objective: how they are quantized.
    """
    bare = Problem({k: dataclasses.replace(m, hessian=None) for k, m in problem.blocks.items()}, problem.outer)
    blocks = {
        name: {"bias": part["bias"]} if "bias" in part else {} if name in LINEARS else part
        for name, part in model.params["blocks"].items()
    }
    return Folded({**model.params, "blocks": blocks}, bare, error_factors(problem, objective), model.head)


def errors_of(
    config: ModelConfig,
    objective: Objective,
    start: Coordinates,
    residual: Transform | None,
    blocks: BlockCoordinates,
    network: Folded,
) -> Errors:
    """What errors of the linear layers are made of in some coordinates; arguments as those of :func:`divergence`."""
    place, matrices = partial(with_block, start, residual), network.problem.blocks
    return make_errors(config, objective, place, blocks, matrices, network.factors)


def divergence(
    config: ModelConfig,
    graphdef: Any,
    objective: Objective,
    start: Coordinates,
    residual: Transform | None,
    blocks: BlockCoordinates,
    network: Folded,
    errors: Errors,
    tokens: Int[Array, "batch length"],
    hidden: Float[Array, "batch length width"],
    key: Key[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Divergence of the moved and quantized network from the original on some windows, nats per token.

    Matrices are moved and quantized once for all of the windows, which the network then sees one by one.

    Args:
        config: architecture.
        graphdef: of the network.
        objective: how linear layers are quantized.
        start: coordinates beside what is learned.
        residual: learned rotation of the residual stream.
        blocks: what the blocks have of their own, as a stack.
        network: folded, in original coordinates.
        errors: by :func:`errors_of`, in these coordinates or in some nearby.
        tokens: the windows.
        hidden: the original's final hidden states there.
        key: source of the noise.
        mesh: devices that share the windows.
    """
    basis = start.residual if residual is None else residual
    place, matrices = partial(with_block, start, residual), network.problem.blocks
    biases = {linear: network.params["blocks"][linear] for linear in LINEARS}
    moved = quantized_blocks(config, objective, place, blocks, matrices, errors, biases, key)
    remat = activation_bytes(config, tokens.shape[1]) > KEPT_BYTES
    loss = partial(_divergence_of_window, graphdef, remat)
    return mean_over_batch(loss, (moved, basis), (network.params, network.head), (tokens, hidden), mesh=mesh)


def _divergence_of_window(
    graphdef: Any,
    remat: bool,
    quantized: tuple[dict[str, Any], Transform],
    original: tuple[Any, Float[Array, "vocab width"]],
    window: tuple[Int[Array, " length"], Float[Array, "length width"]],
) -> Float[Array, ""]:
    """The same on one window, of linear layers that are moved and quantized."""
    (moved, basis), (params, head), (tokens, hidden) = quantized, original, window
    # Only the rows of the embedding that occur enter the stream; they are numbered by position.
    run = {
        **params,
        "embedding": basis.forward(params["embedding"][tokens]),
        "blocks": {**params["blocks"], **moved},
        "norm": {"gain": jnp.ones_like(params["norm"]["gain"])},
    }
    states, _ = observe(graphdef, run, jnp.arange(len(tokens))[None], reduce=lambda taps: None, remat=remat)
    states = basis.inverse(states[0]) * params["norm"]["gain"][None, :]
    return mean_divergence(states, head, hidden, head)


@partial(jax.jit, static_argnames=("config", "graphdef"))
def _measured(
    graphdef: Any,
    objective: Objective,
    shared: Coordinates,
    stack: BlockCoordinates,
    network: Folded,
    tokens: Int[Array, "windows length"],
    hidden: Float[Array, "windows length width"],
    keys: Key[Array, " windows"],
    config: ModelConfig,
) -> Float[Array, " windows"]:
    errors = errors_of(config, objective, shared, None, stack, network)

    def of_window(window: tuple[Array, Array, Array]) -> Array:
        tokens, hidden, key = window
        return divergence(
            config, graphdef, objective, shared, None, stack, network, errors, tokens[None], hidden[None], key
        )

    return jax.lax.map(of_window, (tokens, hidden, keys))
