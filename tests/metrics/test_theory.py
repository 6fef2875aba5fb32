"""Limits of theory: closed forms, inverses of each other, and water-filling against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from occ_jax.metrics import (
    UNIFORM_LOSS_BITS,
    ar1_coding_gain,
    coding_gain_bits,
    distortion_at_rate,
    gaussian_distortion,
    gaussian_rate,
    rate_at_distortion,
)

# Few shapes, so that few programs are compiled.
spectra = hnp.arrays(np.float64, st.sampled_from([1, 2, 12]), elements=st.floats(2**-8, 2**8))


@pytest.mark.parametrize(
    ("distortion", "variance", "bits"), [(1.0, 1.0, 0.0), (0.25, 1.0, 1.0), (1.0, 16.0, 2.0), (3.0, 2.0, 0.0)]
)
def test_gaussian_rate(distortion: float, variance: float, bits: float):
    np.testing.assert_allclose(gaussian_rate(distortion, variance), bits)


def test_gaussian_rate_and_distortion_are_inverse():
    rate = jnp.linspace(0.0, 8.0, 33)
    np.testing.assert_allclose(gaussian_rate(gaussian_distortion(rate, 2.5), 2.5), rate, atol=1e-5)
    np.testing.assert_allclose(gaussian_distortion(1.0, jnp.asarray([1.0, 4.0])), [0.25, 1.0])
    assert gaussian_rate(0.0) == jnp.inf


def test_uniform_quantizer_at_high_rate_loses_a_quarter_bit():
    """The entropy of a finely quantized Gaussian, computed from its distribution function."""
    step = 1 / 64
    edges = (np.arange(-800, 801) + 0.5) * step
    p = np.diff(scipy.stats.norm.cdf(edges))
    p = p[p > 0]
    entropy = -(p * np.log2(p)).sum()
    loss = entropy - float(gaussian_rate(step**2 / 12))
    np.testing.assert_allclose(loss, UNIFORM_LOSS_BITS, atol=1e-4)
    np.testing.assert_allclose(UNIFORM_LOSS_BITS, 0.2546, atol=5e-5)
    np.testing.assert_allclose(20 * np.log10(2) * UNIFORM_LOSS_BITS, 1.53, atol=5e-3)


def brute_force_rate(variances: np.ndarray, distortion: float) -> float:
    """The water level by bisection on its defining equation."""
    level = scipy.optimize.brentq(
        lambda level: np.minimum(level, variances).mean() - distortion, 0, variances.max(), xtol=1e-14, rtol=1e-13
    )
    return np.maximum(0, np.log2(variances / level) / 2).mean()


@settings(max_examples=60, deadline=None)
@given(variances=spectra, fraction=st.floats(0.01, 0.99))
def test_rate_is_that_of_the_bisected_water_level(variances: np.ndarray, fraction: float):
    distortion = fraction * variances.mean()
    with jax.enable_x64(True):
        rate = rate_at_distortion(jnp.asarray(variances), distortion)
    np.testing.assert_allclose(rate, brute_force_rate(variances, distortion), rtol=1e-6, atol=1e-9)


def test_no_other_split_of_the_distortion_is_cheaper():
    rng = np.random.default_rng(0)
    variances, distortion = np.asarray([8.0, 3.0, 0.6, 0.1]), 0.5
    best = float(rate_at_distortion(jnp.asarray(variances, jnp.float32), distortion))
    splits = rng.dirichlet(np.ones(4), 20_000) * 4 * distortion
    rates = np.maximum(0, np.log2(variances / splits) / 2).mean(1)
    assert rates.min() >= best - 1e-6
    assert rates.min() < best + 0.02


@settings(max_examples=60, deadline=None)
@given(variances=spectra, rate=st.floats(0.01, 8))
def test_distortion_at_rate_inverts_rate_at_distortion(variances: np.ndarray, rate: float):
    with jax.enable_x64(True):
        distortion = distortion_at_rate(jnp.asarray(variances), rate)
        back = rate_at_distortion(jnp.asarray(variances), distortion)
    np.testing.assert_allclose(back, rate, rtol=1e-8)


def test_many_rates_at_once_in_single_precision():
    variances = jnp.asarray(np.random.default_rng(1).lognormal(0, 2, 576), jnp.float32)
    rates = jnp.linspace(0.1, 6.0, 12).reshape(3, 4)
    distortions = distortion_at_rate(variances, rates)
    assert distortions.shape == (3, 4)
    np.testing.assert_allclose(rate_at_distortion(variances, distortions), rates, rtol=1e-4)
    assert (jnp.diff(distortions.ravel()) < 0).all()


def test_equal_variances_reduce_to_the_scalar_source():
    variances, rates = jnp.full(7, 2.0), jnp.asarray([0.0, 0.5, 3.0])
    np.testing.assert_allclose(distortion_at_rate(variances, rates), gaussian_distortion(rates, 2.0), rtol=1e-5)
    np.testing.assert_allclose(rate_at_distortion(variances, jnp.asarray([0.1, 2.0, 5.0])), [2.161, 0, 0], atol=1e-3)


def test_at_high_rate_water_filling_saves_the_coding_gain():
    variances = jnp.asarray([5.0, 2.0, 0.3])
    saved = gaussian_rate(1e-3, variances.mean()) - rate_at_distortion(variances, 1e-3)
    np.testing.assert_allclose(saved, coding_gain_bits(variances), atol=1e-5)


def test_ends_of_the_curve():
    variances = jnp.asarray([4.0, 1.0, 0.0])
    np.testing.assert_allclose(distortion_at_rate(variances, 0.0), variances.mean(), rtol=1e-6)
    assert rate_at_distortion(variances, variances.mean()) == 0
    assert rate_at_distortion(variances, 100.0) == 0
    assert rate_at_distortion(variances, 0.0) == jnp.inf
    # A component without energy costs nothing and adds nothing: two of three components carry 2 bits each.
    np.testing.assert_allclose(distortion_at_rate(variances, 2.0), 2 / 3 * 2 * 2**-6, rtol=1e-5)


@pytest.mark.parametrize("f", [rate_at_distortion, distortion_at_rate], ids=lambda f: f.__name__)
def test_water_filling_under_transformations(f, lowers_everywhere):
    variances, at = jnp.asarray([3.0, 1.0, 0.2, 0.0]), jnp.asarray([0.1, 0.4])
    np.testing.assert_allclose(jax.jit(f)(variances, at), f(variances, at), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(f, in_axes=(None, 0))(variances, at), f(variances, at), rtol=1e-6)
    assert jnp.isfinite(jax.grad(f, argnums=1)(variances, 0.3)).all()
    lowers_everywhere(f, variances, at)


def test_slope_of_the_curve_is_set_by_the_water_level():
    """dR/dD = -1 / (2 ln 2 theta): the level is the price of a bit. Here one component lies under water."""
    variances, distortion = jnp.asarray([8.0, 4.0, 0.1]), 0.5
    level = (3 * distortion - 0.1) / 2
    slope = jax.grad(rate_at_distortion, argnums=1)(variances, distortion)
    np.testing.assert_allclose(slope, -1 / (2 * np.log(2) * level), rtol=1e-5)


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.3, 0.95])
def test_ar1_coding_gain(rho: float):
    # The prediction gain, and its approach with growing length.
    np.testing.assert_allclose(ar1_coding_gain(rho), 1 / (1 - rho**2))
    np.testing.assert_allclose(ar1_coding_gain(rho, 10**6), ar1_coding_gain(rho), rtol=1e-5)
    gains = [ar1_coding_gain(rho, n) for n in (1, 2, 4, 8, 16)]
    assert gains[0] == 1
    assert gains == sorted(gains)


def test_ar1_coding_gain_is_that_of_the_toeplitz_determinant():
    rho, n = 0.8, 6
    sigma = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    np.testing.assert_allclose(ar1_coding_gain(rho, n), np.linalg.det(sigma) ** (-1 / n))


def test_sources_that_do_not_exist():
    with pytest.raises(ValueError, match=r"got 1\.0"):
        ar1_coding_gain(1.0)
    with pytest.raises(ValueError, match="n=0"):
        ar1_coding_gain(0.5, 0)
