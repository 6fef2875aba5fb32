"""GGUF files of every quantized type and family: weights, config, and what damaged files say."""

import gguf
import numpy as np
import pytest
from occ_llm.checkpoints.gguf import read_gguf_file, stored_tensors, unpermute_rotary_rows
from occ_llm.checkpoints.gguf_config import gguf_model_config, llama3_divisors, llama3_scaling
from occ_llm.checkpoints.gguf_header import read_gguf_header
from occ_llm.config import ModelConfig, RopeScaling
from occ_llm.errors import OccError

GGML = gguf.GGMLQuantizationType


def block(kind: GGML, rng: np.random.Generator) -> np.ndarray:
    """One block of random bits."""
    return rng.integers(0, 256, gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8)


def dequantizable() -> list[GGML]:
    """The quantized types that the installed gguf package can turn into floats."""
    kinds = []
    for kind in GGML:
        if kind in (GGML.F32, GGML.F16):
            continue
        try:
            with np.errstate(all="ignore"):
                gguf.dequantize(block(kind, np.random.default_rng(0)), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


# -- weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_float32_files_give_back_weights_and_config(tmp_path, make_config, make_weights, write_gguf, family, tied):
    config = make_config(family, tie_word_embeddings=tied)
    weights = make_weights(config)
    checkpoint = read_gguf_file(write_gguf(tmp_path / "model.gguf", config, weights))
    assert checkpoint.config == config
    assert checkpoint.name == "model"
    assert list(checkpoint.weights) == list(weights)
    for name, w in weights.items():
        assert checkpoint.weights[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights[name], w, err_msg=name)


@pytest.mark.parametrize("kind", [GGML.F16, GGML.BF16, GGML.Q4_0, GGML.Q4_1, GGML.Q5_0, GGML.Q5_1, GGML.Q8_0])
def test_quantized_matrices_are_those_of_the_gguf_package(tmp_path, make_config, make_weights, write_gguf, kind):
    config = make_config("qwen2")  # not permuted: rows may be compared as they are
    weights = make_weights(config)
    checkpoint = read_gguf_file(write_gguf(tmp_path / "model.gguf", config, weights, kind))
    for name, w in weights.items():
        expected = gguf.dequantize(gguf.quantize(w, kind), kind).astype(np.float32) if w.ndim == 2 else w
        np.testing.assert_array_equal(checkpoint.weights[name], expected, err_msg=name)
    relative = np.linalg.norm(checkpoint.weights[name] - w) / np.linalg.norm(w)
    assert relative < 0.1


@pytest.mark.parametrize("kind", dequantizable(), ids=lambda kind: kind.name)
def test_every_type_that_the_package_dequantizes_is_read(tmp_path, kind):
    rng = np.random.default_rng(1)
    values = gguf.GGML_QUANT_SIZES[kind][0]
    rows = np.stack([np.concatenate([block(kind, rng) for _ in range(2)]) for _ in range(3)])
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, places = read_gguf_header(tmp_path / "x.gguf")
    stored = stored_tensors(tmp_path / "x.gguf", places)["token_embd.weight"]
    assert stored.shape == (3, 2 * values)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(stored.read(), gguf.dequantize(rows, kind))


def test_the_list_of_types_covers_the_common_ones():
    common = "BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"
    assert {GGML[name] for name in common.split()} <= set(dequantizable())


def test_integers_are_no_weights(tmp_path, make_config, make_weights, write_gguf):
    config = make_config()
    weights = make_weights(config)
    del weights["model.norm.weight"]
    extra = {"output_norm.weight": np.ones(config.hidden_size, np.int8)}
    checkpoint = read_gguf_file(write_gguf(tmp_path / "model.gguf", config, weights, extra=extra))
    with pytest.raises(OccError, match=r"model\.gguf: tensor output_norm\.weight has the type I8"):
        checkpoint.weights["model.norm.weight"]


def test_unpermuting_undoes_what_the_converter_does():
    rng = np.random.default_rng(0)
    for heads, head_dim, trailing in ((1, 2, ()), (3, 8, ()), (4, 16, (5,))):
        w = rng.normal(size=(heads * head_dim, *trailing))
        permuted = w.reshape(heads, 2, head_dim // 2, *trailing).swapaxes(1, 2).reshape(w.shape)
        np.testing.assert_array_equal(unpermute_rotary_rows(permuted, heads), w)


# -- config


def test_a_mistral_file_says_llama(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("mistral")
    checkpoint = read_gguf_file(write_gguf(tmp_path / "m.gguf", config, make_weights(config)), name="mine")
    assert checkpoint.config.family == "llama"
    assert checkpoint.name == "mine"


def test_biases_follow_from_the_tensors(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama", attention_bias=True, attention_output_bias=True, mlp_bias=True)
    weights = make_weights(config)
    checkpoint = read_gguf_file(write_gguf(tmp_path / "m.gguf", config, weights))
    assert checkpoint.config == config
    for name, w in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], w, err_msg=name)


def test_keys_that_old_files_lack_have_their_defaults(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama", num_kv_heads=8, vocab_size=300)
    absent = ("llama.vocab_size", "llama.attention.key_length", "llama.attention.head_count_kv", "llama.rope.freq_base")
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config), metadata=dict.fromkeys(absent))
    assert read_gguf_file(file).config == config


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, RopeScaling(kind="linear", factor=4.0, original_max_position=512)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 128},
            RopeScaling(kind="yarn", factor=4.0, original_max_position=128),
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_beta_fast": 16.0, "attn_factor": 2.0},
            RopeScaling(
                kind="yarn",
                factor=4.0,
                original_max_position=128,
                beta_fast=16.0,
                attention_factor=2 * (0.1 * np.log(4.0) + 1),
            ),
        ),
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 1.0}, None),
        ({"type": "linear", "factor": 0.0}, None),
        ({"factor": 2.0}, RopeScaling(kind="linear", factor=2.0, original_max_position=512)),
    ],
)
def test_rope_scaling_of_the_metadata(tmp_path, make_config, make_weights, write_gguf, metadata, expected):
    config = make_config()
    keys = {f"llama.rope.scaling.{key}": value for key, value in metadata.items()}
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config), metadata=keys)
    assert read_gguf_file(file).config.rope_scaling == expected


