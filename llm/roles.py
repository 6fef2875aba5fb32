"""Which tensor of a Llama-family model reads, and which writes, which space: the map of every reparameterisation.

The network has one **residual** space of width ``hidden_size`` through which everything communicates. A linear layer
*reads* a space with its columns and *writes* one with its rows:

============================  ===========  ===========
layer                         reads        writes
============================  ===========  ===========
``embed_tokens`` (row = id)   -            residual (along the columns)
``q_proj``, ``k_proj``        residual     queries / keys (RoPE planes)
``v_proj``                    residual     values
``o_proj``                    values       residual
``gate_proj``, ``up_proj``    residual     hidden units
``down_proj``                 hidden units residual
``lm_head``                   residual     logits
============================  ===========  ===========
"""

import re
from collections.abc import Mapping
from typing import Literal

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"

Kind = Literal["embedding", "head", "q", "k", "v", "o", "gate", "up", "down", "norm", "bias"]

_LINEAR = re.compile(r"^model\.layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.(weight|bias)$")

ATTENTION_NORM = "model.layers.{}.input_layernorm.weight"
MLP_NORM = "model.layers.{}.post_attention_layernorm.weight"

NORM_OF: dict[str, str] = {
    "q": ATTENTION_NORM,
    "k": ATTENTION_NORM,
    "v": ATTENTION_NORM,
    "gate": MLP_NORM,
    "up": MLP_NORM,
}
"""Kind of a layer that reads the residual stream -> name pattern of the norm in front of it."""

READS_RESIDUAL = frozenset({"q", "k", "v", "gate", "up", "head"})
WRITES_RESIDUAL = frozenset({"o", "down"})
LINEAR_KINDS = ("q", "k", "v", "o", "gate", "up", "down")

INPUT_OF: Mapping[str, str] = {
    "q": "attention_in",
    "k": "attention_in",
    "v": "attention_in",
    "o": "o_in",
    "gate": "mlp_in",
    "up": "mlp_in",
    "down": "down_in",
}
"""Kind of a linear layer -> the activations that it reads, one and the same for all that share them."""

INPUTS = ("attention_in", "o_in", "mlp_in", "down_in")


def kind_of(name: str) -> Kind:
    """Kind of a tensor from its Hugging Face name; everything that is no matrix is a ``norm`` or a ``bias``.

    Example:
        >>> kind_of("model.layers.3.self_attn.q_proj.weight"), kind_of("model.norm.weight")
        ('q', 'norm')
    """
    if name == EMBEDDING:
        return "embedding"
    if name == HEAD:
        return "head"
    if match := _LINEAR.match(name):
        return match[2] if match[3] == "weight" else "bias"  # pyright: ignore[reportReturnType]
    return "bias" if name.endswith(".bias") else "norm"


def layer_of(name: str) -> int | None:
    """Index of the block a tensor belongs to, ``None`` outside the blocks.

    Example:
        >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("lm_head.weight")
        (12, None)
    """
    match = re.match(r"^model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def is_linear(name: str) -> bool:
    """Whether the tensor is the matrix of a linear layer inside a block (what "bits per linear weight" counts)."""
    return kind_of(name) in LINEAR_KINDS


def linear_name(layer: int, kind: str) -> str:
    """Hugging Face name of a linear layer's matrix.

    Example:
        >>> linear_name(0, "down")
        'model.layers.0.mlp.down_proj.weight'
    """
    module = "self_attn" if kind in "qkvo" else "mlp"
    return f"model.layers.{layer}.{module}.{kind}_proj.weight"
