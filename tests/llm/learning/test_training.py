"""Training on small networks: rates fall, hidden rotations are undone, ends are those of an uninterrupted training."""

import contextlib
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.bench.integers import compress_integers
from occ_llm.checkpoints import Checkpoint, load_checkpoint
from occ_llm.cli.compress import CalibrationText
from occ_llm.compression.finishing import predict
from occ_llm.coordinates import Coordinates, choose_coordinates, rotate
from occ_llm.evaluation import Reference, Windows, evaluate
from occ_llm.learning import LearnSettings, Session, layerwise, losses
from occ_llm.learning.end_to_end import EndToEnd
from occ_llm.learning.losses import Coded, Integers
from occ_llm.learning.problem import Problem
from occ_llm.model import LanguageModel
from occ_llm.roles import EMBEDDING, WRITES_RESIDUAL, is_linear, kind_of

from occ_jax.quantization import fit_affine
from occ_jax.transforms import Identity, klt

KEY = jax.random.key(0)


@contextlib.contextmanager
def silent(label, total):
    yield lambda amount: None


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def session(toy, toy_statistics, toy_tokens):
    def make(checkpoint: Checkpoint = toy, unseen: np.ndarray | None = None, **fields) -> Session:
        settings = LearnSettings(**{"steps": 20, "window": 32, "learning_rate": 0.02} | fields)
        return Session(checkpoint, toy_statistics, settings, toy_tokens, unseen=unseen, progress=silent)

    return make


@pytest.fixture(scope="module")
def turned(toy) -> Checkpoint:
    """A network whose channels differ in loudness, all of its matrices turned by one small rotation."""
    rng = np.random.default_rng(0)
    scales = np.exp2(rng.normal(0, 1.5, 48)).astype(np.float32)
    skew = np.triu(rng.normal(0, 0.05, (48, 48)), 1)
    turn = np.linalg.solve(np.eye(48) + skew - skew.T, np.eye(48) - skew + skew.T).astype(np.float32)
    weights = {}
    for name, w in toy.weights.items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones_like(w)
        elif kind_of(name) in WRITES_RESIDUAL:
            weights[name] = turn @ (scales[:, None] * w)
        else:
            weights[name] = (w * scales[None, :]) @ turn.T
    return dataclasses.replace(toy, weights=weights)


def test_what_a_rotation_has_hidden_is_found(turned, session):
    placements = ("residual", "values", "keys")
    outcome = session(turned, placements=placements, steps=100, row_share=1.0).run(control=True)
    bits = {name: measured["bits"] for name, measured in outcome.measured.items()}
    log = outcome.learned.log
    assert bits["original"] == bits["start"] == pytest.approx(float(log.bits[0]), abs=1e-4)
    assert bits["learned"] < bits["original"] - 0.1
    assert log.bits[-1] == pytest.approx(bits["learned"], abs=0.02)
    gain = bits["original"] - bits["coded"]
    assert gain > 0.5 * (bits["original"] - bits["learned"]), "most is left after rounding the basis of a tied head"
    assert outcome.gain["bits"] == pytest.approx(gain)
    assert float(log.orthogonality.max()) < 1e-5
    assert outcome.control is not None
    assert outcome.control.measured["original"]["bits"] == pytest.approx(bits["original"], abs=0.1)
    assert outcome.control.gain["bits"] < 0.5 * gain, "the turned channels are no structure of the noise"
    assert outcome.pass_seconds is not None
    assert outcome.pass_seconds > 0


def test_training_begins_in_the_eigenbasis_of_the_residual_stream(toy_statistics, session):
    fields = {"objective": "int", "feedback": False, "placements": ("residual",), "row_share": 1.0}
    outcome = session(init="klt", steps=1, learning_rate=1e-9, **fields).run()
    basis = klt(toy_statistics.residual_moment()).basis.T
    residual = outcome.learned.parameters.residual
    np.testing.assert_array_equal(residual.start, basis)
    np.testing.assert_allclose(residual.rotation().matrix, basis, atol=1e-6)
    first = outcome.learned.log.distortion[0]
    assert first == pytest.approx(outcome.measured["start"]["distortion"], rel=1e-4)
    assert first != pytest.approx(outcome.measured["original"]["distortion"], rel=0.01), "these are other coordinates"


def test_a_quarter_of_the_rows_finds_it_too(turned, session, monkeypatch):
    monkeypatch.setattr(losses, "LEAST_ROWS", 8)
    outcome = session(turned, placements=("residual",), steps=100, row_share=0.25).run()
    assert outcome.measured["learned"]["bits"] < outcome.measured["original"]["bits"] - 0.1


