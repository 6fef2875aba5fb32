"""Architecture of a Llama-family language model, read from and written as a Hugging Face ``config.json``."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from .errors import OccError

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeKind = Literal["linear", "dynamic", "llama3", "yarn"]

ARCHITECTURES: Mapping[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Supported values of ``architectures`` in ``config.json`` (TinyLlama and SmolLM are Llamas)."""

ROPE_KINDS: tuple[RopeKind, ...] = ("linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies are stretched beyond the context that a model was first trained on.

    The fields are those of Hugging Face's ``rope_scaling``; which of them matter depends on ``kind``.
    The mathematics is in :mod:`occ_llm.model.rope`.
    """

    kind: RopeKind
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: None = inferred from factor, mscale and mscale_all_dim
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], max_position: int) -> "RopeScaling | None":
        """Read ``rope_scaling`` (transformers 4) or ``rope_parameters`` (transformers 5); None if nothing is scaled."""
        kind = fields.get("rope_type") or fields.get("type") or "default"
        if kind == "default":
            return None
        if kind not in ROPE_KINDS:
            raise OccError(f"rope scaling {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}.")
        original = fields.get("original_max_position_embeddings") or max_position
        factor = fields.get("factor")
        names = {f.name for f in dataclasses.fields(cls)} - {"kind", "factor", "original_max_position", "truncate"}
        extra = {name: float(fields[name]) for name in names if fields.get(name) is not None}
        return cls(
            kind=kind,
            factor=float(max_position / original if factor is None else factor),
            original_max_position=int(original),
            truncate=bool(fields.get("truncate", True)),
            **extra,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the dict that ``config.json`` holds, with only the fields that this kind reads."""
        used = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
        }.get(self.kind, ())
        fields = {"rope_type": self.kind, "factor": self.factor}
        if used:
            fields["original_max_position_embeddings"] = self.original_max_position
        return fields | {name: value for name in used if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the forward pass needs to know about a model: sizes, attention pattern, position code.

    Example:
        >>> config = ModelConfig.from_hf({
        ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 64,
        ...     "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})
        >>> config.family, config.head_dim, config.num_kv_heads
        ('llama', 16, 4)
        >>> ModelConfig.from_hf(config.to_hf()) == config
        True
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # not always hidden_size // num_heads (Qwen3, Mistral Nemo)
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of q, k and v
    attention_output_bias: bool = False  # of o: Llama and Qwen3 have it with attention_bias, Qwen2 never
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head (Qwen3)
    sliding_window: int | None = None  # a token sees itself and the sliding_window - 1 before it
    sliding_layers: tuple[bool, ...] = ()  # one flag a layer; empty = all of them, if there is a window
    max_position: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise OccError(f"the model config has {name} = {getattr(self, name)}; it must be positive.")
        if self.num_heads % self.num_kv_heads:
            raise OccError(
                f"the model config has {self.num_heads} attention heads, not a multiple of its "
                f"{self.num_kv_heads} key-value heads; grouped-query attention needs equal groups."
            )
        if self.head_dim % 2:
            raise OccError(f"the model config has head_dim = {self.head_dim}; rotary positions need an even one.")
        if self.sliding_layers and len(self.sliding_layers) != self.num_layers:
            raise OccError(
                f"the model config names {len(self.sliding_layers)} layer types for {self.num_layers} layers."
            )

    @property
    def input_widths(self) -> dict[str, int]:
        """Kind of activations that linear layers read (:data:`~occ_llm.roles.INPUTS`) -> their number."""
        width, queries = self.hidden_size, self.num_heads * self.head_dim
        return {"attention_in": width, "o_in": queries, "mlp_in": width, "down_in": self.intermediate_size}

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Attention window of every layer; None = all earlier tokens."""
        flags = self.sliding_layers or (True,) * self.num_layers
        return tuple(self.sliding_window if flag else None for flag in flags)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """Read the fields of a Hugging Face ``config.json``.

        Reads ``rope_theta`` with ``rope_scaling`` as well as the ``rope_parameters`` of transformers 5. What a
        file leaves out has the default that transformers gives it.

        Raises:
            OccError: if the architecture, the activation or the rope scaling is not supported, or a size is
                missing.
        """
        family = _family(fields)
        if (activation := fields.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise OccError(f"the activation {activation!r} is not supported; the Llama family uses 'silu'.")
        required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if missing := [name for name in required if fields.get(name) is None]:
            raise OccError(
                f"the model config lacks {', '.join(missing)}; take the config.json that came with the model."
            )
        if wrong := [f"{name} = {fields[name]!r}" for name in required if not isinstance(fields[name], int)]:
            raise OccError(f"the model config has {wrong[0]}; it must be an integer.")
        rope = fields.get("rope_parameters") or {}
        if (partial := rope.get("partial_rotary_factor", fields.get("partial_rotary_factor"))) not in (None, 1, 1.0):
            raise OccError(f"partial_rotary_factor = {partial} is not supported; the Llama family rotates whole heads.")
        num_heads, max_position = fields["num_attention_heads"], fields.get("max_position_embeddings") or 2048
        bias = family == "qwen2" or bool(fields.get("attention_bias", False))
        window, sliding = _sliding(family, fields)
        eos = fields.get("eos_token_id")
        return cls(
            family=family,
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=fields.get("num_key_value_heads") or num_heads,
            head_dim=fields.get("head_dim") or (128 if family == "qwen3" else fields["hidden_size"] // num_heads),
            rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
            rope_scaling=RopeScaling.from_hf(fields.get("rope_scaling") or rope, max_position),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            attention_bias=bias and family != "mistral",
            attention_output_bias=bias and family in ("llama", "qwen3"),
            mlp_bias=family == "llama" and bool(fields.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            sliding_window=window,
            sliding_layers=sliding,
            max_position=max_position,
            bos_token_id=fields.get("bos_token_id"),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a ``config.json`` that transformers (4 and 5) and :meth:`from_hf` read back."""
        eos = self.eos_token_ids
        fields: dict[str, Any] = {
            "architectures": [next(name for name, family in ARCHITECTURES.items() if family == self.family)],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        }
        if self.rope_scaling is not None:
            fields["rope_scaling"] = self.rope_scaling.to_hf()
        if self.family in ("llama", "qwen3"):
            fields["attention_bias"] = self.attention_bias
        if self.family == "llama":
            fields["mlp_bias"] = self.mlp_bias
        if self.family == "mistral":
            fields["sliding_window"] = self.sliding_window
        if self.family in ("qwen2", "qwen3"):
            kinds = ["full_attention" if window is None else "sliding_attention" for window in self.windows]
            fields |= {"use_sliding_window": self.sliding_window is not None, "layer_types": kinds}
            fields["sliding_window"] = self.sliding_window
            fields["max_window_layers"] = kinds.count("full_attention")  # for readers without layer_types
        return fields


def _family(fields: Mapping[str, Any]) -> Family:
    names = list(fields.get("architectures") or ())
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and fields.get("model_type") in ARCHITECTURES.values():
        return fields["model_type"]
    found = ", ".join(names) or fields.get("model_type") or "none"
    raise OccError(f"the architecture {found!r} is not supported; supported are {', '.join(ARCHITECTURES)}.")


def _sliding(family: Family, fields: Mapping[str, Any]) -> tuple[int | None, tuple[bool, ...]]:
    """Window and per-layer flags, with the defaults that each family has in transformers."""
    if family == "llama":
        return None, ()
    if family == "mistral":
        return fields.get("sliding_window", 4096), ()
    if not fields.get("use_sliding_window", False) or fields.get("sliding_window", 4096) is None:
        return None, ()
    kinds, full = fields.get("layer_types"), fields.get("max_window_layers", 28)
    if kinds is None:
        kinds = ["full_attention" if i < full else "sliding_attention" for i in range(fields["num_hidden_layers"])]
    return fields.get("sliding_window", 4096), tuple(kind == "sliding_attention" for kind in kinds)
