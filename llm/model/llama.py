"""The network as a flax NNX module: embedding, stacked blocks, final norm, head. No module is shared."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from ..config import ModelConfig
from .layers import Block, RMSNorm

Params = Mapping[str, Any]
"""Nested dicts of arrays: ``embedding``, ``blocks`` (every leaf with a leading axis of layers), ``norm``, ``head``."""


class Llama(nnx.Module):
    """A decoder-only transformer with rotary positions, RMS norms and gated feed-forward layers.

    The module describes the parameters; the forward pass is in :mod:`occ_llm.model.forward_pass`. A tied head is the
    embedding itself, so its matrix exists once.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack_of_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        def matrix() -> Array:
            return 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size))

        self.config = config
        self.embedding = nnx.Param(matrix())
        self.blocks = stack_of_blocks(rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nnx.Param(matrix())


def make_graphdef(config: ModelConfig) -> nnx.GraphDef[Llama]:
    """Return the static half of the network of ``config``, which is hashable; nothing is allocated."""
    return nnx.graphdef(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))


def init_params(config: ModelConfig, *, key: Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters for training from scratch: variance-preserving layers, depth-scaled residual branches."""
    state = nnx.state(Llama(config, rngs=nnx.Rngs(params=key)), nnx.Param)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), _plain(nnx.as_pure(state)))


def _plain(tree: Any) -> Any:
    """Return nested mappings as nested dicts."""
    return {name: _plain(child) for name, child in tree.items()} if isinstance(tree, Mapping) else tree
