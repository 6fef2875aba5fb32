"""Dense directories: what is written is what transformers and our own reader expect."""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from occ_llm.checkpoints import read_hf_directory, tensor_shapes, write_hf_directory, write_safetensors
from occ_llm.config import ModelConfig
from occ_llm.errors import OccError
from occ_llm.weights import DerivedWeights
from safetensors import safe_open
from safetensors.numpy import load_file

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def files(byte_level_tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": byte_level_tokenizer.to_str().encode(), "tokenizer_config.json": b"{}"}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_float32_survives_bit_for_bit(tmp_path, make_config, make_weights, files, family, tied):
    config = make_config(family, tie_word_embeddings=tied)
    weights = make_weights(config)
    write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files)
    checkpoint = read_hf_directory(tmp_path / "out")
    assert checkpoint.config == config
    assert checkpoint.tokenizer_files == files
    for name, w in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], w, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_types_round_to_nearest_even(tmp_path, make_config, make_weights, files, dtype):
    config = make_config()
    weights = make_weights(config)
    write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files, dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, w in weights.items():
        assert stored[name].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(stored[name], w.astype(DTYPES[dtype]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("max_shard_bytes", [1, 300_000, 10**6, 10**9])
def test_shards_follow_the_convention(tmp_path, make_config, make_weights, files, max_shard_bytes):
    config = make_config()
    weights = make_weights(config)
    out = tmp_path / "out"
    write_hf_directory(out, config=config, weights=weights, tokenizer_files=files, max_shard_bytes=max_shard_bytes)
    parts = sorted(out.glob("*.safetensors"))
    if max_shard_bytes == 10**9:
        assert [part.name for part in parts] == ["model.safetensors"]
        assert not (out / "model.safetensors.index.json").exists()
    else:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())
        assert [part.name for part in parts] == sorted(set(index["weight_map"].values()))
        assert parts[-1].name == f"model-{len(parts):05d}-of-{len(parts):05d}.safetensors"
        for part in parts:
            held = load_file(part)
            assert {name for name, file in index["weight_map"].items() if file == part.name} == set(held)
            assert len(held) == 1 or sum(w.nbytes for w in held.values()) <= max_shard_bytes
    checkpoint = read_hf_directory(out)
    for name, w in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], w)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        hnp.array_shapes(max_dims=3, max_side=5),
        min_size=1,
        max_size=5,
    ),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_the_file_is_safetensors_for_any_names_and_shapes(tmp_path_factory, shapes, dtype):
    file = tmp_path_factory.mktemp("any") / "x.safetensors"
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_safetensors(file, weights, shapes, dtype=dtype)
    with safe_open(file, framework="numpy") as stored:
        assert stored.metadata() == {"format": "pt"}
        assert set(stored.keys()) == set(shapes)
        for name, w in weights.items():
            np.testing.assert_array_equal(stored.get_tensor(name), w.astype(DTYPES[dtype]))
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert header % 8 == 0


def test_one_tensor_in_memory_at_a_time(tmp_path, make_config, files):
    config = make_config(num_layers=12)
    shapes = tensor_shapes(config)
    weights = DerivedWeights({}, {name: lambda _, s=shape: np.ones(s, np.float32) for name, shape in shapes.items()})
    largest = max(4 * int(np.prod(shape)) for shape in shapes.values())
    total = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    tracemalloc.start()
    try:
        write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * largest + 300_000 < total / 3


def test_tensors_come_in_the_order_of_the_network_and_are_announced(tmp_path, make_config, make_weights, files):
    config = make_config()
    seen: list[str] = []
    write_hf_directory(
        tmp_path / "out", config=config, weights=make_weights(config), tokenizer_files=files, on_tensor=seen.append
    )
    assert seen == list(tensor_shapes(config))
    assert seen[0] == "model.embed_tokens.weight"


def test_two_runs_write_identical_files(tmp_path, make_config, make_weights, files):
    config = make_config()
    for name in ("a", "b"):
        write_hf_directory(tmp_path / name, config=config, weights=make_weights(config), tokenizer_files=files)
    for file in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# -- failures


def test_values_beyond_float16_are_refused(tmp_path, make_config, make_weights, files):
    config = make_config()
    weights = make_weights(config)
    weights["model.norm.weight"][3] = 1e5
    with pytest.raises(OccError, match=r"tensor model\.norm\.weight holds values beyond the range of float16"):
        write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files, dtype="float16")
    assert os.listdir(tmp_path) == []
    write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files, dtype="bfloat16")


def test_a_tensor_of_another_shape_is_a_programming_error(tmp_path, make_config, make_weights, files):
    config = make_config()
    weights = make_weights(config) | {"model.norm.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"shape \(3,\) where the model has \(256,\)"):
        write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OccError),
        (OccError("damaged input"), OccError),
    ],
    ids=repr,
)
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, make_config, make_weights, files, failure, raised):
    config = make_config()

    def fail(_):
        raise failure

    weights = DerivedWeights(make_weights(config), {"model.layers.1.mlp.up_proj.weight": fail})
    with pytest.raises(raised):
        write_hf_directory(tmp_path / "out", config=config, weights=weights, tokenizer_files=files)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_no_more(tmp_path, make_config, make_weights, files):
    resource = pytest.importorskip("resource")
    config = make_config()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # a real refusal in the middle of a real write
    try:
        with pytest.raises(OccError, match=r"out: the disk is full.*; free some space"):
            write_hf_directory(tmp_path / "out", config=config, weights=make_weights(config), tokenizer_files=files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_the_input_and_earlier_outputs_are_safe(tmp_path, make_config, make_weights, files):
    config: ModelConfig = make_config()
    out = tmp_path / "out"
    arguments = {"config": config, "tokenizer_files": files}
    write_hf_directory(out, weights=make_weights(config, 0), **arguments)
    with pytest.raises(OccError, match="already exists"):
        write_hf_directory(out, weights=make_weights(config, 1), **arguments)
    with pytest.raises(OccError, match="would replace the input"):
        write_hf_directory(out, weights=read_hf_directory(out).weights, force=True, inputs=[out], **arguments)
    write_hf_directory(out, weights=make_weights(config, 1), force=True, **arguments)
    w = read_hf_directory(Path(out)).weights["model.norm.weight"]
    np.testing.assert_array_equal(w, make_weights(config, 1)["model.norm.weight"])
