"""The tensors that a Llama-family checkpoint must hold: one name and one shape each, derived from the config."""

import math
import re
from collections.abc import Iterable, Mapping

from ..config import ModelConfig
from ..errors import OccError
from ..roles import EMBEDDING, FINAL_NORM, HEAD

Shape = tuple[int, ...]

_REDUNDANT = re.compile(r"\.rotary_emb\.inv_freq$")
"""Buffers that old exporters saved although the config determines them."""


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Hugging Face name and shape (rows write, columns read) of every tensor of a model, in the order of the network.

    A tied head is the embedding and has no tensor of its own.

    Example:
        >>> config = ModelConfig(family="llama", vocab_size=256, hidden_size=64, intermediate_size=128,
        ...                      num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, tie_word_embeddings=True)
        >>> shapes = tensor_shapes(config)
        >>> len(shapes), shapes["model.layers.0.self_attn.k_proj.weight"]
        (11, (32, 64))
    """
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _block_shapes(config).items()}
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def num_weights(config: ModelConfig) -> int:
    """Entries of all matrices of a model."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values() if len(shape) == 2)


def check_depth(config: ModelConfig, num_tensors: int, source: str) -> None:
    """Refuse a config with more layers than the checkpoint has tensors, before anything is made of that number.

    Raises:
        OccError: the config and the weights do not belong together.
    """
    if config.num_layers > num_tensors:
        raise OccError(
            f"{source}: the config describes {config.num_layers} layers but the weights are only {num_tensors} "
            "tensors; take the config that came with these weights."
        )


def check_layout(expected: Mapping[str, Shape], found: Mapping[str, Shape], source: str) -> None:
    """Refuse a checkpoint whose tensors are not exactly those of its config.

    A tensor too many is refused as well: to drop, say, a bias would quietly change the model.

    Args:
        expected: name and shape of every tensor of the model.
        found: name and shape of every tensor of the checkpoint.
        source: what to call the checkpoint in an error.

    Raises:
        OccError: a tensor is missing, unknown, or has another shape.
    """
    if missing := [name for name in expected if name not in found]:
        raise OccError(f"{source}: {_listed(missing)} missing; download the whole checkpoint again.")
    allowed = {*expected, HEAD} if HEAD not in expected else set(expected)
    if unknown := [name for name in found if name not in allowed and not _REDUNDANT.search(name)]:
        raise OccError(
            f"{source}: {_listed(unknown)} not part of the model that the config describes; "
            "take the config that came with these weights."
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise OccError(
                f"{source}: tensor {name} has shape {tuple(found[name])} but the config asks for {shape}; "
                "take the config that came with these weights."
            )


def _block_shapes(config: ModelConfig) -> dict[str, Shape]:
    width, hidden = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": (width,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, width)
        if config.attention_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    shapes["self_attn.o_proj.weight"] = (width, q)
    if config.attention_output_bias:
        shapes["self_attn.o_proj.bias"] = (width,)
    if config.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    shapes["post_attention_layernorm.weight"] = (width,)
    for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
        shapes[f"mlp.{name}_proj.weight"] = shape
        if config.mlp_bias:
            shapes[f"mlp.{name}_proj.bias"] = shape[:1]
    return shapes


def _listed(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    plural = "are" if len(names) > 1 else "is"
    return f"{', '.join(names[:limit])}{more} {plural}"
