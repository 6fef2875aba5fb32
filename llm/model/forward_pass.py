"""The forward pass as pure functions: ``logits = forward(graphdef, params, tokens)``.

``graphdef`` is static and hashable, so each function may be jitted with ``static_argnums=0``. The blocks are scanned: a
model of any depth compiles as fast as one of its blocks. Hidden states and logits are apart because a vocabulary is
large: an evaluation computes the head for a few positions at a time (:mod:`occ_llm.evaluation`).

Products are computed in full float32 on every platform (accelerators would otherwise round float32 factors to fewer
bits); with bfloat16 parameters they are the platform's native ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..config import ModelConfig
from .attention import causal_attention
from .layers import Attach, Block, RMSNorm, Taps
from .llama import Llama, Params
from .rope import rope_table


def forward(
    graphdef: nnx.GraphDef[Llama], params: Params, tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length vocab"]:
    """Logits of the next token at every position."""
    return logits(params, hidden_states(graphdef, params, tokens))


def hidden_states(
    graphdef: nnx.GraphDef[Llama], params: Params, tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length width"]:
    """Residual stream after the last block and the final norm: what the head reads."""
    hidden, _ = observe(graphdef, params, tokens, reduce=lambda taps: None)
    return hidden


def head(params: Params) -> Float[Array, "vocab width"]:
    """Output matrix; the embedding if the two are tied."""
    return params.get("head", params["embedding"])


def logits(params: Params, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
    """Scores of the vocabulary for final hidden states, in float32 or wider."""
    wide = np.promote_types(hidden.dtype, np.float32)
    with jax.default_matmul_precision("highest"):
        return jnp.matmul(hidden, head(params).T, preferred_element_type=wide)


def observe(
    graphdef: nnx.GraphDef[Llama],
    params: Params,
    tokens: Int[Array, "batch length"],
    *,
    reduce: Callable[[Taps], Any],
    probes: Mapping[str, Any] | None = None,
    attach: Attach = jnp.add,
    remat: bool = False,
) -> tuple[Float[Array, "batch length width"], Any]:
    """Hidden states, and what ``reduce`` makes of the inputs of every linear layer.

    Statistics are taken inside the scan, one block at a time, so the activations of the network never exist together.

    Args:
        graphdef: static half of the network.
        params: its arrays.
        tokens: input.
        reduce: function of one block's :data:`~occ_llm.model.layers.Taps`; its results come back stacked over layers.
        probes: for each linear layer, probes with a leading axis of layers; see :mod:`occ_llm.model.probes`.
        attach: how a probe joins the output of its layer.
        remat: recompute every block in a backward pass instead of keeping its activations.

    Example:
        Second moments of the inputs of every layer (``x`` has axes batch, length, width)::

            moments = lambda taps: {name: jnp.einsum("bti,btj->ij", x, x) for name, x in taps.items()}
            hidden, hessians = observe(graphdef, params, tokens, reduce=moments)  # hessians["qkv"][layer]
    """
    model = nnx.merge(graphdef, params)
    x = params["embedding"][tokens]
    table = position_table(model.config, tokens.shape[1], x.dtype)

    def step(x: Array, layer: tuple) -> tuple[Array, Any]:
        layer_params, window, layer_probes = layer
        x, taps = block(model.config, layer_params, x, table, window=window, probes=layer_probes, attach=attach)
        return x, reduce(taps)

    layers = (params["blocks"], layer_windows(model.config, tokens.shape[1]), probes)
    with jax.default_matmul_precision("highest"):
        x, observed = jax.lax.scan(jax.checkpoint(step) if remat else step, x, layers)
    return model.norm(x), observed


def block(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "batch length width"],
    table: Float[Array, "2 length half"],
    *,
    window: Int[Array, ""] | None = None,
    probes: Mapping[str, Any] | None = None,
    attach: Attach = jnp.add,
) -> tuple[Float[Array, "batch length width"], Taps]:
    """One block of the network, for passes that go through the layers one by one.

    Args:
        config: of the model.
        params: of this block: ``jax.tree.map(lambda leaf: leaf[layer], params["blocks"])``.
        x: residual stream before the block.
        table: :func:`position_table`.
        window: this layer's entry of :func:`layer_windows`.
        probes: see :func:`observe`.
        attach: see :func:`observe`.

    Returns:
        The residual stream after the block and the inputs of its linear layers.
    """
    reach = None if window is None or None in config.windows else config.sliding_window

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        return causal_attention(q, k, v, window=window, reach=reach), None

    x, _, taps = merge_block(config, params)(x, table, attend, probes=probes, attach=attach)
    return x, taps


def final_norm(
    config: ModelConfig, params: Mapping[str, Array], x: Float[Array, "... width"]
) -> Float[Array, "... width"]:
    """Final hidden states of the residual stream after the last block; ``params`` is ``norm`` of the model's."""
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: RMSNorm(config.hidden_size, config.rms_norm_eps))), params)(x)


def merge_block(config: ModelConfig, params: Params) -> Block:
    """Return one block as a module, from its slice of the parameters."""
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0)))), params)


def position_table(config: ModelConfig, length: int, dtype: Any) -> Float[Array, "2 length half"]:
    """Rotations of the positions ``0 .. length - 1``."""
    return rope_table(config, jnp.arange(length), length=length, dtype=dtype)


def layer_windows(config: ModelConfig, length: int) -> Int[Array, " layers"] | None:
    """Attention window of every layer; ``None`` if none is shorter than the text."""
    if config.sliding_window is None or config.sliding_window >= length:
        return None
    return jnp.asarray([length if window is None else window for window in config.windows], jnp.int32)
