"""Hugging Face directories: every dtype, single and sharded, read lazily; and what incomplete ones say."""

import json
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from occ_llm.checkpoints import StoredTensor, StoredWeights, hf, read_hf_directory, tensor_shapes
from occ_llm.checkpoints.tokenizer_files import read_tokenizer_files
from occ_llm.errors import OccError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
UP = "model.layers.0.mlp.up_proj.weight"


def edit_config(directory: Path, **changes) -> None:
    file = directory / "config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


# -- reading


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_dtype_becomes_float32(tmp_path, make_config, make_weights, write_hf, dtype, tied, shards):
    config = make_config(tie_word_embeddings=tied)
    weights = make_weights(config)
    checkpoint = read_hf_directory(write_hf(tmp_path / "model", config, weights, dtype, shards))
    assert checkpoint.config == config
    assert checkpoint.name == "model"
    assert list(checkpoint.weights) == list(tensor_shapes(config))
    for name, w in weights.items():
        expected = w.astype(DTYPES[dtype]).astype(np.float32)
        assert checkpoint.weights[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights[name], expected, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path, make_config, make_weights, write_hf, family):
    config = make_config(family)
    weights = make_weights(config)
    checkpoint = read_hf_directory(write_hf(tmp_path, config, weights), name="mine")
    assert (checkpoint.config, checkpoint.name, checkpoint.path) == (config, "mine", tmp_path)
    assert set(checkpoint.weights) == set(weights)


def test_nothing_is_read_before_it_is_asked_for(tmp_path, make_config, make_weights, write_hf, monkeypatch):
    config = make_config()
    directory = write_hf(tmp_path, config, make_weights(config), shards=2)
    read = []
    original = hf._read_tensor
    monkeypatch.setattr(hf, "_read_tensor", lambda file, name: read.append(name) or original(file, name))
    weights = read_hf_directory(directory).weights
    assert len(read) <= 2  # by the type checker of the tests, which looks at one value
    read.clear()
    assert UP in weights
    assert "model.layers.9.mlp.up_proj.weight" not in weights
    assert len(list(weights)) == len(weights)
    assert read == []
    np.testing.assert_array_equal(weights[UP], weights[UP])
    assert read == [UP, UP]  # nothing is kept


def test_memory_is_bounded_by_one_tensor(tmp_path, make_config, make_weights, write_hf):
    config = make_config(num_layers=12)
    weights = make_weights(config)
    checkpoint = read_hf_directory(write_hf(tmp_path, config, weights, "F16"))
    largest = max(w.nbytes for w in weights.values())
    total = sum(w.nbytes for w in weights.values())
    tracemalloc.start()
    try:
        norms = sum(float(np.abs(checkpoint.weights[name]).sum()) for name in checkpoint.weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.isfinite(norms)
    assert peak < 4 * largest + 100_000 < total / 2  # the stored tensor, its float32 copy, the absolute values


def test_leftover_buffers_and_a_head_that_is_tied_are_ignored(tmp_path, make_config, make_weights, write_hf):
    config = make_config(tie_word_embeddings=True)
    weights = make_weights(config)
    leftover = {"lm_head.weight": weights["model.embed_tokens.weight"]}
    leftover["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    checkpoint = read_hf_directory(write_hf(tmp_path, config, weights | leftover))
    assert set(checkpoint.weights) == set(weights)


def test_config_of_either_transformers_version(tmp_path, make_config, make_weights, write_hf):
    config = make_config(rope_theta=50000.0)
    directory = write_hf(tmp_path, config, make_weights(config))
    edit_config(directory, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 50000.0})
    assert read_hf_directory(directory).config == config


# -- tokenizer


def test_tokenizer_and_its_files(tmp_path, make_config, make_weights, write_hf, byte_level_tokenizer):
    config = make_config()
    directory = write_hf(tmp_path, config, make_weights(config))
    (directory / "special_tokens_map.json").write_text("{}")
    (directory / "training_args.bin").write_bytes(b"x")
    checkpoint = read_hf_directory(directory)
    assert set(checkpoint.tokenizer_files) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert checkpoint.tokenizer_files == read_tokenizer_files(directory)
    assert checkpoint.tokenizer.encode("a fox").ids == byte_level_tokenizer.encode("a fox").ids


def test_text_is_never_truncated_or_padded(tmp_path, make_config, make_weights, write_hf):
    config = make_config()
    directory = write_hf(tmp_path, config, make_weights(config))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(directory / "tokenizer.json"))
    encode = read_hf_directory(directory).tokenizer.encode
    assert len(encode("abcdefghijklmnop").ids) > 9
    assert len(encode("z").ids) == 1


# -- directories that cannot be used: one sentence that names the file, the cause and the way out


@pytest.fixture
def directory(tmp_path, make_config, make_weights, write_hf) -> Path:
    config = make_config()
    return write_hf(tmp_path / "model", config, make_weights(config))


@pytest.fixture
def sharded(tmp_path, make_config, make_weights, write_hf) -> Path:
    config = make_config()
    return write_hf(tmp_path / "model", config, make_weights(config), shards=2)


