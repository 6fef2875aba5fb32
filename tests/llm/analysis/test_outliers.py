"""Outliers: planted ones vanish under a rotation, whole rows do not, and clipping is what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.analysis.outliers import (
    SCATTERED,
    STEP_RMS,
    crowding,
    expected_survivors,
    measure_outliers,
    predicted_divergence,
    quantize,
    top_entries,
)

from occ_jax.transforms import random_hadamard

UP = "model.layers.1.mlp.up_proj.weight"
ROWS, COLS = 200, 256


def survivors(w: np.ndarray) -> tuple[float, float]:
    """Measured and expected, after a Hadamard rotation."""
    largest = top_entries(w)
    threshold = float(np.abs(w[largest]).min())
    y = np.asarray(random_hadamard(COLS, key=jax.random.key(0)).forward(jnp.asarray(w)))
    return float((np.abs(y) >= threshold).sum() / largest.sum()), expected_survivors(w, threshold)


def test_spikes_of_single_entries_are_artifacts_of_the_axes():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    spikes = rng.choice(w.size, 51, replace=False)
    w.ravel()[spikes] = 8 * np.sign(w.ravel()[spikes])
    assert set(np.flatnonzero(top_entries(w))) == set(spikes)
    assert survivors(w)[0] == 0


def test_rows_of_large_weights_survive_and_the_gaussian_formula_says_so():
    w = np.random.default_rng(2).standard_normal((ROWS, COLS)).astype(np.float32)
    w[:4] *= 5
    measured, expected = survivors(w)
    assert measured == pytest.approx(expected, abs=0.25)
    assert expected > 0.5
    assert crowding(top_entries(w).sum(1)) > 2 * crowding(top_entries(w).sum(0))


def test_at_home_everything_survives(subject, analysis):
    for o in analysis.outliers:
        if o.coordinates == "identity":
            assert o.survivors == pytest.approx(1.0)
            assert o.energy_kept == pytest.approx(1.0)
        assert 0 <= o.energy_kept <= 1 + 1e-6
    assert len(measure_outliers(subject, [UP])) == 5


def test_outliers_are_exact_or_clipped_and_the_rest_is_rounded():
    y = np.random.default_rng(3).standard_normal((40, 50)).astype(np.float32)
    y[0, :2] = 9.0, -11.0
    largest = top_entries(y)
    reach = np.abs(y[~largest]).max()
    step = STEP_RMS * np.sqrt(np.mean(y * y))
    kept, clipped = quantize(y)
    assert (kept[largest] == y[largest]).all()
    assert (kept[~largest] == clipped[~largest]).all()
    assert np.abs(clipped).max() <= reach + step / 2
    assert np.abs(kept - y)[~largest].max() <= step / 2 * (1 + 1e-5)
    assert np.abs(clipped - y)[largest].min() > 4


def test_the_prediction_is_the_quadratic_form(subject, toy_statistics):
    error = np.random.default_rng(4).standard_normal((80, 48)).astype(np.float32)
    hessian, rows = (np.asarray(a, np.float64) for a in (toy_statistics.error_moment(UP), toy_statistics.fisher(UP)))
    expected = 0.5 * np.einsum("i,ij,jk,ik", rows, error, hessian, error)
    assert predicted_divergence(subject, UP, jnp.asarray(error)) == pytest.approx(expected, rel=1e-3)


def test_prices_compare_like_with_like(analysis):
    prices = {price.coordinates: price for price in analysis.prices}
    assert list(prices) == [*analysis.systems, SCATTERED]
    kept = [price.kept for price in analysis.prices]
    assert max(kept) < 2 * min(kept), "one step makes about one error in all coordinates"
    for price in analysis.prices:
        assert price.difference == pytest.approx(price.clipped - price.kept, abs=1e-7)
        assert price.predicted > 0
    assert dataclasses.asdict(prices["identity"])["difference_se"] > 0
