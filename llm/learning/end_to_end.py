r"""The end-to-end objective: what the quantized network predicts, against the original, on calibration windows.

.. math::

    \min_\theta\; \mathbb{E}_x\, D_{KL}\big(p(\cdot \mid x) \,\|\, p_{Q(T_\theta W)}(\cdot \mid x)\big)

The linear layers are moved, rounded to integers with shared scales (gradients go straight through) or given the noise
that quantization with feedback leaves, moved back, and run. Embedding and head stay as they are. Under entropy coding
they cost bytes too, and join the objective as they do layer by layer, with their rate and distortion under the water
level.

A step may make the errors of some blocks alone, drawn at random, in the coordinates that are trained; the others keep
those of the coordinates in which training began. The gradient of the blocks that were drawn stands for all of them, at
errors that are a little larger than those of the end.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.learned import RateDistortion, Step

from ..compression.finishing import Target, activation_bytes, visits
from ..config import ModelConfig
from ..coordinates import BlockCoordinates, Coordinates
from ..model import LINEARS, LanguageModel, mean_divergence, observe
from .layerwise import LEAST_BLOCKS, network_points, overall, stacked
from .losses import Coded, Integers, Objective, sample
from .placements import Parameters, shared_and_blocks, with_block
from .problem import Problem
from .quantized import error_factors, quantized_blocks
from .settings import LearnSettings
from .train import Learned, OnChunk, train

MOST_BYTES = 4 << 30
"""Activations that are kept for the backward pass; where they would take more, blocks are computed a second time."""


@pytree_dataclass
class Lessons:
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
        self._lessons = Lessons(jnp.asarray(target.tokens), jnp.asarray(target.hidden), jnp.asarray(order))

    def measure(self, coordinates: Coordinates, *, windows: int = 4) -> float:
        """Divergence of the moved and quantized network on the first windows, nats per token."""
        config = self._model.config
        shared, stack = stacked(config, coordinates)
        key = jax.random.key(self._settings.seed)
        made = _all_blocks(config, self.objective, shared, stack, self._network, key)
        found = [
            _divergence(config, self._model.graphdef, made, self._network, tokens, hidden)
            for tokens, hidden in zip(self._lessons.tokens[:windows], self._lessons.hidden[:windows])
        ]
        return float(np.mean(found))

    def train(self, *, key: Key[Array, ""], state: Path | None = None, on_chunk: OnChunk | None = None) -> Learned:
        """Train every placement together; arguments as those of :meth:`~.layerwise.Layerwise.train`."""
        config, start, graphdef, settings = self._model.config, self._start, self._model.graphdef, self._settings
        lmbda = 1.0
        total = self._network.problem.num_weights
        if isinstance(self.objective, Coded):
            # Divergence goes with the square of the step and the rate with its logarithm: what a nat is worth in bits.
            linear = Problem(self._network.problem.blocks, {})
            lmbda = linear.num_weights / total / (2 * float(np.log(2)) * self.measure(start))

        key, standing_key = jax.random.split(key)
        standing = None
        if settings.share_of_blocks < 1:
            standing = _all_blocks(config, self.objective, *stacked(config, start), self._network, standing_key)

        def loss(parameters: Parameters, data: tuple[Objective, Folded, Any, Lessons], step: Step) -> RateDistortion:
            objective, network, standing, lessons = data
            residual, blocks = shared_and_blocks(config, parameters)
            window = lessons.order[step.index]
            tokens, hidden = lessons.tokens[window], lessons.hidden[window]
            noise_key, rate_key, blocks_key = jax.random.split(step.key, 3)
            chosen = sample(config.num_layers, settings.share_of_blocks, blocks_key, least=LEAST_BLOCKS)
            made = quantized_blocks(
                config, objective, partial(with_block, start, residual), blocks, network.problem.blocks,
                network.factors, noise_key, chosen,
            )  # fmt: skip
            if chosen is not None:
                made = {linear: standing[linear].at[chosen].set(matrix) for linear, matrix in made.items()}
            kl = divergence(config, graphdef, made, network, tokens, hidden)
            if chosen is not None:
                # They stand for all of them.
                fixed = jax.lax.stop_gradient(kl)
                kl = fixed + config.num_layers / len(chosen) * (kl - fixed)
            if isinstance(objective, Integers):
                return RateDistortion(jnp.float32(objective.bits), kl)
            lagrangian, bits = jnp.zeros(()), jnp.zeros(())
            for part, problem in _parts(objective, network.problem):
                value, points = network_points(
                    config, part, problem, partial(with_block, start), residual, blocks, rate_key,
                    total=total, row_share=settings.row_share, chosen=chosen,
                )  # fmt: skip
                lagrangian, bits = lagrangian + value, bits + overall(part, problem, points, total=total).bits
            return RateDistortion(jax.lax.stop_gradient(bits - lagrangian) + lagrangian, kl)

        data = (self.objective, self._network, standing, self._lessons)
        return train(config, start, settings, loss, data, lmbda=lmbda, key=key, state=state, on_chunk=on_chunk)


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


def divergence(
    config: ModelConfig,
    graphdef: Any,
    linear: Mapping[str, Float[Array, "layers d_out d_in"]],
    network: Folded,
    tokens: Int[Array, " length"],
    hidden: Float[Array, "length width"],
) -> Float[Array, ""]:
    """Divergence of a network with other linear layers from the original on one window, nats per token.

    Args:
        config: architecture.
        graphdef: of the network.
        linear: matrices of its linear layers, fused as the network has them.
        network: all else.
        tokens: a window.
        hidden: the original's final hidden states there.
    """
    blocks = {name: network.params["blocks"][name] | {"weight": matrix} for name, matrix in linear.items()}
    params = {**network.params, "blocks": {**network.params["blocks"], **blocks}}
    remat = activation_bytes(config, len(tokens)) > MOST_BYTES
    states, _ = observe(graphdef, params, tokens[None], reduce=lambda taps: None, remat=remat)
    return mean_divergence(states[0], network.head, hidden, network.head)


@partial(jax.jit, static_argnames="config")
def _all_blocks(
    config: ModelConfig,
    objective: Objective,
    shared: Coordinates,
    stack: BlockCoordinates,
    network: Folded,
    key: Key[Array, ""],
) -> dict[str, Float[Array, "layers d_out d_in"]]:
    """The linear layers with errors of given coordinates."""
    place, matrices = partial(with_block, shared, None), network.problem.blocks
    return quantized_blocks(config, objective, place, stack, matrices, network.factors, key)


_divergence = jax.jit(divergence, static_argnames=("config", "graphdef"))
