"""The parts of a Llama-family network: linear layer, RMS normalisation and the residual block."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..config import ModelConfig
from .chunks import map_tokens
from .rope import rotate

LINEARS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Linear layers of a block -> the Hugging Face projections whose rows they stack, as these read the same input."""

Taps = Mapping[str, Array]
"""Inputs of the linear layers of one block, under the names of :data:`LINEARS`."""

Attach = Callable[[Array, Any], Array]
"""How a probe joins the output of a linear layer: ``attach(y, probe) -> y``; see :mod:`occ_llm.model.probes`."""

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""``attend(q, k, v) -> (output, kept)``: the attention of a block, and what it keeps (a cache, or nothing)."""


class Linear(nnx.Module):
    """``y = x W^T + b`` with ``W`` of shape ``d_out x d_in``, as in the checkpoints."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, scale: float = 1.0, rngs: nnx.Rngs):
        self.weight = nnx.Param(scale * d_in**-0.5 * jax.random.normal(rngs.params(), (d_out, d_in)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None

    def __call__(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_out"]:
        """Apply the layer to the last axis."""
        y = jax.lax.dot_general(x, self.weight[...], (((x.ndim - 1,), (1,)), ((), ())))
        return y if self.bias is None else y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))


class RMSNorm(nnx.Module):
    r"""Normalisation :math:`g_i x_i / \sqrt{\operatorname{mean}(x^2) + \epsilon}`, in float32 or wider.

    References:
        Zhang & Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
    """

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.gain = nnx.Param(jnp.ones(size))

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        """Normalise the last axis."""
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normal.astype(x.dtype) * self.gain[...].reshape((1,) * (x.ndim - 1) + (-1,))


class Block(nnx.Module):
    """One residual block: attention, then a gated feed-forward network (SwiGLU), each after a normalisation."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        depth_scale = (2 * config.num_layers) ** -0.5
        self.config = config
        self.attention_norm = RMSNorm(width, config.rms_norm_eps)
        self.qkv = Linear(width, q_size + 2 * kv_size, bias=config.attention_bias, rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.o = Linear(q_size, width, bias=config.attention_output_bias, scale=depth_scale, rngs=rngs)
        self.mlp_norm = RMSNorm(width, config.rms_norm_eps)
        self.gate_up = Linear(width, 2 * hidden, bias=config.mlp_bias, rngs=rngs)
        self.down = Linear(hidden, width, bias=config.mlp_bias, scale=depth_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        table: Float[Array, "2 length half"],
        attend: Attend,
        *,
        probes: Mapping[str, Any] | None = None,
        attach: Attach = jnp.add,
    ) -> tuple[Float[Array, "batch length width"], Any, Taps]:
        """Update the residual stream.

        Args:
            x: the residual stream.
            table: rotation of every position (:func:`occ_llm.model.rope.rope_table`).
            attend: the attention of a head's queries to keys and values.
            probes: for each linear layer, what ``attach`` joins to its output.
            attach: addition by default; then the gradient of a probe of zeros is that of the layer's output.

        Returns:
            The residual stream, what ``attend`` keeps, and the inputs of the linear layers.
        """

        def apply(name: str, h: Array) -> Array:
            y = getattr(self, name)(h)
            return y if probes is None or name not in probes else attach(y, probes[name])

        def read(x: Array) -> tuple[Array, Array]:
            h = self.attention_norm(x)
            return apply("qkv", h), h

        def write(x: Array, attended: Array) -> tuple[Array, Taps]:
            x = x + apply("o", attended)
            h = self.mlp_norm(x)
            gate, up = jnp.split(apply("gate_up", h), 2, axis=-1)
            product = jax.nn.silu(gate) * up
            return x + apply("down", product), {"o": attended, "gate_up": h, "down": product}

        each = map_tokens if probes is None else (lambda f, *arrays: f(*arrays))
        y, h = each(read, x)
        attended, kept = attend(*self._heads(y, table))
        x, taps = each(write, x, attended.reshape(*x.shape[:-1], -1))
        return x, kept, {"qkv": h, **taps}

    def _heads(self, y: Array, table: Array) -> tuple[Array, Array, Array]:
        """Queries grouped by the key-value head that they share, keys and values; positions in place."""
        c = self.config
        heads = y.reshape(*y.shape[:-1], -1, c.head_dim)
        q, k, v = jnp.split(heads, [c.num_heads, c.num_heads + c.num_kv_heads], axis=-2)
        q = rotate(q if self.q_norm is None else self.q_norm(q), table)
        k = rotate(k if self.k_norm is None else self.k_norm(k), table)
        return q.reshape(*q.shape[:-2], c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim), k, v
