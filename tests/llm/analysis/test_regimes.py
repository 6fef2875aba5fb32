"""Regimes: closed forms for known matrices, and what a change of coordinates may and may not change."""

import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.analysis.regimes import (
    HISTOGRAM_WIDTH,
    STEP_RMS,
    channel_gain_bits,
    input_gain_bits,
    magnitude_counts,
    measure_regimes,
    rate_at_equal_distortion,
    top_energy,
)
from scipy import stats

from occ_jax.metrics import UNIFORM_LOSS_BITS, ar1_coding_gain
from occ_jax.transforms import Identity, klt

ROWS, COLS = 512, 256


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, COLS)).astype(np.float32)


def coded_rate(y: np.ndarray) -> float:
    step = STEP_RMS * float(np.sqrt(np.mean(y * y)))
    return rate_at_equal_distortion(y, np.rint(y / step).astype(np.int32), step)


def test_the_coder_reaches_the_rate_of_a_uniform_quantizer_on_a_gaussian(gaussian):
    """R(D) of a unit Gaussian at step^2 / 12, and the loss of the interval: levels and lanes cost little."""
    limit = 0.5 * np.log2(12 / STEP_RMS**2)
    assert limit + UNIFORM_LOSS_BITS - 0.02 < coded_rate(gaussian) < limit + UNIFORM_LOSS_BITS + 0.1


def test_the_largest_coefficients_of_a_gaussian_hold_what_its_tail_holds(gaussian):
    tail = stats.norm.isf(0.005)
    expected = 2 * (tail * stats.norm.pdf(tail) + stats.norm.sf(tail))
    assert top_energy(gaussian) == pytest.approx(expected, rel=0.02)
    spike = np.zeros((10, 20), np.float32)
    spike[3, 4] = 2
    assert top_energy(spike) == 1.0


def test_unequal_scales_are_worth_their_coding_gain(gaussian):
    """Columns of different scales: a coder that knows them saves what the gain says, at equal energy."""
    scales = np.exp(np.linspace(-1, 1, COLS)).astype(np.float32)
    unequal = gaussian * scales
    unequal *= np.sqrt(np.mean(gaussian**2) / np.mean(unequal**2))
    gain = float(channel_gain_bits(jnp.asarray(unequal)))
    assert gain == pytest.approx(0.5 * (np.log2(np.mean(scales**2)) - np.mean(np.log2(scales**2))), abs=0.02)
    assert coded_rate(gaussian) - coded_rate(unequal) == pytest.approx(gain, abs=0.05)


def test_the_eigenbasis_has_the_largest_gain_of_the_inputs():
    """An autoregressive second moment: nothing to gain in its channels, the closed form in its eigenbasis."""
    n, correlation = 32, 0.9
    hessian = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(np.float32)
    assert input_gain_bits(Identity(), hessian) == pytest.approx(0, abs=1e-5)
    exact = 0.5 * np.log2(ar1_coding_gain(correlation, n))
    assert 0.9 * exact < input_gain_bits(klt(hessian), hessian) < exact, "damping takes a little"


def test_histograms_count_everything(gaussian):
    counts = magnitude_counts(gaussian)
    assert counts.sum() == gaussian.size
    density = counts[:-1] / gaussian.size / HISTOGRAM_WIDTH
    centres = (np.arange(len(density)) + 0.5) * HISTOGRAM_WIDTH
    assert np.abs(density - np.sqrt(2 / np.pi) * np.exp(-(centres**2) / 2)).max() < 0.02
    assert magnitude_counts(np.array([[0.0] * 999 + [5.0]]))[-1] == 1, "beyond the reach"


def test_coordinates_keep_norms_and_flatten_spikes(analysis):
    by_place = {(r.matrix, r.coordinates): r for r in analysis.regimes}
    assert len(by_place) == 2 * 7 * 5
    for regime in analysis.regimes:
        assert regime.norm_departure < 1e-5
        assert 0 < regime.effective_dimension <= 1 + 1e-6
        assert regime.entropy_bits < regime.rate_bits + 1.5  # a small matrix pays for its levels
        klt_gain = by_place[regime.matrix, "klt"].input_gain_bits
        assert regime.input_gain_bits <= klt_gain + 1e-3, "no orthonormal basis beats the eigenbasis"


def test_histograms_have_every_weight_of_their_kind(analysis, toy):
    for h in analysis.histograms:
        sizes = [w.size for name, w in toy.weights.items() if f".{h.kind}_proj." in name]
        assert sum(h.counts) == sum(sizes)


def test_only_the_asked_matrices_are_measured(subject):
    name = subject.matrices[0]
    regimes, histograms = measure_regimes(subject, [name])
    assert {r.matrix for r in regimes} == {name}
    assert {h.kind for h in histograms} == {"q"}
