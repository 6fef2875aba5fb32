"""Finishing: the gradient sees a row factor as the file will, the divergence falls, and only scales and gains move."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm import scratch
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.compression import Settings, compress, finishing
from occ_llm.compression.finishing import FinishSettings, finish, predict
from occ_llm.model import LanguageModel
from occ_llm.roles import FINAL_NORM, is_linear

SETTINGS = FinishSettings(steps=24, window=32, learning_rate=1e-2)
FAMILIES = {"tied": {}, "biases": {"family": "qwen2", "attention_bias": True, "tie_word_embeddings": False}}


def distorted(weights, rng):
    """Every row of every linear layer a few percent too large or too small."""
    wrong = {name: np.exp(rng.normal(0, 0.1, len(w))) for name, w in weights.items() if is_linear(name)}
    return wrong, {n: (w * wrong[n][:, None]).astype(np.float32) if n in wrong else w for n, w in weights.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_row_scales_are_put_right(family, toy_config, toy_weights, toy_tokens):
    config = toy_config(**FAMILIES[family])
    weights = toy_weights(config)
    wrong, damaged = distorted(weights, np.random.default_rng(0))
    target = predict(LanguageModel.from_weights(config, weights), toy_tokens[:, :32])
    model = LanguageModel.from_weights(config, damaged)
    tuned = finish(model, target, SETTINGS, final_gain=True)
    assert tuned.kl.shape == (SETTINGS.steps,)
    assert tuned.kl[-4:].mean() < 0.5 * tuned.kl[:4].mean()
    assert set(tuned.row_factors) == set(wrong)
    assert FINAL_NORM in tuned.gains
    before = np.concatenate([np.log(wrong[name]) for name in wrong])
    after = np.concatenate([np.log(wrong[name] * tuned.row_factors[name]) for name in wrong])
    assert np.std(after) < np.std(before)


def test_applied_factors_are_what_was_tuned(toy_config, toy_weights, toy_tokens):
    """The divergence that the last step predicts is that of the network with its rows and gains really changed."""
    config = toy_config(**FAMILIES["biases"])
    weights = toy_weights(config)
    _, damaged = distorted(weights, np.random.default_rng(1))
    target = predict(LanguageModel.from_weights(config, weights), toy_tokens[:1, :32])
    model = LanguageModel.from_weights(config, damaged)
    tuned = finish(model, target, SETTINGS, final_gain=True)
    applied = dict(damaged)
    for name, factors in tuned.row_factors.items():
        applied[name] = damaged[name] * factors[:, None].astype(np.float32)
        bias = name.removesuffix("weight") + "bias"
        if bias in damaged:
            applied[bias] = damaged[bias] * factors.astype(np.float32)
    applied |= {name: gain.astype(np.float32) for name, gain in tuned.gains.items()}
    moved = LanguageModel.from_weights(config, applied)
    one_more = finish(moved, target, dataclasses.replace(SETTINGS, steps=1), final_gain=True)
    further = finish(model, target, dataclasses.replace(SETTINGS, steps=1), final_gain=True)
    assert one_more.kl[0] < 0.5 * further.kl[0]
    assert one_more.kl[0] == pytest.approx(tuned.kl[-1], rel=0.2)


def test_an_intact_network_diverges_by_nothing_at_first(toy_config, toy_weights, toy_tokens):
    config = toy_config()
    weights = toy_weights(config)
    model = LanguageModel.from_weights(config, weights)
    target = predict(model, toy_tokens[:1, :32])
    tuned = finish(model, target, dataclasses.replace(SETTINGS, steps=2), final_gain=False)
    assert FINAL_NORM not in tuned.gains
    assert abs(tuned.kl[0]) < 1e-6
    assert all(np.abs(np.log(factors)).max() < 2.1 * SETTINGS.learning_rate for factors in tuned.row_factors.values())


def test_the_same_twice(toy_config, toy_weights, toy_tokens):
    config = toy_config()
    _, damaged = distorted(toy_weights(config), np.random.default_rng(2))
    model = LanguageModel.from_weights(config, damaged)
    target = predict(LanguageModel.from_weights(config, toy_weights(config)), toy_tokens[:2, :32])
    settings = dataclasses.replace(SETTINGS, steps=4)
    first, second = (finish(model, target, settings, final_gain=True) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, (first.row_factors, first.gains), (second.row_factors, second.gains))
    assert jnp.isfinite(first.kl).all()


def stopping(after):
    """Progress that is interrupted when some steps are finished, and how many were left."""
    left = []

    def progress(steps):
        left.append(len(steps))
        for count, step in enumerate(steps):
            if count == after:
                raise KeyboardInterrupt
            yield step

    return left, progress


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_tuning_goes_on_to_the_same_result(
    damaged, toy_config, toy_weights, toy_tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(scratch, "SAVE_SECONDS", 0.0)
    config, state = toy_config(), tmp_path / "state"
    _, wrong = distorted(toy_weights(config), np.random.default_rng(2))
    model = LanguageModel.from_weights(config, wrong)
    target = predict(LanguageModel.from_weights(config, toy_weights(config)), toy_tokens[:2, :32])
    settings = dataclasses.replace(SETTINGS, steps=5)
    whole = finish(model, target, settings, final_gain=True)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finish(model, target, settings, final_gain=True, state=state, progress=stopping(2)[1])
    if damaged:
        state.write_bytes(state.read_bytes()[:-3])
    for expected in (5 if damaged else 1, 0):
        left, progress = stopping(None)
        found = finish(model, target, settings, final_gain=True, state=state, progress=progress)
        assert left == [expected]
        jax.tree.map(np.testing.assert_array_equal, (found.row_factors, found.gains), (whole.row_factors, whole.gains))
        np.testing.assert_array_equal(found.kl, whole.kl)


@pytest.mark.usefixtures("own_cache")
def test_a_file_that_is_interrupted_while_it_is_tuned(toy, toy_statistics, text, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "SAVE_SECONDS", 0.0)
    settings = Settings(step=0.05, states=1, finish="always", finish_steps=3)
    left, progress = stopping(2)

    def interrupt(steps, label):
        return progress(steps) if label == "finish" else steps

    with pytest.raises(KeyboardInterrupt):
        compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text, track=interrupt)
    compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text, track=interrupt)
    assert left == [3, 1]
    assert not list((tmp_path / "cache").rglob("finishing*")), "nothing is left behind"
    compress(toy, tmp_path / "b", toy_statistics, settings, tokens=text)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("bits", "finished"), [(3.0, False), (2.9, True)])
def test_files_below_three_bits_are_finished(bits, finished, toy, toy_statistics, text, tmp_path):
    settings = Settings(bits=bits, states=1, finish_steps=1)
    assert compress(toy, tmp_path / "out", toy_statistics, settings, tokens=text).finished is finished


def test_one_compilation_serves_all_files_of_a_model(toy_config, toy_weights, toy_tokens):
    config = toy_config()
    weights = toy_weights(config)
    target = predict(LanguageModel.from_weights(config, weights), toy_tokens)
    compiled = []
    for seed in (0, 1):
        _, wrong = distorted(weights, np.random.default_rng(seed))
        model = LanguageModel.from_weights(config, wrong)
        finish(model, target, FinishSettings(steps=2), final_gain=True)
        compiled.append(finishing._step._cache_size())
    assert compiled[0] == compiled[1]
