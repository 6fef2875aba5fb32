"""Small models of every family and every format, made on the fly."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from occ_llm.checkpoints import tensor_shapes
from occ_llm.config import ModelConfig
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it? Weights are parameters of operators.\n"
    "Der schnelle braune Fuchs; ein Würfel aus Grün. Ça va très bien, merci! \t2024-01-31\n\n"
    "def f(x):\n    return x ** 2 + 3 * x - 1\n다람쥐 헌 쳇바퀴에 타고파. 速い茶色の狐。\n"
)

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    def make(family: str = "llama", **changes: Any) -> ModelConfig:
        sizes = dict(vocab_size=320, hidden_size=256, intermediate_size=256, num_layers=2, num_heads=8, num_kv_heads=2)
        fields: dict[str, Any] = sizes | dict(head_dim=32, max_position=512, bos_token_id=1, eos_token_ids=(2,))
        fields |= {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}
        fields |= {"qwen2": {"attention_bias": True}, "qwen3": {"qk_norm": True}}.get(family, {})
        return ModelConfig(family=family, **(fields | changes))

    return make


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., dict[str, np.ndarray]]:
    def make(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}

    return make


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE with 3 special tokens (ids 0, 1, 2) and 300 pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_level_metadata(byte_level_tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer keys of a GGUF file for that tokenizer."""
    model = json.loads(byte_level_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [control if i < 3 else normal for i in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


@pytest.fixture(scope="session")
def write_hf(byte_level_tokenizer: Tokenizer) -> Callable[..., Path]:
    """Write a Hugging Face directory with the safetensors package, in one file or in ``shards``."""

    def write(path: Path, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype="F32", shards=1) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config.to_hf()))
        (path / "tokenizer.json").write_text(byte_level_tokenizer.to_str())
        (path / "tokenizer_config.json").write_text("{}")
        stored = {name: np.asarray(w, DTYPES[dtype]) for name, w in weights.items()}
        if shards == 1:
            save_file(stored, path / "model.safetensors")
            return path
        files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(stored)}
        for file in sorted(set(files.values())):
            save_file({name: w for name, w in stored.items() if files[name] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return path

    return write


def permuted_rows(w: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k, written out: rows i and i + n/2 of a head end side by side."""
    n = w.shape[0] // num_heads
    order = [head * n + half * n // 2 + pair for head in range(num_heads) for pair in range(n // 2) for half in (0, 1)]
    return w[order]


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[inner]}.{leaf}"
    return f"{GGUF_NAMES[module]}.{leaf}"


def architecture_metadata(config: ModelConfig) -> dict[str, Any]:
    arch = "llama" if config.family == "mistral" else config.family
    return {
        f"{arch}.block_count": config.num_layers,
        f"{arch}.context_length": config.max_position,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_heads,
        f"{arch}.attention.head_count_kv": config.num_kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": config.rope_theta,
        f"{arch}.vocab_size": config.vocab_size,
    }


def add_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)


@pytest.fixture(scope="session")
def write_gguf(byte_level_metadata: dict[str, Any]) -> Callable[..., Path]:
    """Write a GGUF file with the gguf package; matrices in ``kind``, the rest in float32."""

    def write(
        path: Path,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        metadata: Mapping[str, Any] | None = None,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> Path:
        arch = "llama" if config.family == "mistral" else config.family
        writer = gguf.GGUFWriter(path, arch)
        merged = architecture_metadata(config) | byte_level_metadata | dict(metadata or {})
        add_metadata(writer, {key: value for key, value in merged.items() if value is not None})
        for name, w in weights.items():
            if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
                w = permuted_rows(w, config.num_heads if ".q_proj." in name else config.num_kv_heads)
            if w.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(gguf_name(name), gguf.quantize(w, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(name), w)
        for name, w in (extra or {}).items():
            writer.add_tensor(name, w)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
