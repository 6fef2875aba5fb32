"""``occ learn`` and what reads its file: compress, inspect, and a refusal for every other model."""

import json

import numpy as np
import pytest
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.cli.main import BAD_INPUT, run
from occ_llm.config import ModelConfig
from occ_llm.model import LanguageModel
from occ_llm.roles import is_linear
from occ_llm.stored_coordinates import describe, load_coordinates

from occ_jax.codec import tensor_ledger

PLACEMENTS = ("residual", "values", "mlp-inputs", "hidden")
SMALL = ("--calibration-windows", "2", "--calibration-window", "64")


@pytest.fixture(scope="module")
def place(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learn")
    write_hf_directory(folder / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (folder / "text.txt").write_text("Coordinates are chosen, not given. " * 400)
    return folder


@pytest.fixture(autouse=True)
def own_cache(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


def arguments(command, place, out, *more):
    text = ("--text", str(place / "text.txt"))
    return [command, str(place / "model"), str(place / out), *SMALL, *text, "--json", *more]


@pytest.fixture(scope="module")
def learned(place):
    """The file of one short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        more = (
            "--steps",
            "4",
            "--window",
            "32",
            "--learning-rate",
            "0.02",
            "--placements",
            *PLACEMENTS,
            "--structure",
            "kronecker",
        )
        assert run(arguments("learn", place, "t.safetensors", *more)) == 0
    return place / "t.safetensors"


def test_the_file_says_what_it_is(learned, capsys):
    about = describe(learned)
    assert about["settings"]["placements"] == list(PLACEMENTS)
    assert set(about["measured"]) == {"original", "start", "learned", "coded"}
    assert len(about["log"]["learned"]["bits"]) == 4
    assert learned.with_suffix(".svg").read_text().startswith("<?xml")
    assert run(["inspect", str(learned), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == about["parameters"]
    assert "log" not in shown
    assert run(["inspect", str(learned)]) == 0
    assert "scales" in capsys.readouterr().out


def test_a_model_is_compressed_in_learned_coordinates(learned, place, capsys):
    more = ("--step", "0.0005", "--states", "1", "--coordinates", "learned", "--transforms", str(learned))
    assert run(arguments("compress", place, "out", *more)) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["file_bytes"] == sum(sizes["ledger"].values())
    paid = describe(learned)["measured"]["coded"]["transform_bits"]
    (file,) = (place / "out").glob("*.safetensors")
    stored = [part.get("transforms", 0) for name, part in tensor_ledger(file).items() if is_linear(name)]
    weights = load_checkpoint(place / "model").weights
    assert 8 * sum(stored) / sum(w.size for w in weights.values() if w.ndim == 2) == pytest.approx(paid)
    assert sum(map(bool, stored)) == 3 * 2, "gate, up and down of both blocks"
    opened, original = load_checkpoint(place / "out"), load_checkpoint(place / "model")
    tokens = np.asarray(original.tokenizer.encode((place / "text.txt").read_text()).ids[:32], np.int32)[None]
    result, expected = (LanguageModel.from_weights(c.config, c.weights)(tokens) for c in (opened, original))
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert error < 0.1
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["quantization_config"]["coordinates"] == "learned"


def test_stored_coordinates_are_those_that_were_written(learned):
    about = describe(learned)
    config = ModelConfig.from_hf(json.loads((learned.parent / "model" / "config.json").read_text()))
    found = load_coordinates(learned, config, model_digest=about["model_digest"])
    assert len(found.blocks) == config.num_layers
    matrix = np.asarray(found.residual.matrix)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(config.hidden_size), atol=1e-5)
    block = found.blocks[0]
    for rotation in (*block.mlp_inputs.transforms, *block.hidden.transforms, block.values.transform):
        matrix = np.asarray(rotation.matrix)
        assert np.abs(matrix - np.eye(matrix.shape[-1])).max() > 1e-3


def refused(capsys, arguments, *words):
    assert run(arguments) == BAD_INPUT
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("occ: ")
    for word in words:
        assert word in sentence


def test_files_for_other_models_and_other_files_are_refused(learned, place, toy, toy_weights, capsys):
    other = {name: 1.01 * w for name, w in toy.weights.items()}
    write_hf_directory(place / "other", config=toy.config, weights=other, tokenizer_files=toy.tokenizer_files)
    more = ("--step", "0.2", "--coordinates", "learned", "--transforms")
    wrong = arguments("compress", place, "o", *more, str(learned))
    wrong[1] = str(place / "other")
    refused(capsys, wrong, "t.safetensors", "another model", "occ learn")
    dense = str(place / "model" / "model.safetensors")
    refused(capsys, arguments("compress", place, "o", *more, dense), "model.safetensors")
    refused(capsys, arguments("compress", place, "o", *more, str(place / "none.safetensors")), "none.safetensors")
    refused(capsys, arguments("compress", place, "o", "--step", "0.2", "--coordinates", "learned"), "--transforms")
    refused(capsys, arguments("compress", place, "o", "--step", "0.2", "--transforms", dense), "--coordinates learned")
    assert not (place / "o").exists()


def test_a_training_goes_on_from_another(learned, place, capsys):
    more = ("--window", "32", "--placements", *PLACEMENTS, "--init", "learned")
    begun = ("--steps", "1", "--learning-rate", "1e-9", "--transforms", str(learned))
    assert run(arguments("learn", place, "further.safetensors", *more, *begun)) == 0
    about, before = describe(place / "further.safetensors"), describe(learned)["measured"]
    assert about["transforms"] == "t.safetensors"
    bits = {name: point["bits"] for name, point in about["measured"].items()}
    gained = before["original"]["bits"] - before["learned"]["bits"]
    assert bits["original"] - bits["start"] == pytest.approx(gained, abs=1e-3)
    assert bits["learned"] == pytest.approx(bits["start"], abs=1e-3)
    capsys.readouterr()
    refused(capsys, arguments("learn", place, "u.safetensors", *more), "--init learned", "--transforms")
    lost = arguments(
        "learn", place, "u.safetensors", "--force", "--init", "learned", *begun, "--placements", "residual"
    )
    refused(capsys, lost, "add values to --placements")
    onto = arguments("learn", place, "t.safetensors", "--force", *more, *begun)
    refused(capsys, onto, "t.safetensors")


def test_outputs_and_settings_are_checked_before_the_work(learned, place, capsys):
    refused(capsys, arguments("learn", place, "t.safetensors"), "t.safetensors", "already exists")
    refused(capsys, arguments("learn", place, "t.npz"), "t.npz", ".safetensors")
    refused(
        capsys, arguments("learn", place, "u.safetensors", "--placements", "unit-scales"), "--placements unit-scales"
    )
    refused(capsys, arguments("learn", place, "u.safetensors", "--objective", "kl", "--control"), "--control")
    refused(capsys, arguments("learn", place, "u.safetensors", "--finish-windows", "0"), "--finish-windows 0")
    refused(capsys, arguments("learn", place, "u.safetensors", "--text", "wikitext2"), "wikitext2: no such file")
    begun = ("--init", "learned", "--transforms", str(place / "nowhere.safetensors"))
    refused(capsys, arguments("learn", place, "u.safetensors", *begun), "nowhere.safetensors")
