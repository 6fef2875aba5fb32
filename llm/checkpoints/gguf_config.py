"""The architecture that the metadata of a GGUF file describes, in the terms of a Hugging Face config."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import OccError

Metadata = Mapping[str, Any]
"""GGUF key -> number, string, bool or list of them."""

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""``general.architecture`` -> Hugging Face architecture. Mistral's own GGUF files say ``llama``."""

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of a GGUF file that divides the rotary frequencies (the ``llama3`` scaling, tabulated)."""


def gguf_model_config(
    metadata: Metadata, tensors: Collection[str], rope_factors: np.ndarray | None = None
) -> ModelConfig:
    """Rebuild the config.

    Args:
        metadata: the file's key-value pairs.
        tensors: names of the file's tensors; which exist decides on biases and on a tied head.
        rope_factors: the tensor ``rope_freqs.weight``, where the file has one.

    Raises:
        OccError: another architecture, a mixture of experts, sizes that differ from layer to layer, a missing key.
    """
    arch = str(metadata.get("general.architecture"))
    if arch not in ARCHITECTURES:
        raise OccError(f"the architecture {arch!r} is not supported; supported are {', '.join(ARCHITECTURES)}.")
    if metadata.get(f"{arch}.expert_count"):
        raise OccError("mixtures of experts are not supported; give a dense model.")
    heads = _integer(metadata, f"{arch}.attention.head_count")
    width = _integer(metadata, f"{arch}.embedding_length")
    head_dim = metadata.get(f"{arch}.attention.key_length") or width // heads
    rotated = metadata.get(f"{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise OccError(
            f"{rotated} of {head_dim} dimensions of a head are rotated; the Llama family rotates whole heads."
        )
    if rope_factors is not None and 2 * rope_factors.size != head_dim:
        raise OccError(
            f"{ROPE_FACTORS} has {rope_factors.size} values for heads of {head_dim}; convert the model again."
        )
    theta = float(metadata.get(f"{arch}.rope.freq_base", 10_000.0))
    fields = {
        "architectures": [ARCHITECTURES[arch]],
        "vocab_size": metadata.get(f"{arch}.vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())),
        "hidden_size": width,
        "intermediate_size": _integer(metadata, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _integer(metadata, f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(metadata, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _integer(metadata, f"{arch}.context_length"),
        "rms_norm_eps": _float32(metadata, f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(metadata, arch, theta, rope_factors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    return ModelConfig.from_hf(fields)


def _integer(metadata: Metadata, key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise OccError(f"the metadata lacks {key}; convert the model again.")
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise OccError(f"{key} differs from layer to layer; the Llama family has equal layers.")
        value = value[0]
    return int(value)


def _float32(metadata: Metadata, key: str) -> float:
    """The shortest decimal with the stored float32 value: 1e-05, not 9.999999747378752e-06."""
    if key not in metadata:
        raise OccError(f"the metadata lacks {key}; convert the model again.")
    return float(str(np.float32(metadata[key])))


def _rope_scaling(
    metadata: Metadata, arch: str, theta: float, rope_factors: np.ndarray | None
) -> dict[str, Any] | None:
    if rope_factors is not None:
        return llama3_scaling(rope_factors, theta)
    kind = metadata.get(f"{arch}.rope.scaling.type", "linear")  # of files that are older than this key
    factor = float(metadata.get(f"{arch}.rope.scaling.factor", metadata.get(f"{arch}.rope.scale_linear", 1.0)))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if (original := metadata.get(f"{arch}.rope.scaling.original_context_length")) is not None:
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow"):
            if (beta := metadata.get(f"{arch}.rope.scaling.yarn_{name}")) is not None:
                scaling[name] = beta
        if (attention := metadata.get(f"{arch}.rope.scaling.attn_factor")) is not None:
            # GGUF multiplies the factor that YaRN prescribes, a Hugging Face config replaces it.
            scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return scaling


def llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    r"""The ``llama3`` rope scaling that produced a table of divisors, ``None`` if the table does nothing.

    With :math:`\lambda_i = 2 \pi \theta^{i / n}` the wavelength of pair :math:`i` of :math:`n`, the scaling divides
    its frequency by :math:`d_i`,

    .. math::

        1 / d_i = \frac{1 - s_i}{F} + s_i, \qquad
        s_i = \operatorname{clip}\left(\frac{C / \lambda_i - a}{b - a}, 0, 1\right)

    so :math:`F = \max d`, and the strictly interpolated :math:`s_i` are a straight line in :math:`1 / \lambda_i`. The
    table depends on :math:`a : b : C` only; :math:`a = 1` fixes the three, as in every published model.

    Args:
        factors: the divisors :math:`d`, one for each pair of dimensions of a head.
        theta: the rotary base.

    Raises:
        OccError: the table is not of this form (another scaling).

    Example:
        >>> scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        ...            "original_max_position_embeddings": 8192}
        >>> divisors = llama3_divisors(64, 500000.0, **scaling)
        >>> llama3_scaling(divisors, 500000.0) == {"rope_type": "llama3"} | scaling
        True
    """
    d = np.asarray(factors, np.float64).ravel()
    if np.allclose(d, 1.0):
        return None
    unknown = OccError(
        "the table of rope frequencies is not a llama3 scaling; give the Hugging Face directory instead."
    )
    if not (np.isfinite(d).all() and d.min() > 0 and d.max() > 1):
        raise unknown
    low, high, original = 1.0, 4.0, 8192.0
    s = (1 / d - 1 / d.max()) / (1 - 1 / d.max())
    between = (s > 1e-4) & (s < 1 - 1e-4)
    if between.sum() >= 2:
        slope, intercept = np.polyfit(1 / _wavelengths(d.size, theta)[between], s[between], 1)
        if not (slope > 0 > intercept):
            raise unknown
        high = low - low / intercept  # intercept = -low / (high - low), slope = original / (high - low)
        original = slope * (high - low)
    scaling = {
        "factor": round(float(d.max()), 4),
        "low_freq_factor": low,
        "high_freq_factor": round(float(high), 2),
        "original_max_position_embeddings": round(float(original)),
    }
    if scaling["high_freq_factor"] <= low or not np.allclose(llama3_divisors(d.size, theta, **scaling), d, rtol=1e-3):
        raise unknown
    return {"rope_type": "llama3"} | scaling


def llama3_divisors(
    num_pairs: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> np.ndarray:
    """The divisors :math:`d_i` of :func:`llama3_scaling`, as a GGUF converter tabulates them."""
    ratio = original_max_position_embeddings / _wavelengths(num_pairs, theta)
    s = np.clip((ratio - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return 1 / ((1 - s) / factor + s)


def _wavelengths(num_pairs: int, theta: float) -> np.ndarray:
    return 2 * math.pi * theta ** (np.arange(num_pairs) / num_pairs)
