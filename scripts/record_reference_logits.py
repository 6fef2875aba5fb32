"""Record logits of transformers and PyTorch, against which the test suite checks the forward pass without either.

    pip install -e .[interop]
    python scripts/record_reference_logits.py             # small models of every family
    python scripts/record_reference_logits.py smollm2     # the real SmolLM2-135M (93 MB download at first use)

The small models have weights from a closed formula (:func:`closed_form_weights`), so the files in ``tests/llm/golden``
hold logits only. The tests load this module for the same cases and formula.
"""

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from occ_llm.checkpoints import load_checkpoint, tensor_shapes, write_safetensors
from occ_llm.config import ModelConfig
from occ_llm.weights import Weights

GOLDEN = Path(__file__).parents[1] / "tests" / "llm" / "golden"

_SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA = _SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_MISTRAL = _SMALL | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
_QWEN2 = _SMALL | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_QWEN3 = _SMALL | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA | {"num_key_value_heads": 4},
    "llama-biased": _LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "llama-rope-linear": _LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama-rope-dynamic": _LLAMA
    | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 24},
    "llama-rope-llama3": _LLAMA | {"rope_parameters": _LLAMA3_SCALING | {"rope_theta": 500_000.0}},
    "llama-rope-yarn": _LLAMA | {"rope_scaling": _YARN},
    "llama-rope-yarn-mscale": _LLAMA
    | {"rope_scaling": _YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16, "beta_slow": 2}},
    "tinyllama": _LLAMA | {"rope_theta": 10_000.0, "num_key_value_heads": 1},
    "smollm2": _LLAMA
    | {
        "hidden_size": 36,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
    "mistral": _MISTRAL | {"sliding_window": None, "head_dim": 12, "rope_theta": 1_000_000.0},
    "mistral-window": _MISTRAL | {"sliding_window": 7},
    "qwen2": _QWEN2 | {"tie_word_embeddings": True, "rope_theta": 1_000_000.0},
    "qwen2-window": _QWEN2
    | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2, "num_hidden_layers": 3},
    "qwen3": _QWEN3 | {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3-window": _QWEN3
    | {
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""``config.json`` of a small model for every family and every variation that the forward pass knows."""

LENGTH = 40
POSITIONS = np.array([0, 1, 7, 16, 26, 39])
SMOLLM2_POSITIONS = np.array([0, 1, 2, 15, 31, 63, 100, 127, 180])
TOP = 64


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the name only: integer arithmetic (splitmix64), the same on every machine."""
    start = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]
    z = start + np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**23 - 1


def closed_form_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights of a small model: matrices of unit gain, norms around one, biases around zero."""
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = uniform(name, shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.3 * values
        elif name.endswith("bias"):
            values = 0.2 * values
        elif "embed" not in name:
            values = values * np.sqrt(3 / shape[-1])
        weights[name] = values.astype(np.float32)
    return weights


def tokens_for(config: ModelConfig) -> np.ndarray:
    """Two rows of tokens that use the whole vocabulary."""
    row = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH)
    return (row * row * 7 + row * 3 + 1) % config.vocab_size


def transformers_logits(fields: Mapping[str, Any], weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Logits of transformers in float32, through a directory that it opens like any other model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        shapes = {name: weights[name].shape for name in weights}
        write_safetensors(Path(directory) / "model.safetensors", weights, shapes)
        config = AutoConfig.for_model(**fields)
        config.save_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.inference_mode():
            return model(torch.from_numpy(tokens).long()).logits.numpy()


def record_families(target: Path = GOLDEN / "family_logits.npz") -> None:
    """Write the logits of every small model at a few positions."""
    recorded = {}
    for name, fields in CASES.items():
        config = ModelConfig.from_hf(fields)
        recorded[name] = transformers_logits(fields, closed_form_weights(config), tokens_for(config))[:, POSITIONS]
        print(f"{name}: logits between {recorded[name].min():.2f} and {recorded[name].max():.2f}", file=sys.stderr)
    np.savez_compressed(target, **recorded)


def smollm2_tokens(tokenizer: Any) -> np.ndarray:
    """One window of ordinary text and code."""
    return np.asarray([tokenizer.encode(SMOLLM2_TEXT, add_special_tokens=False).ids[: SMOLLM2_POSITIONS[-1] + 1]])


def record_smollm2(target: Path = GOLDEN / "smollm2_logits.npz") -> None:
    """Write, at a few positions of one text, the largest logits, some others, and the log of the sum of all."""
    checkpoint = load_checkpoint("smollm2-135m-q4_1")
    tokens = smollm2_tokens(checkpoint.tokenizer)
    logits = transformers_logits(checkpoint.config.to_hf(), checkpoint.weights, tokens)[0, SMOLLM2_POSITIONS]
    wide = logits.astype(np.float64)
    spread = np.arange(TOP) * (logits.shape[-1] // TOP)
    ids = np.concatenate([np.argsort(-logits, axis=-1)[:, :TOP], np.tile(spread, (len(logits), 1))], axis=-1)
    np.savez_compressed(
        target,
        tokens=tokens.astype(np.int32),
        positions=SMOLLM2_POSITIONS,
        ids=ids.astype(np.int32),
        logits=np.take_along_axis(logits, ids, axis=-1),
        log_sum_exp=wide.max(-1) + np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)),
    )


SMOLLM2_TEXT = """The Fourier transform of a signal tells how much of each frequency the signal contains. A compressor
that knows which frequencies matter spends its bits there. In Python, the discrete transform of a short list reads:

def dft(x):
    n = len(x)
    return [sum(x[t] * cmath.exp(-2j * cmath.pi * k * t / n) for t in range(n)) for k in range(n)]

Gravity is the reason why the Moon does not fly away. In 1687 Isaac Newton published the Principia, in which he showed
that the same force that makes an apple fall keeps the planets on their orbits. The question remained why bodies should
attract each other at all; it took more than two hundred years until Albert Einstein gave an answer in 1915."""

if __name__ == "__main__":
    (record_smollm2 if sys.argv[1:] == ["smollm2"] else record_families)()