def test_tabulated_rope_frequencies_become_llama3_scaling(tmp_path, make_config, make_weights, write_gguf):
    scaling = RopeScaling(kind="llama3", factor=32.0, original_max_position=8192)
    config = make_config("llama", rope_theta=500000.0, rope_scaling=scaling, head_dim=64)
    table = llama3_divisors(
        32, 500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    extra = {"rope_freqs.weight": table.astype(np.float32)}
    checkpoint = read_gguf_file(write_gguf(tmp_path / "m.gguf", config, make_weights(config), extra=extra))
    assert checkpoint.config == config
    assert "rope_freqs.weight" not in checkpoint.weights


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("factor", "high", "original"), [(8.0, 4.0, 8192), (32.0, 4.0, 8192), (4.0, 8.0, 2048)])
def test_llama3_scaling_is_recovered_from_float32(head_dim, factor, high, original):
    scaling = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    table = llama3_divisors(head_dim // 2, 500000.0, **scaling).astype(np.float32)
    assert llama3_scaling(table, 500000.0) == {"rope_type": "llama3"} | scaling


def test_other_tables_of_rope_frequencies():
    assert llama3_scaling(np.ones(32, np.float32), 10000.0) is None
    rng = np.random.default_rng(0)
    tables = [np.linspace(1, 8, 32), np.linspace(8, 1, 32), np.full(32, 0.5), np.zeros(32), np.full(32, np.nan)]
    tables += [np.where(np.arange(32) == 3, value, 1.0) for value in (np.inf, -1.0, 1e-30, 1e30)]
    tables += [rng.uniform(0, 40, size=32) for _ in range(20)]
    for table in tables:
        with pytest.raises(OccError, match="not a llama3 scaling"):
            llama3_scaling(table, 10000.0)


def test_a_table_of_another_length(tmp_path, make_config, make_weights, write_gguf):
    config = make_config()
    extra = {"rope_freqs.weight": np.ones(7, np.float32)}
    with pytest.raises(OccError, match=r"m\.gguf: rope_freqs\.weight has 7 values for heads of 32"):
        read_gguf_file(write_gguf(tmp_path / "m.gguf", config, make_weights(config), extra=extra))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "gemma"}, "'gemma' is not supported"),
        ({"general.architecture": None}, "is not supported"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.attention.head_count": [8, 4]}, "differs from layer to layer"),
        ({"llama.embedding_length": None}, r"lacks llama\.embedding_length"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, r"lacks llama\.attention"),
        ({"llama.rope.dimension_count": 16}, "rotates whole heads"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attention.head_count": 0, "llama.attention.key_length": 32}, "num_heads = 0"),
    ],
)
def test_models_outside_the_family_are_refused(metadata, words):
    base = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": [8, 8],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 300,
    }
    assert isinstance(gguf_model_config(base, []), ModelConfig)
    merged = {key: value for key, value in (base | metadata).items() if value is not None}
    with pytest.raises(OccError, match=words):
        gguf_model_config(merged, [])