def refused(path: Path, words: str) -> None:
    with pytest.raises(OccError, match=words) as error:
        read_hf_directory(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert re.search(r"; .*\.$", message), "says what to do"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "neither model.safetensors nor"),
    ],
)
def test_missing_files(directory, name, words):
    (directory / name).unlink()
    refused(directory, words)


def test_only_pickles(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(directory, "only pickled weights")


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\xff\xfe", '{"architectures": 3}'])
def test_damaged_config(directory, content):
    (directory / "config.json").write_bytes(content.encode("latin-1"))
    refused(directory, "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported"),
        ({"architectures": ["LlamaForCausalLM"], "hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size|impossible value"),
        ({"num_attention_heads": 0, "head_dim": None}, "impossible value"),
        ({"rope_theta": "high"}, "impossible value"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"quantization_config": "?"}, "already quantized"),
        ({"num_hidden_layers": 10**9}, "layers but the weights are only"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2.* are missing"),
        ({"num_hidden_layers": 1}, "and 6 more are not part of the model"),
        ({"intermediate_size": 128}, r"shape \(256, 256\) but the config asks for \(128, 256\)"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"vocab_size": 200}, "but the config asks for"),
    ],
)
def test_configs_that_do_not_fit(directory, changes, words):
    edit_config(directory, **changes)
    refused(directory, words)


def test_a_vocabulary_larger_than_the_embedding(tmp_path, make_config, make_weights, write_hf):
    config = make_config(vocab_size=200)
    refused(write_hf(tmp_path, config, make_weights(config)), "300 tokens but the embedding 200 rows")


@pytest.mark.parametrize("token", ["a", {"content": "a", "lstrip": False}])
def test_texts_begin_as_the_tokenizers_class_says(directory, token):
    """LlamaTokenizerFast of transformers puts BOS there, though no file but the config knows of it."""
    plain = read_hf_directory(directory).tokenizer.encode("fox").ids
    file = directory / "tokenizer_config.json"
    for name, asked, begins in (
        ("LlamaTokenizerFast", True, True),
        ("LlamaTokenizerFast", False, False),
        ("PreTrainedTokenizerFast", True, False),
    ):
        file.write_text(json.dumps({"tokenizer_class": name, "add_bos_token": asked, "bos_token": token}))
        tokenizer = read_hf_directory(directory).tokenizer
        assert tokenizer.encode("fox").ids == [tokenizer.token_to_id("a")] * begins + plain
    file.write_text("{")
    refused(directory, "tokenizer_config.json is damaged")


def test_damaged_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{")
    refused(directory, "tokenizer.json is damaged")


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_weights(directory, keep):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(directory, r"model\.safetensors: not a complete safetensors file")


def test_weights_that_are_cut_off_or_go_while_they_are_read(directory):
    weights = read_hf_directory(directory).weights
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OccError, match=r"model\.safetensors: not a complete"):
        weights[UP]
    file.unlink()
    with pytest.raises(OccError, match=r"model\.safetensors"):
        weights[UP]


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "model-00002-of-00002.safetensors: no such file")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "outside its own directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its own directory"),
        ({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}, "missing"),
    ],
)
def test_damaged_index(sharded, index, words):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_not_finite(tmp_path, make_config, make_weights, write_hf, dtype, value):
    config = make_config()
    weights = make_weights(config)
    weights[UP][17, 5] = value
    checkpoint = read_hf_directory(write_hf(tmp_path, config, weights, dtype))
    with pytest.raises(OccError, match=rf"model\.safetensors: tensor {UP} holds NaN or infinite values"):
        checkpoint.weights[UP]
    assert np.isfinite(checkpoint.weights["model.norm.weight"]).all()


def test_float64_beyond_float32_is_not_finite(directory):
    file = directory / "model.safetensors"
    stored = load_file(file)
    save_file(stored | {"model.norm.weight": np.full(256, 1e300)}, file)
    weights = read_hf_directory(directory).weights
    with pytest.raises(OccError, match="holds NaN or infinite"):
        weights["model.norm.weight"]


def test_large_finite_weights_are_fine(directory):
    file = directory / "model.safetensors"
    huge = np.full(256, np.finfo(np.float32).max)
    save_file(load_file(file) | {"model.norm.weight": huge}, file)
    np.testing.assert_array_equal(read_hf_directory(directory).weights["model.norm.weight"], huge)


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_integer_weights(directory, dtype):
    file = directory / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": np.ones(256, dtype)}, file)
    refused(directory, r"tensor model\.norm\.weight is stored as (I8|BOOL)")


def test_a_tensor_that_changes_its_shape_between_header_and_read(make_config, make_weights):
    config = make_config()
    weights = make_weights(config)
    tensors = {
        name: StoredTensor(file=Path("x"), shape=w.shape, read=lambda w=w: w.reshape(-1)) for name, w in weights.items()
    }
    with pytest.raises(OccError, match="changed its shape"):
        StoredWeights(tensors, config, "x")[UP]
    with pytest.raises(KeyError):
        StoredWeights(tensors, config, "x")["lm_head.weight"]
