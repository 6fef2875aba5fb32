"""Compression end to end on a small model: targets are met, files are what they say, interruptions cost nothing."""

import dataclasses
import json
import os
import re

import jax
import numpy as np
import pytest
from occ_llm.checkpoints import load_checkpoint
from occ_llm.checkpoints.compressed import BASIS, CONTAINER
from occ_llm.compression import CalibrationTokens, Settings, compress, measure_sizes
from occ_llm.compression.allocation import probe_rows
from occ_llm.compression.compressor import Compressor
from occ_llm.compression.maker import Maker
from occ_llm.compression.plan import MatrixPlan, expected_bits, plan_matrix, solve_step
from occ_llm.compression.sensitivity import sensitivity_of
from occ_llm.compression.staging import Staging
from occ_llm.errors import OccError
from occ_llm.evaluation import Reference, Windows, evaluate
from occ_llm.model import LanguageModel
from occ_llm.parallel import untracked
from occ_llm.roles import EMBEDDING, HEAD, is_linear

from occ_jax.codec import decode_indices, open_container
from occ_jax.quantization.scales import NUM_CLASSES

pytestmark = pytest.mark.usefixtures("own_cache")


def logit_error(toy, path, tokens) -> float:
    opened = load_checkpoint(path)
    result = LanguageModel.from_weights(opened.config, opened.weights)(tokens)
    expected = LanguageModel.from_weights(toy.config, toy.weights)(tokens)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def divergence(toy, path, tokens) -> float:
    opened = load_checkpoint(path)
    model = LanguageModel.from_weights(opened.config, opened.weights)
    reference = Reference(LanguageModel.from_weights(toy.config, toy.weights))
    kl = evaluate(model, Windows(tokens=tokens, num_bytes=1), reference=reference).kl_mean
    assert kl is not None
    return kl


@pytest.mark.parametrize("coordinates", ["identity", "hadamard", "klt"])
def test_a_finer_step_is_a_better_model(coordinates, toy, toy_statistics, toy_tokens, tmp_path):
    errors, sizes = [], []
    for step in (0.002, 0.02):
        settings = Settings(step=step, coordinates=coordinates, states=1)
        result = compress(toy, tmp_path / f"{step}", toy_statistics, settings)
        errors.append(logit_error(toy, tmp_path / f"{step}", toy_tokens))
        sizes.append(result.sizes.file_bytes)
    assert errors[0] < 0.25 < errors[1] < 1.5
    assert sizes[0] > sizes[1]


def test_bits_are_met_and_every_byte_is_accounted_for(toy, toy_statistics, tmp_path):
    result = compress(toy, tmp_path / "out", toy_statistics, Settings(bits=6.0, states=1))
    sizes, file = result.sizes, tmp_path / "out" / CONTAINER
    assert sizes.linear_bits_per_weight == pytest.approx(6.0, rel=0.005)
    assert sizes.file_bytes == os.stat(file).st_size == sum(sizes.ledger.values())
    assert measure_sizes(file) == sizes
    weights = sum(w.size for name, w in toy.weights.items() if not name.endswith("layernorm.weight"))
    assert sizes.file_bits_per_weight == pytest.approx(8 * sizes.file_bytes / weights)


def test_a_rate_starts_from_its_neighbour_and_still_meets_its_target(toy, toy_statistics, tmp_path):
    seen: list[str] = []

    def track(names, label):
        seen.append(label)
        return names

    made = compress(toy, tmp_path / "6", toy_statistics, Settings(bits=6.0, states=1), track=track)
    assert seen.count("pilot") == 1
    seen.clear()
    settings = Settings(bits=5.0, states=1)
    other = compress(toy, tmp_path / "5", toy_statistics, settings, near=made.allocation, track=track)
    assert other.sizes.linear_bits_per_weight == pytest.approx(5.0, rel=0.005)
    assert seen[:4] == ["plan", "probe", "pilot", "quantize and code"]


