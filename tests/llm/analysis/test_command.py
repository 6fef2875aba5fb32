"""``occ analyze``: what it writes, and one sentence for what it cannot do."""

import json

import jax
import numpy as np
import pytest
from occ_llm.calibration.fingerprint import model_digest
from occ_llm.checkpoints import write_hf_directory
from occ_llm.cli.main import BAD_INPUT, run
from occ_llm.coordinates import Coordinates
from occ_llm.folding import fold_norms
from occ_llm.stored_coordinates import save_coordinates

from occ_jax.learned import save_transforms
from occ_jax.transforms import Identity, random_rotation

SMALL = ("--calibration-windows", "2", "--calibration-window", "64", "--windows", "1", "--window", "64")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def model(toy, tmp_path) -> str:
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (tmp_path / "text.txt").write_text("Coordinates are chosen, not given. " * 400)
    return str(tmp_path / "model")


def arguments(model, tmp_path, *more):
    return ["analyze", model, str(tmp_path / "out"), "--text", str(tmp_path / "text.txt"), *SMALL, *more]


def test_page_and_numbers_with_learned_coordinates(model, tmp_path, capsys):
    file = tmp_path / "learned.safetensors"
    save_transforms(file, {"residual": (random_rotation(48, key=jax.random.key(1)), 48)})
    assert run(arguments(model, tmp_path, "--json", "--layers", "1", "--transforms", str(file))) == 0
    shown = json.loads(capsys.readouterr().out)
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [f["claim"] for f in shown["findings"]] == [f["claim"] for f in numbers["findings"]]
    assert numbers["facts"]["layers"] == [1]
    assert numbers["systems"][-1] == "learned"
    learned = {r["kind"]: r for r in numbers["regimes"] if r["coordinates"] == "learned"}
    assert set(learned) == {"q", "k", "v", "gate", "up"}, "what reads the residual stream"
    rotated = [r for r in numbers["regimes"] if r["coordinates"] == "random" and r["kind"] == "up"]
    assert np.isclose(learned["up"]["kurtosis"], rotated[0]["kurtosis"], rtol=0.3)
    assert "learned" not in {price["coordinates"] for price in numbers["prices"]}, "it does not cover every matrix"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "learned.safetensors" in page


def test_coordinates_of_a_training_are_those_of_what_matrices_read(model, tmp_path, toy, capsys):
    one, other = (random_rotation(n, key=jax.random.key(n)) for n in (48, toy.config.head_dim))
    found, file = Coordinates(one, other, Identity()), tmp_path / "t.safetensors"
    digest = model_digest(toy.config, fold_norms(toy.config, toy.weights))
    save_coordinates(file, toy.config, found, model="toy", model_digest=digest, about={})
    assert run(arguments(model, tmp_path, "--json", "--layers", "1", "--transforms", str(file))) == 0
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    learned = {r["kind"] for r in numbers["regimes"] if r["coordinates"] == "learned"}
    assert learned == {"q", "k", "v", "o", "gate", "up"}, "nothing moves what down reads"
    save_coordinates(tmp_path / "u.safetensors", toy.config, found, model="toy", model_digest="0", about={})
    capsys.readouterr()
    again = ("--force", "--layers", "1", "--transforms", str(tmp_path / "u.safetensors"))
    assert run(arguments(model, tmp_path, *again)) == BAD_INPUT
    assert "learned for another model" in capsys.readouterr().err


def test_bad_input_is_one_sentence(model, tmp_path, capsys):
    def fails(*more, words):
        assert run(arguments(model, tmp_path, *more)) == BAD_INPUT
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.strip().splitlines()[-1].startswith("occ: ")
        assert words in captured.err

    fails("--layers", "7", words="there is no layer 7: the model has layers 0 to 1")
    fails("--windows", "0", words="--windows 0 measures nothing")
    fails("--window", "1", words="--window 1 predicts nothing")
    fails("--transforms", str(tmp_path / "none"), words="none")
    wrong = tmp_path / "wrong.safetensors"
    save_transforms(wrong, {"residual": (random_rotation(8, key=jax.random.key(1)), 8)})
    fails("--transforms", str(wrong), words="does not fit its 48 inputs")
    save_transforms(wrong, {"elsewhere": (random_rotation(8, key=jax.random.key(1)), 8)})
    fails("--transforms", str(wrong), words="belongs to no matrix of this model")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    fails(words="already exists; choose another output, or pass --force")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("")
    fails("--force", words="is a file")
