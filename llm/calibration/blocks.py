r"""One block of the network, observed: what its linear layers read, and the gradients of what they write.

Only gradients of *activations* are formed. A zero is added to the output :math:`y` of every linear layer and the
block is differentiated with respect to these zeros and its input, so :math:`\partial L / \partial y` comes out where
a weight gradient would start; the weights are constants of the computation.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ..config import ModelConfig
from ..model import block, final_norm, output_sizes, position_table, projection_rows
from .head import head_gradient
from .moments import CompensatedSum, gram, zero_sum
from .statistics import WEIGHTED_INPUTS
from .weighting import Tokens

Sums = Mapping[str, CompensatedSum]
"""Running sums over tokens, by the name of an input (second moments) or the kind of a layer (Fisher)."""

Residual = Float[Array, "windows length width"]

Window = Int[Array, ""] | None
"""How far back a token sees, None for all the way."""

_INPUT_OF = {"qkv": "attention_in", "o": "o_in", "gate_up": "mlp_in", "down": "down_in"}


@functools.partial(jax.jit, static_argnames="config")
def advance(config: ModelConfig, window: Window, params: dict[str, Any], x: Residual) -> Residual:
    """Output of a block."""
    return _run(config, window, params, x)[0]


@functools.partial(jax.jit, static_argnames="config", donate_argnames="sums")
def observe(
    config: ModelConfig, window: Window, params: dict[str, Any], sums: Sums, x: Residual
) -> tuple[Sums, Residual]:
    """Output of a block, and the second moments of its inputs added to the sums."""
    y, taps = _run(config, window, params, x)
    return {name: sums[name].add(moment) for name, moment in _moments(taps).items()}, y


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("sums", "gradient"))
def differentiate(
    config: ModelConfig, window: Window, params: dict[str, Any], sums: Sums, x: Residual, gradient: Residual
) -> tuple[Sums, Residual, dict[str, Tokens]]:
    """Recompute a block and send a gradient back through it.

    Args:
        config: architecture.
        window: attention window of the block.
        params: its weights, norms folded.
        sums: Fisher of the outputs so far, of the kinds that do not read :data:`WEIGHTED_INPUTS`.
        x: its input.
        gradient: of the loss at its output.

    Returns:
        The sums with this batch added, the gradient at ``x``, and the tokens of what is summed in another way.
    """
    zeros = {name: jnp.zeros((*x.shape[:-1], d), x.dtype) for name, d in output_sizes(config).items()}
    _, pullback, taps = jax.vjp(lambda x, probes: _run(config, window, params, x, probes), x, zeros, has_aux=True)
    dx, dy = pullback(gradient)
    terms: dict[str, Array] = {}
    kept: dict[str, dict[str, Array]] = {}
    for projection, (linear, rows) in projection_rows(config).items():
        kind, gradients = projection.rpartition(".")[2].removesuffix("_proj"), dy[linear][..., rows]
        if _INPUT_OF[linear] in WEIGHTED_INPUTS:
            kept.setdefault(linear, {})[kind] = gradients
        else:
            terms[kind] = gram(gradients)
    tokens = {_INPUT_OF[linear]: Tokens(taps[linear], gradients) for linear, gradients in kept.items()}
    return {name: sums[name].add(term) for name, term in terms.items()}, dx, tokens


@functools.partial(jax.jit, static_argnames="config", donate_argnames="sums")
def observe_head(config: ModelConfig, norm: Mapping[str, Array], sums: Sums, x: Residual) -> Sums:
    """Second moment of the inputs of the head added to the sums."""
    return {"hessian": sums["hessian"].add(gram(final_norm(config, norm, x)))}


@functools.partial(jax.jit, static_argnames="config", donate_argnames="sums")
def differentiate_head(
    config: ModelConfig,
    norm: Mapping[str, Array],
    head: Float[Array, "vocab width"],
    sums: Sums,
    x: Residual,
    bits: UInt32[Array, "windows length"],
) -> tuple[Sums, Residual]:
    """Draw labels and start the way back.

    Args:
        config: architecture.
        norm: parameters of the final norm.
        head: output matrix (the embedding, when tied).
        sums: Fisher of the logits so far.
        x: output of the last block.
        bits: randomness of the labels.

    Returns:
        The sums with this batch added, and the gradient at ``x``.
    """
    hidden, pullback = jax.vjp(lambda x: final_norm(config, norm, x), x)
    result = head_gradient(hidden.reshape(-1, hidden.shape[-1]), head, bits.reshape(-1))
    return {"fisher": sums["fisher"].add(result.logit_fisher)}, pullback(result.hidden.reshape(x.shape))[0]


@functools.partial(jax.jit, donate_argnames="sums")
def observe_embedding(sums: Sums, gradient: Residual) -> Sums:
    """Fisher of the embedding's outputs added to the sums."""
    return {"fisher": sums["fisher"].add(gram(gradient))}


def empty_sums(shapes: Mapping[str, tuple[int, ...]], dtype: jax.typing.DTypeLike) -> Sums:
    """Sums without terms, by short name and shape."""
    return {name: zero_sum(shape, dtype) for name, shape in shapes.items()}


def _run(
    config: ModelConfig, window: Window, params: dict[str, Any], x: Residual, probes: Mapping[str, Array] | None = None
) -> tuple[Residual, Mapping[str, Array]]:
    with jax.default_matmul_precision("highest"):
        table = position_table(config, x.shape[1], x.dtype)
        return block(config, params, x, table, window=window, probes=probes)


def _moments(taps: Mapping[str, Array]) -> dict[str, Array]:
    return {_INPUT_OF[name]: gram(x) for name, x in taps.items()}