def test_an_embedding_can_be_held_apart_from_the_dial(toy, toy_statistics, tmp_path):
    settings = Settings(bits=5.0, states=1, embedding_bits=8)
    made = compress(toy, tmp_path / "apart", toy_statistics, settings)
    assert made.sizes.linear_bits_per_weight == pytest.approx(5.0, rel=0.005)
    with open_container(tmp_path / "apart" / CONTAINER) as container:
        assert container[EMBEDDING].num_bytes >= toy.weights[EMBEDDING].size
    opened = load_checkpoint(tmp_path / "apart").weights[EMBEDDING]
    assert np.abs(opened - toy.weights[EMBEDDING]).max() < np.abs(toy.weights[EMBEDDING]).max() / 100
    with pytest.raises(OccError, match="embedding-bits"):
        Settings(bytes=10_000, embedding_bits=8)
    with pytest.raises(OccError, match="embedding-bits 9"):
        Settings(bits=3.0, embedding_bits=9)


@pytest.mark.parametrize("coordinates", ["identity", "hadamard"])
def test_the_mean_row_of_an_embedding_costs_two_bytes_for_each_column(coordinates, toy, toy_statistics, tmp_path):
    """What all rows have in common is no matter of bits: it may be as large as it likes."""
    shift = np.random.default_rng(0).normal(0, 4, toy.config.hidden_size).astype(np.float32)
    assert np.abs(shift).mean() > 5 * toy.weights[EMBEDDING].std()
    sizes, errors = [], []
    for name, weights in (
        ("plain", toy.weights),
        ("moved", {**toy.weights, EMBEDDING: toy.weights[EMBEDDING] + shift}),
    ):
        model = dataclasses.replace(toy, weights=weights)
        settings = Settings(step=0.05, coordinates=coordinates, states=1)
        compress(model, tmp_path / name, toy_statistics, settings)
        with open_container(tmp_path / name / CONTAINER) as container:
            coded = container[EMBEDDING]
        assert len(coded.sections["offset"]) == 2 * toy.config.hidden_size
        sizes.append(coded.num_bytes)
        # Lengths, and angles between rows, are those of the original in every basis.
        opened, original = (m @ m.T for m in (load_checkpoint(tmp_path / name).weights[EMBEDDING], weights[EMBEDDING]))
        errors.append(np.linalg.norm(opened - original) / np.linalg.norm(original))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    assert errors[1] < 0.01 < errors[0]


