"""Calibration against a naive twin, and against what the statistics are for: predicting the divergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import Statistics, blocks, calibrate, statistic_shapes
from occ_llm.config import ModelConfig
from occ_llm.errors import OccError
from occ_llm.folding import fold_norms
from occ_llm.roles import EMBEDDING, linear_name
from occ_llm.weights import DerivedWeights

KEY = jax.random.key(3)

FAMILIES = {
    "separate head": {},
    "qwen2: biases, tied head": {"family": "qwen2", "attention_bias": True, "tie_word_embeddings": True},
    "qwen3: norms of queries and keys, sliding window in one layer": {
        "family": "qwen3",
        "qk_norm": True,
        "num_kv_heads": 1,
        "sliding_window": 4,
        "sliding_layers": (True, False),
    },
}


def needs_gradients(name: str) -> bool:
    return "fisher" in name or "weighted" in name


def assert_same(found: Statistics, expected, rtol: float) -> None:
    assert set(found.tensors) == set(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert np.abs(found.tensors[name] - value).max() <= rtol * scale, name


@pytest.mark.parametrize("change", FAMILIES.values(), ids=FAMILIES)
def test_agrees_with_differentiating_the_whole_network(config, naive, change):
    config = dataclasses.replace(config, **change)
    weights, windows = naive.weights(config, 0), naive.windows(config, 3, 9)
    found = calibrate(config, weights, windows, key=KEY)
    expected = naive.statistics(config, dict(fold_norms(config, weights)), windows, KEY)
    assert_same(found, expected, 2e-5)
    assert {name: a.shape for name, a in found.tensors.items()} == statistic_shapes(config)
    assert found.num_tokens == 27 == found.token_counts.sum()


def test_batches_change_nothing_but_rounding(config, naive, calibrated):
    weights, windows, together = calibrated
    apart = calibrate(config, weights, windows, key=KEY, batch_tokens=20)
    assert_same(apart, together.tensors, 2e-6)
    assert apart.fingerprint == together.fingerprint


def test_float32_agrees_with_float64(config, calibrated):
    weights, windows, single = calibrated
    with jax.enable_x64(True):
        double = calibrate(config, weights, windows, key=KEY, dtype=np.float64)
    assert double.hessian(linear_name(0, "down")).dtype == np.float64
    assert_same(single, double.tensors, 1e-5)


def test_matrices_are_symmetric_and_positive(calibrated):
    for name, matrix in calibrated[2].tensors.items():
        if matrix.ndim == 2:
            np.testing.assert_array_equal(matrix, matrix.T, err_msg=name)
            assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > -1e-5 * np.abs(matrix).max(), name


def test_normalised_inputs_have_unit_mean_square(config, calibrated):
    for kind in ("q", "gate"):
        np.testing.assert_allclose(np.trace(calibrated[2].hessian(linear_name(1, kind))), config.hidden_size, rtol=1e-4)


def test_folded_weights_give_the_same(config, calibrated):
    weights, windows, statistics = calibrated
    folded = calibrate(config, fold_norms(config, weights), windows, key=KEY)
    assert folded.fingerprint == statistics.fingerprint
    assert_same(folded, statistics.tensors, 0)


def test_second_moments_alone_are_those_of_the_full_calibration(config, calibrated):
    weights, windows, statistics = calibrated
    forward = calibrate(config, weights, windows, key=KEY, fisher=False)
    assert not forward.has_fisher
    assert_same(forward, {n: a for n, a in statistics.tensors.items() if not needs_gradients(n)}, 1e-6)


def test_some_windows_go_back_and_all_are_observed(config, naive):
    weights, windows = naive.weights(config, 0), naive.windows(config, 5, 9)
    everything = calibrate(config, weights, windows, key=KEY)
    some = calibrate(config, weights, windows, key=KEY, fisher_windows=2, batch_tokens=18)
    alone = calibrate(config, weights, windows[[0, 2]], key=KEY)
    expected = {n: (alone if needs_gradients(n) else everything).tensors[n] for n in everything.tensors}
    assert_same(some, expected, 2e-6)
    assert some.fingerprint != everything.fingerprint
    assert calibrate(config, weights, windows, key=KEY, fisher_windows=9).fingerprint == everything.fingerprint
    with pytest.raises(OccError, match="at least one window"):
        calibrate(config, weights, windows, key=KEY, fisher_windows=0)


def test_another_key_draws_other_labels(config, calibrated):
    weights, windows, statistics = calibrated
    other = calibrate(config, weights, windows, key=jax.random.key(4))
    name = linear_name(0, "up")
    assert not np.allclose(other.fisher(name), statistics.fisher(name), rtol=1e-3)
    np.testing.assert_array_equal(other.hessian(name), statistics.hessian(name))


def test_weights_are_read_one_block_at_a_time(config, naive):
    """Each tensor once for its fingerprint, once on the way there and once on the way back."""
    weights, reads = naive.weights(config, 0), []

    def rule(name):
        return lambda source: reads.append(name) or source[name]

    lazy = DerivedWeights(weights, {name: rule(name) for name in weights})
    calibrate(config, lazy, naive.windows(config, 3, 9), key=KEY)
    matrices = [name for name in reads if "proj" in name]
    assert {matrices.count(name) for name in weights if "proj" in name} == {3}
    depth = len(matrices) // 3
    assert [name.split(".")[2] for name in matrices[depth : 2 * depth]] == ["0"] * 7 + ["1"] * 7
    assert [name.split(".")[2] for name in matrices[2 * depth :]] == ["1"] * 7 + ["0"] * 7


def test_one_compilation_for_all_layers_and_batches(config, naive):
    deep = dataclasses.replace(config, num_layers=4, intermediate_size=24)
    before = blocks.differentiate._cache_size()
    calibrate(deep, naive.weights(deep, 0), naive.windows(deep, 6, 9), key=KEY, batch_tokens=18)
    assert blocks.differentiate._cache_size() == before + 1


def test_progress_sees_every_step(config, calibrated):
    seen = []

    def progress(steps):
        assert len(steps) == 2 * config.num_layers + 1
        for step in steps:
            seen.append(step)
            yield step

    weights, windows, _ = calibrated
    calibrate(config, weights, windows, key=KEY, progress=progress)
    assert len(seen) == 2 * config.num_layers + 1


@pytest.mark.parametrize(("kind", "layer"), [("gate", 1), ("up", 1)])
def test_predicts_the_divergence_of_a_random_perturbation(config, naive, kind, layer):
    """In the last MLP a token's output touches its own logits only, so 1/2 sum g e H e is exact to second order."""
    weights, windows = naive.weights(config, 1, scale=0.7), naive.windows(config, 120, 12, seed=1)
    folded = dict(fold_norms(config, weights))
    statistics = calibrate(config, weights, windows, key=KEY)
    name = linear_name(layer, kind)
    errors = 1e-2 * np.random.default_rng(2).standard_normal((48, *folded[name].shape)).astype(np.float32)
    hessian, fisher = statistics.hessian(name), statistics.fisher(name)
    predicted = 0.5 * np.einsum("i,kij,jl,kil->k", fisher, errors, hessian, errors)
    measured = np.asarray(_divergences(config, naive, folded, name, errors, windows))
    # The draws of the perturbation are common to both sides; what remains is the noise of the labels and of curvature.
    ratio = measured.mean() / predicted.mean()
    assert abs(ratio - 1) < 0.1


