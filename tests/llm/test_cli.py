"""The command line as a user meets it: results on standard output, one sentence for every failure, exit codes."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.cli import demo
from occ_llm.cli.main import BAD_INPUT, INTERRUPTED, run

TEXT = "Coordinates are chosen, not given. " * 400


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def place(toy, tmp_path):
    """A directory with a model, a text, and a compressed model."""
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def arguments(place, *more):
    small = ("--calibration-windows", "2", "--calibration-window", "64", "--text", str(place / "text.txt"))
    return ["compress", str(place / "model"), str(place / "out"), "--step", "0.01", "--states", "1", *small, *more]


def occ(*args: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "occ_llm.cli", *args], capture_output=True, text=True)


def test_the_demo_makes_files_at_all_rates_a_table_and_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "COORDINATES", ("identity",))
    out = tmp_path / "demo"
    assert run(["demo", "--model", "tiny", "--out", str(out), "--window", "128", "--max-windows", "1", "--json"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads(capsys.readouterr().out)
    rows = results["rows"]
    assert [row["linear_bits_per_weight"] for row in rows] == pytest.approx([4.0, 3.5, 3.0], rel=0.005)
    assert sorted(rows, key=lambda row: row["kl_mean"]) == sorted(rows, key=lambda row: -row["file_bytes"]) == rows
    assert (out / "rate_distortion.svg").stat().st_size > 1000
    assert all((out / f"identity-{bits}" / CONTAINER).is_file() for bits in ("4", "3.5", "3"))


@pytest.fixture
def compressed(place, capsys):
    assert run(arguments(place, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, args, *words) -> None:
    """The command says one sentence with these words on standard error and exits with 2."""
    assert run(args) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    sentence = captured.err.strip().splitlines()[-1]
    assert sentence.startswith("occ: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in sentence


def test_compress_evaluate_inspect_decompress_generate(place, compressed, capsys):
    file = place / "out" / CONTAINER
    assert compressed["file_bytes"] == file.stat().st_size == sum(compressed["ledger"].values())
    assert run(["inspect", str(place / "out"), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    for field in ("file_bytes", "linear_bits_per_weight", "file_bits_per_weight", "ledger"):
        assert inspected[field] == compressed[field]

    evaluation = ["--text", str(place / "text.txt"), "--window", "64", "--max-windows", "2", "--json"]
    assert run(["evaluate", str(place / "out"), "--reference", str(place / "model"), *evaluation]) == 0
    quality = json.loads(capsys.readouterr().out)
    fields = "perplexity nll bits_per_byte kl_mean kl_p99 kl_se top1_agreement windows tokens seconds kl_windows"
    assert list(quality) == fields.split()
    assert 0 < quality["kl_mean"] < 0.5

    assert run(["decompress", str(place / "out"), str(place / "dense"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["model.safetensors"] > 0
    assert run(["evaluate", str(place / "dense"), "--reference", str(place / "out"), *evaluation]) == 0
    assert json.loads(capsys.readouterr().out)["kl_mean"] == pytest.approx(0, abs=1e-6)

    assert run(["generate", str(place / "out"), "--prompt", "Coord", "--max-tokens", "5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 5


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_demo_that_was_interrupted_goes_on_by_the_same_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "COORDINATES", ("identity",))
    out = tmp_path / "demo"
    command = ["demo", "--model", "tiny", "--out", str(out), "--window", "64", "--max-windows", "1", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(demo, "measured_row", interrupted)
        assert run(command) == 130
    assert (out / "identity-4" / CONTAINER).is_file()
    capsys.readouterr()
    assert run(command) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3
    fails(capsys, command, "holds a demo already")
    (out / "unfinished").touch()  # as it would be if that one had been begun with --force
    with monkeypatch.context() as patch:
        patch.setattr(demo, "measured_row", interrupted)
        assert run(command) == 130


def test_windows_are_no_longer_than_what_the_model_was_trained_on(tmp_path, capsys):
    statistics = tmp_path / "h.safetensors"
    assert (
        run(["calibrate", "tiny", str(statistics), "--calibration-windows", "2", "--fisher-windows", "1", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["tokens"] == 2 * 512


def test_tables_for_people(place, compressed, capsys):
    assert run(["inspect", str(place / "out" / CONTAINER)]) == 0
    assert "bits per weight" in capsys.readouterr().out
    assert run(["models"]) == 0
    assert "tiny" in capsys.readouterr().out


def test_calibrate_writes_a_file_that_is_used_again_and_refused_elsewhere(place, capsys):
    command = ["calibrate", str(place / "model"), str(place / "h.safetensors"), "--text", str(place / "text.txt")]
    command += ["--calibration-window", "64", "--json"]
    assert run([*command, "--calibration-windows", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["tokens"] == 128
    assert run([*command, "--calibration-windows", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    fails(capsys, [*command, "--calibration-windows", "3"], "h.safetensors", "another text")


def test_other_commands_find_what_calibrate_has_measured(place, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ["--text", str(place / "text.txt"), "--calibration-window", "64", "--calibration-windows", "2", "--json"]
    kept, model = tmp_path / "kept.safetensors", str(place / "model")
    compress = ["compress", model, str(tmp_path / "out"), "--step", "0.1", "--states", "1", "--force", *small]
    for to, of in (([], []), ([str(kept)], ["--statistics", str(kept)])):
        assert run(["calibrate", model, *to, *small]) == 0
        with monkeypatch.context() as patch:
            patch.setattr("occ_llm.calibration.cache.calibrate", lambda *_, **__: pytest.fail("measured again"))
            assert run([*compress, *of]) == 0
    assert len(list((tmp_path / "cache").rglob("calibration/*.safetensors"))) == 1
    capsys.readouterr()
    fails(capsys, [*compress, "--statistics", str(kept), "--calibration-windows", "3"], "kept.safetensors", "text")
    fails(capsys, ["calibrate", model, str(kept), "--statistics", str(kept)], "name one file")


def test_outputs_are_refused_and_forced(place, compressed, capsys):
    before = (place / "out" / CONTAINER).read_bytes()
    fails(capsys, arguments(place), "out", "already exists", "--force")
    assert (place / "out" / CONTAINER).read_bytes() == before
    assert run(arguments(place, "--force", "--json")) == 0
    assert (place / "out" / CONTAINER).read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compress", "{}/nowhere", "{}/o", "--bits", "3"], ["nowhere", "no such file"]),
        (["compress", "{}/model", "{}/o"], ["--bits", "--step"]),
        (["compress", "{}/model", "{}/o", "--bits", "3", "--states", "7"], ["--states 7"]),
        (["compress", "{}/model", "{}/o", "--bits", "3", "--text", "{}/none.txt"], ["none.txt", "no such file"]),
        (["evaluate", "{}/model", "--text", "{}/text.txt", "--window", "99999"], ["text.txt", "less than one window"]),
        (["evaluate", "{}/model", "--text", "{}/empty.txt"], ["empty.txt is empty"]),
        (["inspect", "{}/model"], [CONTAINER, "no such file"]),
        (["decompress", "{}/nowhere", "{}/o"], ["nowhere", "no such file"]),
        (["generate", "{}/model", "--prompt", ""], ["prompt"]),
    ],
)
def test_bad_input_is_one_sentence(place, capsys, args, words):
    (place / "empty.txt").write_text("")
    fails(capsys, [arg.format(place) for arg in args], *words)
    assert not (place / "o").exists()


def test_a_bit_flip_and_a_truncation_are_named(place, compressed):
    file = place / "out" / CONTAINER
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:]):
        file.write_bytes(damaged)
        # In a process of its own: here the type checker would read a tensor, and fail for the reason to be seen.
        done = occ("decompress", str(place / "out"), str(place / "dense"))
        assert done.returncode == BAD_INPUT
        sentence = done.stderr.strip().splitlines()[-1]
        assert sentence.startswith("occ: ")
        assert CONTAINER in sentence
        assert "damaged" in sentence
        assert "Traceback" not in done.stderr
        assert not (place / "dense").exists()


def test_a_full_disk_leaves_nothing(place, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "model.occ.safetensors")

    monkeypatch.setattr("occ_llm.compression.model_files.write_container", full)
    fails(capsys, arguments(place), "disk is full")
    assert sorted(path.name for path in place.iterdir() if path.name != "cache") == ["model", "text.txt"]


def test_an_interrupt_is_130_and_leaves_nothing(place, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("occ_llm.compression.compressor.encode_lattices", interrupted)
    assert run(arguments(place)) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_models_with_different_tokens_are_not_compared(place, toy, toy_config, toy_weights, capsys):
    config = toy_config(vocab_size=300)
    files = toy.tokenizer_files
    write_hf_directory(place / "other", config=config, weights=toy_weights(config), tokenizer_files=files)
    text = ["--text", str(place / "text.txt"), "--window", "64"]
    fails(capsys, ["evaluate", str(place / "model"), "--reference", str(place / "other"), *text], "different tokens")


def test_the_command_is_installed_and_speaks():
    done = occ("models", "--json")
    assert done.returncode == 0, done.stderr
    assert "tiny" in json.loads(done.stdout)["models"]
    done = occ("frobnicate")
    assert done.returncode == BAD_INPUT
    assert "Traceback" not in done.stderr


def test_decompressed_weights_are_those_of_the_compressed_model(place, compressed):
    assert run(["decompress", str(place / "out"), str(place / "dense")]) == 0
    one, other = load_checkpoint(place / "out"), load_checkpoint(place / "dense")
    for name in other.weights:
        np.testing.assert_array_equal(one.weights[name], other.weights[name])