def test_two_runs_are_identical_and_another_device_count_decodes_the_same(toy, toy_statistics, tmp_path):
    settings = Settings(step=0.01, states=4, coordinates="random")
    for name in ("a", "b"):
        compress(toy, tmp_path / name, toy_statistics, settings)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()
    with open_container(tmp_path / "a" / CONTAINER) as container:
        coded = [container[name] for name in container if is_linear(name)]
        everywhere = decode_indices(coded)
        with jax.default_device(jax.devices()[1]):
            alone = [decode_indices([tensor])[0] for tensor in coded]
    for one, other in zip(everywhere, alone, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("output_feedback", ["never", "always"])
def test_one_device_and_four_make_the_same_file(output_feedback, toy, toy_statistics, tmp_path, monkeypatch):
    settings = Settings(step=0.05, states=4, output_feedback=output_feedback)
    devices = jax.devices()
    assert len(devices) == 4
    files = set()
    for count in (1, 4):
        monkeypatch.setattr(jax, "devices", lambda count=count: devices[:count])
        compress(toy, tmp_path / str(count), toy_statistics, settings)
        files.add((tmp_path / str(count) / CONTAINER).read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("coordinates", ["identity", "hadamard"])
def test_an_interrupted_compression_goes_on_and_ends_in_the_same_bytes(toy, toy_statistics, tmp_path, coordinates):
    settings, done = Settings(step=0.01, states=1, coordinates=coordinates), []

    def interrupt(names, label):
        for number, name in enumerate(names):
            if label == "quantize and code" and number == 1:
                raise KeyboardInterrupt
            done.append((label, name))
            yield name

    with pytest.raises(KeyboardInterrupt):
        compress(toy, tmp_path / "a", toy_statistics, settings, track=interrupt)
    assert not (tmp_path / "a").exists()
    probed = []
    compress(toy, tmp_path / "a", toy_statistics, settings, track=lambda names, label: probed.append(label) or names)
    assert "probe" not in probed, "the allocation was kept"
    assert not list((tmp_path / "cache").rglob("*.occ.safetensors")), "nothing is left behind"
    compress(toy, tmp_path / "b", toy_statistics, settings)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()


def test_a_file_that_is_read_is_not_replaced(toy, toy_statistics, tmp_path):
    compress(toy, tmp_path / "out", toy_statistics, Settings(step=0.1, states=1))
    transforms = tmp_path / "out" / "t.safetensors"
    transforms.write_bytes(b"hours of work")
    settings = Settings(step=0.1, states=1, coordinates="learned", transforms=transforms)
    with pytest.raises(OccError, match="would replace the input"):
        compress(toy, tmp_path / "out", toy_statistics, settings, force=True)
    assert transforms.read_bytes() == b"hours of work"


def test_two_equal_compressions_at_once_do_not_touch_each_other(toy, toy_statistics, tmp_path):
    settings = Settings(step=0.01, states=1)

    def meanwhile(names, label):
        for number, name in enumerate(names):
            if label == "quantize and code" and number == 1:
                compress(toy, tmp_path / "b", toy_statistics, settings)
            yield name

    compress(toy, tmp_path / "a", toy_statistics, settings, track=meanwhile)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()


def test_a_file_whose_finished_size_is_known_is_not_made_again(toy, tmp_path, monkeypatch):
    """After an interrupt at the next file of a search, whose tensors would have to go."""
    made = []
    monkeypatch.setattr(Maker, "_finished", lambda maker, step: made.append(step) or {})
    monkeypatch.setattr(Maker, "coded", lambda maker, step: {})
    monkeypatch.setattr(Maker, "_size", lambda maker, step, coded: 3.1 if made else 3.0)
    settings = Settings(bits=3.0, states=1, finish="always")
    for _ in range(2):
        maker = Maker(toy, object.__new__(Compressor), settings, Staging(tmp_path / "staging"), None, untracked)
        assert maker.measure(0.5) == 3.0
        assert not maker.settles(0.5)
        assert maker.measure(0.5) == pytest.approx(3.1)
    assert made == [0.5]


def test_the_directory_says_what_it_is(toy, toy_statistics, tmp_path):
    compress(toy, tmp_path / "out", toy_statistics, Settings(step=0.1, states=1), text="some text")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["quantization_config"]["quant_method"] == "occ"
    assert fields["quantization_config"]["format_version"] == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "toy" in card
    assert "some text" in card
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == toy.tokenizer_files["tokenizer.json"]


def test_a_basis_is_stored_only_where_a_tied_head_needs_it(toy, toy_statistics, tmp_path):
    for name, stored in (("identity", False), ("hadamard", True)):
        compress(toy, tmp_path / name, toy_statistics, Settings(step=0.2, coordinates=name, states=1))
        with open_container(tmp_path / name / CONTAINER) as container:
            assert (BASIS in container) == stored


def test_outputs_are_not_replaced_without_force(toy, toy_statistics, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OccError, match="already exists"):
        compress(toy, tmp_path / "out", toy_statistics, Settings(step=0.1, states=1))


def test_weights_that_are_not_numbers_are_refused_by_name(toy, toy_statistics, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    broken = dict(toy.weights) | {name: np.full_like(toy.weights[name], np.nan)}
    with pytest.raises(OccError, match=name):
        compress(
            dataclasses.replace(toy, weights=broken), tmp_path / "out", toy_statistics, Settings(step=0.1, states=1)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of --bits, --bytes, --kl and --step"),
        ({"bits": 3.0, "step": 0.1}, "one of --bits, --bytes, --kl and --step"),
        ({"bytes": 0}, "--bytes 0"),
        ({"kl": -0.1}, "--kl -0.1"),
        ({"bits": 3.0, "finish_steps": 0}, "--finish-steps 0"),
        ({"bits": 0.0}, "--bits 0.0"),
        ({"bits": float("nan")}, "--bits nan"),
        ({"step": -1.0}, "--step -1.0"),
        ({"step": float("inf")}, "--step inf"),
        ({"bits": 3.0, "states": 5}, "--states 5"),
        ({"bits": 3.0, "damping": 0.0}, "--damping 0.0"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(OccError, match=message):
        Settings(**fields)


def test_bytes_are_met(toy, toy_statistics, tmp_path):
    goal = compress(toy, tmp_path / "a", toy_statistics, Settings(step=0.01, states=1)).sizes.file_bytes * 9 // 10
    result = compress(toy, tmp_path / "b", toy_statistics, Settings(bytes=goal, states=1))
    assert (tmp_path / "b" / CONTAINER).stat().st_size == pytest.approx(goal, rel=0.005)
    assert result.step > 0.01


@pytest.mark.parametrize(
    ("goal", "unit"),
    [
        *(({"bits": bits}, "bits per linear weight") for bits in (0.01, 15.5)),
        *(({"bytes": size}, "bytes") for size in (300, 10**8)),
    ],
)
def test_a_size_out_of_reach_is_refused_with_the_range_in_its_own_unit(goal, unit, toy, toy_statistics, tmp_path):
    ((kind, value),) = goal.items()
    with pytest.raises(OccError, match=rf"^--{kind} {value} cannot be reached") as refused:
        compress(toy, tmp_path / "out", toy_statistics, Settings(**goal, states=1))
    least, most = (float(n) for n in re.findall(rf"about ([\d.]+) {unit}", str(refused.value)))
    assert 0 < least < most
    assert not least <= value <= most
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("goal", [{"bits": 2.5}, {"bytes": 17_000}])
def test_finished_files_have_the_size_that_was_asked_for(goal, toy, toy_statistics, text, tmp_path):
    """On a network so small finishing adds more than the tolerance, and the step makes up for it."""
    settings = Settings(**goal, states=1, finish_steps=20)
    made = compress(toy, tmp_path / "out", toy_statistics, settings, tokens=text)
    assert made.finished
    reached = made.sizes.linear_bits_per_weight if "bits" in goal else made.sizes.file_bytes
    assert reached == pytest.approx(next(iter(goal.values())), rel=0.005)


def test_a_divergence_is_met_on_held_back_text_and_finishing_helps(toy, toy_statistics, toy_tokens, tmp_path):
    with pytest.raises(OccError, match="held-back text"):
        compress(toy, tmp_path / "a", toy_statistics, Settings(kl=0.01))
    with pytest.raises(OccError, match="finishing needs"):
        compress(toy, tmp_path / "a", toy_statistics, Settings(step=0.1, finish="always"))
    tokens = np.asarray(toy_tokens, np.int32)
    held = np.random.default_rng(3).integers(0, toy.config.vocab_size, (2, 64), dtype=np.int32)
    text = CalibrationTokens(calibration=tokens, finishing=tokens, held_back=held)
    coarse = {
        finish: compress(
            toy,
            tmp_path / finish,
            toy_statistics,
            Settings(step=0.05, states=1, finish=finish, finish_steps=40),
            tokens=text,
        )
        for finish in ("never", "always")
    }
    assert [coarse[finish].finished for finish in ("never", "always")] == [False, True]
    before, after = (divergence(toy, tmp_path / finish, tokens) for finish in ("never", "always"))
    assert after < 0.95 * before
    grown = coarse["always"].sizes.file_bytes - coarse["never"].sizes.file_bytes
    assert 0 < grown < 0.2 * coarse["never"].sizes.file_bytes
    goal = 0.3 * divergence(toy, tmp_path / "never", held)
    result = compress(toy, tmp_path / "kl", toy_statistics, Settings(kl=goal, states=1, finish="never"), tokens=text)
    assert divergence(toy, tmp_path / "kl", held) == pytest.approx(goal, rel=0.04)
    assert result.step < 0.05


def test_embedding_sensitivity_is_the_product_nearest_to_reading_and_writing(toy, toy_statistics):
    """A row costs what it is read for and, tied, what it is written for; seen or not, no token is free to be wrong."""
    form = sensitivity_of(EMBEDDING, toy_statistics)
    output = np.maximum(toy_statistics.fisher(HEAD), 1e-3 * toy_statistics.fisher(HEAD).mean())
    counts = toy_statistics.token_counts
    frequency = 4 / 7 * counts / counts.sum() + 3 / 7 / counts.size
    assert (counts == 0).any()
    assert (form.rows > 0).all()
    moments = [
        m + 0.01 * np.trace(m) / len(m) * np.eye(len(m))
        for m in map(np.float64, (toy_statistics.fisher_matrix(EMBEDDING), toy_statistics.hessian(HEAD)))
    ]
    reading, writing = (np.trace(np.linalg.solve(form.hessian.astype(np.float64), m)) / len(m) for m in moments)
    expected = frequency * reading + output * writing
    np.testing.assert_allclose(form.rows, expected, rtol=1e-3)
    total = np.mean(frequency / form.rows) * moments[0] + np.mean(output / form.rows) * moments[1]
    np.testing.assert_allclose(total, form.hessian, rtol=1e-3, atol=1e-4 * np.abs(total).max())


def test_plans_follow_the_sensitivity():
    rng = np.random.default_rng(0)
    w, rows = rng.standard_normal((32, 48)), 4.0 ** rng.integers(-3, 3, 32)
    cols = 2.0 ** rng.integers(-2, 2, 48)
    plan = plan_matrix("w", w.astype(np.float32), cols, rows)
    step_rows, step_cols = plan.levels(0.5).steps()
    np.testing.assert_allclose(step_rows, 0.5 / np.sqrt(rows), rtol=1e-5)
    np.testing.assert_allclose(step_cols, cols, rtol=1e-5)


def test_classes_move_with_the_step():
    plan = plan_matrix(
        "w", np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32), np.ones(40), np.ones(40)
    )
    fine, coarse = plan.levels(0.01).classes(NUM_CLASSES), plan.levels(0.02).classes(NUM_CLASSES)
    np.testing.assert_array_equal(fine.astype(int) - coarse, 4)  # classes per octave
    near = plan.levels(0.011, classes_at=0.01)
    np.testing.assert_array_equal(near.classes(NUM_CLASSES), fine)
    np.testing.assert_allclose(near.steps()[0], plan.levels(0.011).steps()[0])
    assert not np.array_equal(plan.levels(0.011).classes(NUM_CLASSES), fine)


def test_expected_bits_of_a_linear_curve_and_their_solution():
    zeros = np.zeros(10, np.int32)
    plan = MatrixPlan(name="w", step_rows=zeros, step_cols=zeros, class_rows=zeros + 81, class_cols=zeros)
    class_bits = np.arange(NUM_CLASSES) / 4  # a bit for each octave
    assert expected_bits([plan], class_bits, 1.0) == pytest.approx(100 * 10, rel=1e-6)
    assert expected_bits([plan], class_bits, 8.0) == pytest.approx(100 * 7, rel=1e-6)
    step = solve_step([plan], class_bits, 100 * 4.7)
    assert expected_bits([plan], class_bits, step) == pytest.approx(100 * 4.7, rel=1e-4)
    for impossible in (1e9, -5.0):
        with pytest.raises(ValueError, match=r"cannot be reached.*up to 11\.8"):
            solve_step([plan], class_bits, impossible)


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (576, 1536), (49152, 576), (10**6, 8)])
def test_probe_rows_are_enough_and_not_too_many(shape):
    rows = len(range(*probe_rows(*shape).indices(shape[0])))
    assert rows >= min(shape[0], 32)
    assert rows * shape[1] <= max((1 << 20) + shape[1], 32 * shape[1])