@pytest.mark.parametrize("kind", ["q", "v", "o", "up", "down"])
def test_full_fisher_and_early_layers_predict_the_order_of_magnitude(config, naive, kind):
    weights, windows = naive.weights(config, 1, scale=0.7), naive.windows(config, 120, 12, seed=1)
    folded = dict(fold_norms(config, weights))
    statistics = calibrate(config, weights, windows, key=KEY)
    name = linear_name(0, kind)
    errors = 1e-2 * np.random.default_rng(2).standard_normal((16, *folded[name].shape)).astype(np.float32)
    matrix = np.diag(statistics.fisher(name)) if kind == "q" else statistics.fisher_matrix(name)
    predicted = 0.5 * np.einsum("im,kij,jl,kml->k", matrix, errors, statistics.hessian(name), errors)
    measured = np.asarray(_divergences(config, naive, folded, name, errors, windows))
    assert 0.5 < measured.mean() / predicted.mean() < 2


def _divergences(config: ModelConfig, naive, weights, name, errors, windows) -> jax.Array:
    """Mean KL divergence per token for every error of one matrix, in float64."""
    with jax.enable_x64(True):
        weights = {n: jnp.asarray(w, jnp.float64) for n, w in weights.items()}

        def log_p(error):
            perturbed = weights | {name: weights[name] + error}
            return jax.vmap(lambda tokens: jax.nn.log_softmax(naive.logits(config, perturbed, tokens)))(windows)

        @jax.jit
        def divergence(error):
            reference = log_p(jnp.zeros_like(error))
            return jnp.mean(jnp.sum(jnp.exp(reference) * (reference - log_p(error)), -1))

        return jnp.stack([divergence(jnp.asarray(error, jnp.float64)) for error in errors])


def test_tokens_of_another_vocabulary_are_refused(config, naive):
    windows = naive.windows(config, 2, 5)
    windows[1, 3] = config.vocab_size
    with pytest.raises(OccError, match=r"token 37 but the model knows 37"):
        calibrate(config, naive.weights(config, 0), windows, key=KEY)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_text_without_tokens_is_refused(config, naive, shape):
    with pytest.raises(OccError, match="no tokens"):
        calibrate(config, naive.weights(config, 0), np.zeros(shape, np.int32), key=KEY)


@pytest.mark.parametrize(
    ("name", "fisher"),
    [(EMBEDDING, True), (linear_name(1, "down"), True), (linear_name(1, "down"), False), ("model.norm.weight", True)],
)
def test_activations_that_overflow_are_named(config, naive, tmp_path, name, fisher):
    weights = naive.weights(config, 0)
    weights[name] = np.full_like(weights[name], 3e38)
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(OccError, match="not finite"):
        calibrate(config, weights, naive.windows(config, 3, 9), key=KEY, path=path, fisher=fisher)
    assert not list(tmp_path.iterdir())


def test_text_shorter_than_the_width_is_reported(config, naive, calibrated):
    short = calibrate(config, naive.weights(config, 0), naive.windows(config, 1, 14), key=KEY, fisher=False)
    assert short.singular_inputs() == tuple(
        f"model.layers.{i}.{tap}.hessian" for i in (0, 1) for tap in ("o_in", "down_in")
    )
    assert calibrated[2].singular_inputs() == ()
