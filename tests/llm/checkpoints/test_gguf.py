"""GGUF files of every quantized type and family: weights, config, and what damaged files say."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from occ_llm.checkpoints.gguf import is_gguf_file, read_gguf_file, read_gguf_header, unpermute_rotary_rows
from occ_llm.checkpoints.gguf_config import gguf_model_config, llama3_divisors, llama3_scaling
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
    _, tensors = read_gguf_header(tmp_path / "x.gguf")
    stored = tensors["token_embd.weight"]
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
    with pytest.raises(OccError, match="not a llama3 scaling"):
        llama3_scaling(np.linspace(1, 8, 32), 10000.0)


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


# -- damaged files


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, make_config, make_weights, write_gguf) -> Path:
    config = make_config("llama", num_layers=1, hidden_size=32, intermediate_size=32, num_heads=1, num_kv_heads=1)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", config, make_weights(config))


def test_truncated_files_are_refused_wherever_they_end(tmp_path, small_file):
    content = small_file.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 10, 24, 40, *range(100, len(content) - 1, len(content) // 60), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(OccError, match=r"cut\.gguf: .*download") as error:
            read_gguf_file(file)
        assert "\n" not in str(error.value)


def test_a_header_that_lies_about_sizes_is_refused_at_once(tmp_path, small_file):
    content = bytearray(small_file.read_bytes())
    file = tmp_path / "liar.gguf"
    key = b"tokenizer.ggml.token_type"
    at = content.index(key) + len(key) + 4 + 4  # past the type and the item type: the number of items
    for place in (8, 16, at):  # number of tensors, of keys, of items
        for lie in (2**60, 2**63 - 1, 2**31):
            changed = bytearray(content)
            changed[place : place + 8] = struct.pack("<Q", lie)
            file.write_bytes(changed)
            with pytest.raises(OccError, match=r"liar\.gguf"):
                read_gguf_file(file)


def test_flipped_bytes_end_in_an_error_or_a_model(tmp_path, small_file):
    content = small_file.read_bytes()
    rng = np.random.default_rng(0)
    file = tmp_path / "flipped.gguf"
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        for place in rng.integers(0, 2000, size=3):
            changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            weights = read_gguf_file(file).weights
            assert all(np.isfinite(w).all() for w in weights.values())
        except OccError as error:
            refused += str(file) in str(error)
    assert refused > 20


def test_damaged_scales_are_not_finite_and_refused(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    weights = make_weights(config)
    weights["model.layers.0.mlp.up_proj.weight"][3, 7] = np.nan
    weights["model.norm.weight"][0] = -np.inf
    checkpoint = read_gguf_file(write_gguf(tmp_path / "m.gguf", config, weights))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        with pytest.raises(OccError, match=rf"m\.gguf: tensor {name} holds NaN or infinite"):
            checkpoint.weights[name]
    assert np.isfinite(checkpoint.weights["model.embed_tokens.weight"]).all()


def test_a_file_that_shrinks_or_goes_while_it_is_read(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config))
    checkpoint = read_gguf_file(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OccError, match=r"m\.gguf: ends within tensor .* restore the file"):
        sum(w.size for w in checkpoint.weights.values())
    file.unlink()
    with pytest.raises(OccError, match=r"m\.gguf: cannot be read any more"):
        checkpoint.weights["model.norm.weight"]


def test_missing_unknown_and_misshapen_tensors(tmp_path, make_config, make_weights, write_gguf):
    config = make_config("llama")
    weights = make_weights(config)

    def read(changes: dict, extra: dict | None = None):
        changed = {name: w for name, w in (weights | changes).items() if w is not None}
        return read_gguf_file(write_gguf(tmp_path / "m.gguf", config, changed, extra=extra))

    with pytest.raises(OccError, match=r"m\.gguf: model\.norm\.weight is missing"):
        read({"model.norm.weight": None})
    with pytest.raises(OccError, match=r"shape \(3,\) but the config asks for \(256,\)"):
        read({"model.norm.weight": np.ones(3, np.float32)})
    with pytest.raises(OccError, match=r"blk\.0\.attn_sinks is not part of the model"):
        read({}, {"blk.0.attn_sinks": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"split.count": 3}, "one part of a split model"),
        ({"llama.block_count": 2**31}, "layers but the weights are only"),
        ({"llama.block_count": 3}, "are missing"),
        ({"llama.vocab_size": 200}, "the tokenizer has 300 tokens but the embedding 200 rows"),
        ({"tokenizer.ggml.model": "t5"}, "'t5' is not supported"),
    ],
)
def test_models_that_cannot_be_used_name_the_file(tmp_path, make_config, make_weights, write_gguf, metadata, words):
    config = make_config("llama")
    file = write_gguf(tmp_path / "m.gguf", config, make_weights(config), metadata=metadata)
    with pytest.raises(OccError, match=rf"m\.gguf: .*{words}"):
        read_gguf_file(file)


def test_big_endian_and_foreign_files(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(OccError, match="byte order"):
        read_gguf_file(tmp_path / "big.gguf")
    (tmp_path / "text.gguf").write_text("nothing of the kind, but long enough to look at")
    with pytest.raises(OccError, match="not a complete GGUF file"):
        read_gguf_file(tmp_path / "text.gguf")
    with pytest.raises(OccError, match="no such file"):
        read_gguf_file(tmp_path / "none.gguf")


def test_what_counts_as_a_gguf_file(tmp_path, small_file):
    (tmp_path / "renamed.bin").write_bytes(small_file.read_bytes())
    (tmp_path / "notes.txt").write_text("GG")
    assert is_gguf_file(small_file)
    assert is_gguf_file(tmp_path / "renamed.bin")
    assert not is_gguf_file(tmp_path / "notes.txt")
    assert not is_gguf_file(tmp_path)