def test_an_interrupted_training_ends_as_if_it_had_not_been(session, tmp_path):
    fields = {"placements": ("values",), "steps": 22}
    first = session(**fields)
    whole = first.run()
    first.forget()
    stopped = session(**fields)

    @contextlib.contextmanager
    def interrupts(label, total):
        def advance(amount):
            raise KeyboardInterrupt

        yield advance

    stopped._progress = interrupts
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert list((tmp_path / "cache").rglob("learn-*.safetensors"))
    resumed = session(**fields)
    again = resumed.run()
    jax.tree.map(np.testing.assert_array_equal, again.learned.log, whole.learned.log)
    assert list((tmp_path / "cache").rglob("learn-*.safetensors")), "kept until its outcome is safe"
    resumed.forget()
    assert not list((tmp_path / "cache").rglob("learn-*.safetensors"))


@pytest.fixture
def end_to_end(toy, toy_folded, toy_problem, toy_tokens):
    def make(objective, *, devices=None, **fields) -> EndToEnd:
        model = LanguageModel.from_weights(toy.config, toy_folded)
        settings = LearnSettings(**{"objective": "kl", "steps": 12, "window": 32, "learning_rate": 0.02} | fields)
        start = choose_coordinates("hadamard", toy.config, key=KEY)
        bare = Problem(toy_problem.blocks, {})
        return EndToEnd(model, bare, predict(model, toy_tokens[:, :32]), start, settings, objective, devices)

    return make


def test_the_divergence_is_that_of_the_quantized_network(toy, toy_folded, toy_tokens, end_to_end, drawn_coordinates):
    config = toy.config
    coordinates = drawn_coordinates(config, ("residual", "values", "keys", "unit-scales"))
    found = end_to_end(Integers(4, 16)).measure(coordinates)
    moved = rotate(config, toy_folded, coordinates)

    def rounded(w):
        quantizer = fit_affine(jnp.asarray(w), 4, group_size=16)
        return np.asarray(quantizer.dequantize(quantizer.quantize(jnp.asarray(w))))

    # Back to the basis of the original's embedding and head, which are not quantized.
    back = Coordinates(
        dataclasses.replace(coordinates.residual, matrix=coordinates.residual.matrix.T), Identity(), Identity()
    )
    quantized = {name: rounded(w) if is_linear(name) else w for name, w in moved.items()}
    quantized = {
        n: w for n, w in rotate(dataclasses.replace(config, tie_word_embeddings=False), quantized, back).items()
    }
    network = {name: quantized.get(name, w) if is_linear(name) else w for name, w in toy_folded.items()}
    reference = Reference(LanguageModel.from_weights(config, toy.weights))
    model = LanguageModel.from_weights(config, network)
    # Evaluation leaves the last position of a window out.
    expected = evaluate(model, Windows(tokens=toy_tokens[:, :32], num_bytes=1), reference=reference).kl_mean
    assert found == pytest.approx(expected, rel=0.1)


def test_integers_with_feedback_diverge_as_those_of_a_file_do(toy, toy_statistics, toy_tokens, end_to_end, tmp_path):
    """The draw of expected errors against GPTQ itself, both in Hadamard coordinates."""
    place, start = tmp_path / "out", choose_coordinates("hadamard", toy.config, key=KEY)
    options = {"bits": 4, "group_size": 16, "feedback": True}
    compress_integers(toy, place, toy_statistics, "hadamard", **options)
    model, reference = (LanguageModel.from_weights(c.config, c.weights) for c in (load_checkpoint(place), toy))
    windows = Windows(tokens=toy_tokens[:, :32], num_bytes=1)
    measured = evaluate(model, windows, reference=Reference(reference)).kl_mean
    expected, nearest = (end_to_end(Integers(4, 16, feedback)).measure(start) for feedback in (True, False))
    assert expected == pytest.approx(measured, rel=0.25)
    assert expected < 0.8 * nearest


@pytest.mark.parametrize("feedback", [False, True])
def test_learning_lowers_the_divergence_of_integers(end_to_end, feedback):
    objective = Integers(2, 16, feedback, clip=feedback)
    work = end_to_end(objective, placements=("residual", "values", "unit-scales"), steps=64, learning_rate=0.01)
    learned = work.train(key=KEY)
    assert learned.log.distortion.shape == (64,)
    start = choose_coordinates("hadamard", work._model.config, key=KEY)
    # The errors that feedback leaves are a draw: means over several.
    before, after = (
        np.mean([end_to_end(objective, seed=seed).measure(place) for seed in range(6)])
        for place in (start, learned.coordinates)
    )
    assert after < 0.93 * before


