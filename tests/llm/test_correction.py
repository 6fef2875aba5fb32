"""Corrected sensitivity: a group that is under-rated is found, moved back, and the network is better for it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from occ_llm.bench import Method, make_grid
from occ_llm.calibration import calibrate, calibration_windows
from occ_llm.calibration.statistics import fisher_name
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.cli.main import run
from occ_llm.compression import CalibrationTokens, Settings, compress, correction
from occ_llm.compression.correction import LARGEST, Slope, step_levels
from occ_llm.compression.plan import STEP_RESOLUTION, plan_matrix
from occ_llm.errors import OccError
from occ_llm.evaluation import Reference, cut_windows, evaluate
from occ_llm.model import LanguageModel
from occ_llm.roles import linear_name
from occ_llm.text import python_text
from occ_llm.weights import DerivedWeights

from occ_jax.codec import open_container

pytestmark = pytest.mark.usefixtures("own_cache")


def slopes(falls, errors=None, weights=None) -> list[Slope]:
    count = len(falls)
    return [
        Slope(group=str(i), num_weights=n, predicted=1.0, fall=fall, fall_se=error)
        for i, (fall, error, n) in enumerate(zip(falls, errors or [0.0] * count, weights or [1] * count, strict=True))
    ]


def test_what_costs_more_gets_smaller_steps():
    assert step_levels(slopes([1.3] * 5)) == [0] * 5, "one factor for all changes nothing"
    levels = step_levels(slopes([1.0, 1.0, 2.0, 1.0, 0.25]))
    octave = STEP_RESOLUTION
    assert levels[2] - levels[0] == -octave // 2
    assert levels[4] - levels[0] == octave
    extreme = step_levels(slopes([1.0, 100.0, 1.0, -3.0, 1.0]))
    assert extreme[1] - extreme[0] == -octave * np.log2(LARGEST) / 2 == extreme[0] - extreme[3]
    heavy = step_levels(slopes([1.0, 4.0, 1.0], weights=[1, 98, 1]))
    assert heavy[1] == 0, "the rate stays: the others' steps grow"
    assert heavy[0] == heavy[2] == octave


def test_noise_moves_nothing_and_what_goes_beyond_it_moves_by_that():
    assert step_levels(slopes([1.0, 1.0, 3.0], errors=[0.1, 0.1, 1.1])) == [0, 0, 0]
    certain, doubted = (step_levels(slopes([1.0, 1.0, 4.0], errors=[0.0, 0.0, error])) for error in (0.0, 1.0))
    assert certain[2] < doubted[2] < 0
    assert step_levels(slopes([-0.1, 0.2, -0.3])) == [0, 0, 0], "no fall is seen at all"
    nothing = dataclasses.replace(slopes([0.0])[0], predicted=0.0)
    assert step_levels([nothing, *slopes([1.0, 1.0])]) == [0, 0, 0]
    assert step_levels([nothing]) == [0]


def test_a_moved_plan_is_that_of_another_sensitivity():
    rng = np.random.default_rng(0)
    w, cols, rows = rng.standard_normal((32, 48)).astype(np.float32), np.ones(48), np.exp(rng.standard_normal(32))
    moved, other = (
        plan_matrix("w", w, cols, rows).with_steps_moved(STEP_RESOLUTION),
        plan_matrix("w", w, cols, rows / 4),
    )
    for field in ("step_rows", "step_cols", "class_rows", "class_cols"):
        np.testing.assert_array_equal(getattr(moved, field), getattr(other, field))


def test_an_under_rated_group_of_a_real_model_is_found_and_moved_back(tmp_path):
    """The Fisher information of one group is made 16 times too small: too few bits, which the divergence shows."""
    model, group = load_checkpoint("tiny"), "middle up"
    windows = calibration_windows(model.tokenizer, window=256, max_windows=12)
    tokens = CalibrationTokens(calibration=windows, finishing=windows)
    statistics = calibrate(model.config, model.weights, windows, key=jax.random.key(0))
    names = [fisher_name(linear_name(layer, "up")) for layer in (2, 3)]
    rules = {name: lambda source, name=name: source[name] / np.float32(16) for name in names}
    damaged = dataclasses.replace(statistics, tensors=DerivedWeights(statistics.tensors, rules))
    settings = Settings(bits=3.0, states=1, finish="never")
    made = {
        corrects: compress(
            model,
            tmp_path / str(corrects),
            damaged,
            dataclasses.replace(settings, correct_sensitivity=corrects),
            tokens=tokens,
        )
        for corrects in (False, True)
    }
    assert made[False].slopes == ()
    levels = {slope.group: slope.levels for slope in made[True].slopes}
    ratios = {slope.group: slope.ratio for slope in made[True].slopes}
    assert min(levels, key=levels.__getitem__) == group
    assert levels[group] <= -STEP_RESOLUTION // 2
    assert ratios[group] > 6 * np.median(list(ratios.values()))
    for compressed in made.values():
        assert compressed.sizes.linear_bits_per_weight == pytest.approx(3.0, rel=0.005)
    reference = Reference(LanguageModel.from_weights(model.config, model.weights))
    unseen = cut_windows(python_text("heldout"), model.tokenizer, window=256, max_windows=6)
    kl = {}
    for corrects in made:
        opened = load_checkpoint(tmp_path / str(corrects))
        kl[corrects] = evaluate(LanguageModel.from_weights(opened.config, opened.weights), unseen, reference=reference)
    assert kl[True].kl_mean < 0.9 * kl[False].kl_mean


def test_an_interrupted_correction_goes_on_and_ends_in_the_same_bytes(toy, toy_statistics, text, tmp_path, monkeypatch):
    settings, measured = Settings(step=0.06, states=1, coordinates="hadamard", correct_sensitivity=True), []
    original = correction.evaluate

    def counted(*args, **kwargs):
        measured.append(1)
        return original(*args, **kwargs)

    def interrupt(names, label):
        for number, name in enumerate(names):
            if label == "slopes" and number == 3:
                raise KeyboardInterrupt
            yield name

    monkeypatch.setattr(correction, "evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text, track=interrupt)
    resumed = compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text)
    groups = 2 * 7
    assert [slope.group for slope in resumed.slopes][:3] == ["first q", "first k", "first v"], "and no embedding"
    assert len(measured) == 1 + groups == 1 + len(resumed.slopes), "nothing is measured twice"
    whole = compress(toy, tmp_path / "b", toy_statistics, settings, tokens=text)
    assert whole.slopes == resumed.slopes
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()
    assert "corrected by measured slopes" in (tmp_path / "a" / "README.md").read_text()
    with open_container(tmp_path / "a" / CONTAINER) as container:
        assert container.model["correct_sensitivity"] is True
    assert not list((tmp_path / "cache").rglob("*.json")), "nothing is left behind"


def test_what_the_model_predicts_is_right_where_errors_are_small(toy, toy_statistics, text, tmp_path):
    """On the text of the statistics and at a fine step, all groups together cost what the second order says.

    Of errors that have not been fitted to the Fisher matrices of so short a text: those look cheaper than they are.
    """
    settings = Settings(step=0.004, states=1, correct_sensitivity=True)
    found = compress(toy, tmp_path / "out", toy_statistics, settings, tokens=text).slopes
    assert sum(slope.fall for slope in found) == pytest.approx(sum(slope.predicted for slope in found), rel=0.35)


def test_slopes_need_text(toy, toy_statistics, toy_tokens, tmp_path):
    settings = Settings(step=0.1, states=1, correct_sensitivity=True)
    with pytest.raises(OccError, match="divergences on text"):
        compress(toy, tmp_path / "out", toy_statistics, settings)
    one = CalibrationTokens(calibration=toy_tokens, finishing=toy_tokens[:1])
    with pytest.raises(OccError, match="there is but 1"):
        compress(toy, tmp_path / "out", toy_statistics, settings, tokens=one)


def test_the_command_shows_the_slopes(toy, tmp_path, capsys):
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (tmp_path / "text.txt").write_text("Coordinates are chosen, not given. " * 60)
    small = ("--calibration-windows", "2", "--calibration-window", "64", "--text", str(tmp_path / "text.txt"))
    paths = (str(tmp_path / "model"), str(tmp_path / "out"))
    assert (
        run(
            [
                "compress",
                *paths,
                "--step",
                "0.06",
                "--states",
                "1",
                "--correct-sensitivity",
                "--finish",
                "never",
                *small,
                "--json",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    found = json.loads(captured.out)["slopes"]
    assert len(found) == 14
    assert set(found[0]) == {field.name for field in dataclasses.fields(Slope)}
    assert "middle down" in captured.err


def test_a_bench_makes_it_when_asked():
    method = Method(coordinates="identity", quantizer="trellis-8-corrected-finished")
    assert method.extras == ("corrected", "finished")
    grid = make_grid(coordinates=["identity"], rates=[2.0])
    assert not any({"corrected", "sequential"} & {*entry.method.extras} for entry in grid)
