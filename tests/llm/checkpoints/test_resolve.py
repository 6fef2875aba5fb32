"""From what a user types to a checkpoint: names, paths, hub ids, and formats added by others."""

import dataclasses
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.errors as hub_errors
import numpy as np
import pytest
from occ_llm.checkpoints import NAMED_MODELS, READERS, Checkpoint, Reader, hub, load_checkpoint, resolve
from occ_llm.checkpoints.hub import fetch_from_hub, parse_hub_id
from occ_llm.errors import OccError


@pytest.fixture
def directory(tmp_path, make_config, make_weights, write_hf) -> Path:
    config = make_config()
    return write_hf(tmp_path / "model", config, make_weights(config))


@pytest.fixture
def no_hub(monkeypatch) -> list[str]:
    """Any question to the hub fails and is written down."""
    asked: list[str] = []

    def fetch(repo_id: str, revision: str | None = None) -> Path:
        asked.append(f"{repo_id}@{revision}")
        raise OccError(f"{repo_id}: not today; stay at home.")

    monkeypatch.setattr(resolve, "fetch_from_hub", fetch)
    return asked


# -- paths


def test_paths(directory, no_hub, monkeypatch):
    for source in (str(directory), directory, os.path.relpath(directory)):
        assert load_checkpoint(source).name == "model"
    monkeypatch.setenv("HOME", str(directory.parent))
    assert load_checkpoint("~/model").name == "model"
    monkeypatch.chdir(directory)
    assert load_checkpoint(".").name == "model"
    assert no_hub == []


def test_gguf_files_by_content_or_name(tmp_path, make_config, make_weights, write_gguf):
    config = make_config()
    file = write_gguf(tmp_path / "a.gguf", config, make_weights(config))
    shutil.copy(file, tmp_path / "b.bin")
    for source in (file, tmp_path / "b.bin"):
        checkpoint = load_checkpoint(source)
        assert (checkpoint.config, checkpoint.path) == (config, source)


def test_the_same_model_from_both_formats(tmp_path, make_config, make_weights, write_hf, write_gguf):
    config = make_config("qwen3", tie_word_embeddings=False)
    weights = make_weights(config)
    one = load_checkpoint(write_hf(tmp_path / "hf", config, weights))
    other = load_checkpoint(write_gguf(tmp_path / "x.gguf", config, weights))
    assert one.config == other.config
    assert list(one.weights) == list(other.weights)
    for name in one.weights:
        np.testing.assert_array_equal(one.weights[name], other.weights[name])
    text = "The quick brown fox, 1234 Würfel."
    assert one.tokenizer.encode(text).ids == other.tokenizer.encode(text).ids


def test_a_new_format_needs_one_reader(directory):
    def read(path: Path) -> Checkpoint:
        return dataclasses.replace(READERS[-1].read(path), name="compressed")

    mine = Reader(format="compressed directory", matches=lambda path: (path / "mine").exists(), read=read)
    readers = (mine, *READERS)
    assert load_checkpoint(directory, readers=readers).name == "model"
    (directory / "mine").touch()
    assert load_checkpoint(directory, readers=readers).name == "compressed"


def test_a_file_of_no_format(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see here")
    with pytest.raises(OccError, match=r"notes\.txt: not a model; give a .*GGUF file or a Hugging Face directory"):
        load_checkpoint(tmp_path / "notes.txt")


@pytest.mark.parametrize("source", ["nothing", "./a/b", "/no/such/place", "../x", "a/b/c", "models/x.gguf"])
def test_what_cannot_be_a_hub_id_is_a_missing_file(tmp_path, no_hub, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OccError, match=r"no such file or directory; give a path, a hub id .* or one of .*tiny"):
        load_checkpoint(source)
    assert no_hub == []


# -- names


def test_names_win_over_directories(directory, monkeypatch):
    loaded = []
    checkpoint = load_checkpoint(directory)
    fake = dataclasses.replace(NAMED_MODELS["tiny"], load=lambda: loaded.append("tiny") or checkpoint)
    monkeypatch.setattr(resolve, "NAMED_MODELS", {"tiny": fake})
    monkeypatch.chdir(directory.parent)
    directory.rename("tiny")
    load_checkpoint("tiny")
    assert loaded == ["tiny"]
    assert load_checkpoint("./tiny").name == "tiny"
    assert load_checkpoint(Path("tiny")).path == Path("tiny")
    assert loaded == ["tiny"]


# -- the hub


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("HuggingFaceTB/SmolLM2-135M", ("HuggingFaceTB/SmolLM2-135M", None)),
        ("org/na.me_1@refs/pr/1", ("org/na.me_1", "refs/pr/1")),
        ("org/name@abc123", ("org/name", "abc123")),
        ("name", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("org/name@", None),
        ("org/", None),
        ("~/name", None),
    ],
)
def test_hub_ids(source, expected):
    assert parse_hub_id(source) == expected


def test_only_the_files_that_are_read_are_fetched(directory, monkeypatch):
    asked = {}

    def snapshot(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    checkpoint = load_checkpoint("org/some-model@v2")
    assert checkpoint.name == "some-model"
    assert (asked["repo_id"], asked["revision"]) == ("org/some-model", "v2")
    names = ["config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    others = ["pytorch_model.bin", "consolidated.safetensors", "model.onnx", "flax_model.msgpack", "original/x.pth"]

    def fetched(name: str) -> bool:
        return any(Path(name).match(pattern) for pattern in asked["allow_patterns"])

    assert all(map(fetched, names))
    assert not any(map(fetched, others))


def response(status: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_errors.RepositoryNotFoundError("404", response=response(404)), "no such model on the hub; check"),
        (hub_errors.GatedRepoError("403", response=response(403)), "a gated model; accept its terms"),
        (hub_errors.RevisionNotFoundError("404", response=response(404)), "no such revision; leave out"),
        (hub_errors.HfHubHTTPError("500", response=response(500)), "answered with an error .*; try again"),
        (hub_errors.HFValidationError("bad"), "not a valid hub id; check"),
        (hub_errors.LocalEntryNotFoundError("offline"), "cannot be asked .*; go online once"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(OccError, match=f"^org/name: .*{words}"):
        load_checkpoint("org/name")


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    """The hub reads its environment when it is imported: ask in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_offline_the_cache_in_hf_home_is_used(tmp_path, directory):
    cached = tmp_path / "home" / "hub" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    shutil.copytree(directory, cached / "snapshots" / ("a" * 40))
    code = (
        "from occ_llm.checkpoints import load_checkpoint\n"
        "checkpoint = load_checkpoint('org/name')\n"
        "print(checkpoint.name, len(checkpoint.weights), checkpoint.weights['model.norm.weight'].shape)\n"
        "try: load_checkpoint('org/other')\n"
        "except ValueError as error: print(error)\n"
    )
    done = in_new_process(code, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert done.stdout.splitlines()[0] == "name 20 (256,)", done.stderr
    assert "org/other: no such file here, not in the hub's cache" in done.stdout


@pytest.mark.network
def test_a_real_hub_model():
    try:
        directory = fetch_from_hub("hf-internal-testing/tiny-random-LlamaForCausalLM")
    except OccError as error:
        pytest.skip(f"no hub: {error}")
    assert (directory / "config.json").is_file()


def test_every_reader_is_documented():
    assert all(isinstance(reader.matches, Callable) and reader.format for reader in READERS)