def test_a_batch_is_the_mean_of_its_windows(toy, toy_folded, toy_tokens, end_to_end):
    """Rounding to the nearest has no draw: a step's divergence is the mean of that of its windows."""
    objective, tokens = Integers(2, 16), toy_tokens[:, :32]
    start = choose_coordinates("hadamard", toy.config, key=KEY)
    target = predict(LanguageModel.from_weights(toy.config, toy_folded), tokens)
    whole = end_to_end(objective, placements=("residual",), steps=1, batch=len(tokens))
    assert whole.train(key=KEY).log.distortion[0] == pytest.approx(whole.measure(start, target), rel=1e-4)
    turns = end_to_end(objective, placements=("residual",), steps=len(tokens), batch=1, learning_rate=1e-12)
    assert turns.train(key=KEY).log.distortion.mean() == pytest.approx(whole.measure(start, target), rel=1e-4)


def test_devices_share_the_windows_of_a_step(end_to_end):
    """Of three devices two divide the batch."""
    fields = {"placements": ("residual", "unit-scales"), "steps": 3, "batch": 4}
    one, two = (
        end_to_end(Integers(2, 16), devices=devices, **fields).train(key=KEY) for devices in (None, jax.devices()[:3])
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), two.log, one.log)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(two.parameters))


def test_noise_costs_what_the_step_says(toy_problem, toy, end_to_end):
    """Twice the step is four times the divergence, and half the number of weights in squared steps over twelve."""
    step = 2e-4
    kl = [
        end_to_end(Coded(jnp.float32(step * k))).measure(choose_coordinates("random", toy.config, key=KEY))
        for k in (1, 2)
    ]
    assert kl[1] / kl[0] == pytest.approx(4, rel=0.25)
    weights = sum(m.weight.size for m in toy_problem.blocks.values())
    assert 0.3 < kl[0] / (weights * step**2 / 24) < 3


def test_rate_and_divergence_together(session):
    outcome = session(objective="kl-coded", bits=4.0, placements=("residual",), steps=6, batch=2).run()
    assert outcome.measured["coded"]["bits"] < outcome.measured["original"]["bits"] + 0.05
    assert 0 < outcome.measured["coded"]["distortion"] < 1
    assert outcome.learned.log.bits.shape == (6,)


def test_an_outcome_is_measured_on_windows_that_training_has_not_seen(session, toy_tokens):
    chosen = {"objective": "kl", "bits": 4.0, "group_size": 16, "placements": ("residual",), "steps": 4}
    without, none, beside = (
        session(unseen=unseen, **chosen).run() for unseen in (None, toy_tokens[:0], toy_tokens[:, ::-1].copy())
    )
    for other in (none, beside):
        jax.tree.map(np.testing.assert_array_equal, other.learned.parameters, without.learned.parameters)
    measured = [{name: found["distortion"] for name, found in o.measured.items()} for o in (without, none, beside)]
    assert measured[0] == measured[1]
    for name, found in measured[2].items():
        assert found != measured[0][name]
        assert found == pytest.approx(measured[0][name], rel=0.5)


def test_text_that_nothing_takes_is_unseen(toy, tmp_path):
    file = tmp_path / "text"
    file.write_text("".join(chr(97 + n % 26) + chr(97 + n // 26 % 26) for n in range(676)))
    whole = CalibrationText(text=file, calibration_windows=6, finish_windows=4, calibration_window=16)
    tokens = whole.tokens(toy, hold_back=3)
    assert tokens.held_back is not None
    assert tokens.unseen is not None
    parts = [{tuple(row) for row in part} for part in (tokens.unseen, tokens.held_back, tokens.calibration)]
    assert [len(part) for part in parts[1:]] == [3, 6]
    assert not parts[0] & (parts[1] | parts[2] | {tuple(row) for row in tokens.finishing})
    assert parts[0]
    assert not len(dataclasses.replace(whole, calibration_windows=999).tokens(toy).unseen)


def test_the_embedding_counts_end_to_end(turned, session):
    outcome = session(turned, objective="kl-coded", bits=3.0, placements=("residual",), steps=40).run()
    original, learned = outcome.measured["original"], outcome.measured["learned"]
    assert learned["bits"] < original["bits"] - 0.05
    outer = {name: original["kinds"][name]["bits"] - learned["kinds"][name]["bits"] for name in (EMBEDDING, "up")}
    assert min(outer.values()) > 0.05, "the embedding is turned as well, and its bytes count"


def test_one_compiled_measurement_serves_before_and_after(toy, session):
    before = layerwise._measured._cache_size()
    outcome = session(toy, objective="int", placements=("residual", "o-inputs"), steps=1).run()
    assert layerwise._measured._cache_size() - before <= 2, "one for what does not move, one for all four places"
    found = outcome.measured
    assert found["original"]["distortion"] == found["start"]["distortion"]
    assert found["original"]["transform_bits"] == 0 < found["coded"]["transform_bits"]
