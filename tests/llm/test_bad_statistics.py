"""Statistics that say too little, or nothing that a number can stand for: one sentence, or a file that works."""

import dataclasses

import jax
import numpy as np
import pytest
from occ_llm.calibration import calibrate
from occ_llm.calibration.statistics import HEAD_HESSIAN, fisher_name, hessian_name, weighted_name
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.cli.main import run
from occ_llm.compression import Settings, compress
from occ_llm.errors import OccError
from occ_llm.model import LanguageModel
from occ_llm.roles import EMBEDDING, HEAD, linear_name

pytestmark = pytest.mark.usefixtures("own_cache")

DOWN, UP = linear_name(1, "down"), linear_name(1, "up")


@pytest.mark.parametrize(
    ("tensor", "named", "output_feedback"),
    [
        (hessian_name(1, "down_in"), DOWN, "never"),
        (hessian_name(1, "mlp_in"), linear_name(1, "gate"), "never"),
        (weighted_name(1, "mlp_in"), linear_name(1, "gate"), "never"),
        (fisher_name(DOWN), DOWN, "never"),
        (fisher_name(DOWN), DOWN, "always"),
        (fisher_name(EMBEDDING), EMBEDDING, "never"),
        (HEAD_HESSIAN, EMBEDDING, "never"),
        (fisher_name(HEAD), HEAD, "never"),
    ],
)
def test_what_is_not_finite_is_named(tensor, named, output_feedback, toy, toy_statistics, tmp_path):
    spoiled = np.array(toy_statistics.tensors[tensor])
    spoiled.flat[0] = np.nan
    statistics = dataclasses.replace(toy_statistics, tensors={**toy_statistics.tensors, tensor: spoiled})
    settings = Settings(step=0.01, states=1, output_feedback=output_feedback)
    with pytest.raises(OccError, match=rf"^toy: .*{named}.*again"):
        compress(toy, tmp_path / "out", statistics, settings)
    assert not (tmp_path / "out").exists()


def test_a_channel_that_never_carries_a_signal_harms_no_other(toy, toy_tokens, tmp_path):
    silent = toy.weights[UP].copy()
    silent[5] = 0
    errors = {}
    for name, up in (("intact", toy.weights[UP]), ("silent", silent)):
        model = dataclasses.replace(toy, weights={**toy.weights, UP: up})
        statistics = calibrate(model.config, model.weights, toy_tokens, key=jax.random.key(0))
        assert statistics.hessian(DOWN)[5].any() == (name == "intact")
        compress(model, tmp_path / name, statistics, Settings(step=0.002, states=1))
        read, tokens = load_checkpoint(tmp_path / name), toy_tokens[:1]
        assert all(np.isfinite(w).all() for w in read.weights.values())
        logits, expected = (LanguageModel.from_weights(toy.config, c.weights)(tokens) for c in (read, model))
        errors[name] = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert errors["silent"] < 1.1 * errors["intact"] < 0.2


def test_too_little_text_is_pointed_out(toy, tmp_path, capsys):
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (tmp_path / "text.txt").write_text("Coordinates are chosen, not given. " * 100)
    little = ["--text", str(tmp_path / "text.txt"), "--calibration-windows", "1", "--step", "0.01", "--states", "1"]
    for window, said in ((70, True), (90, False)):
        out = str(tmp_path / str(window))
        assert run(["compress", str(tmp_path / "model"), out, "--calibration-window", str(window), *little]) == 0
        message = " ".join(capsys.readouterr().err.split())
        assert ("tokens of text are fewer than the inputs of 2 kinds of layers" in message) == said


def test_the_card_names_the_text_that_every_python_carries(toy, tmp_path, capsys):
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    few = ["--calibration-windows", "2", "--calibration-window", "64", "--step", "0.01", "--states", "1"]
    assert run(["compress", str(tmp_path / "model"), str(tmp_path / "out"), *few]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the Python documentation, up to 2 windows of 64 tokens" in card
