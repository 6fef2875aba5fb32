"""Effective dimensions and coding gain: order, bounds, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from occ_jax.metrics import (
    ar1_coding_gain,
    coding_gain,
    coding_gain_bits,
    entropy_rank,
    gaussian_distortion,
    participation_ratio,
    stable_rank,
)

RANKS = (stable_rank, participation_ratio, entropy_rank)
MEASURES = (*RANKS, coding_gain, coding_gain_bits)
each_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
# Few shapes, so that few programs are compiled.
spectra = hnp.arrays(np.float32, st.sampled_from([1, 4, 30]), elements=st.floats(2**-10, 2**10, width=32))


@settings(max_examples=40, deadline=None)
@given(spectrum=spectra)
def test_ranks_are_ordered_between_one_and_n(spectrum: np.ndarray):
    stable, participation, entropy = (float(f(jnp.asarray(spectrum))) for f in RANKS)
    slack = 1 + 1e-5
    assert stable * slack >= 1
    assert stable <= participation * slack
    assert participation <= entropy * slack
    assert entropy <= spectrum.size * slack


@settings(max_examples=40, deadline=None)
@given(spectrum=spectra)
def test_agrees_with_the_definitions(spectrum: np.ndarray):
    v, x = spectrum.astype(np.float64), jnp.asarray(spectrum)
    p = v / v.sum()
    np.testing.assert_allclose(participation_ratio(x), v.sum() ** 2 / (v**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(entropy_rank(x), np.exp(-(p * np.log(p)).sum()), rtol=1e-4)
    np.testing.assert_allclose(stable_rank(x), v.sum() / v.max(), rtol=1e-5)
    np.testing.assert_allclose(coding_gain(x), v.mean() / np.exp(np.log(v).mean()), rtol=1e-4)
    np.testing.assert_allclose(coding_gain_bits(x), np.log2(v.mean() / np.exp(np.log(v).mean())) / 2, atol=1e-5)


@pytest.mark.parametrize("rank", RANKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("occupied", "n"), [(1, 1), (1, 9), (4, 9), (9, 9), (500, 1000)])
def test_flat_spectra_count_their_dimensions(rank, occupied: int, n: int):
    spectrum = jnp.zeros(n).at[:occupied].set(0.3)
    np.testing.assert_allclose(rank(spectrum), occupied, rtol=1e-5)


@each_measure
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_and_order_do_not_matter(measure, scale: float):
    spectrum = jnp.linspace(1.0, 4.0, 50)
    np.testing.assert_allclose(measure(spectrum[::-1] * scale), measure(spectrum), rtol=1e-4)


@each_measure
def test_batches_jit_gradient_and_lowering(measure, lowers_everywhere):
    spectra = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, (3, 2, 7)), jnp.float32)
    batched = measure(spectra)
    assert batched.shape == (3, 2)
    np.testing.assert_allclose(jax.vmap(jax.vmap(measure))(spectra), batched, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(measure)(spectra), batched, rtol=1e-5)
    assert jnp.isfinite(jax.grad(measure)(spectra[0, 0])).all()
    lowers_everywhere(measure, spectra)


@each_measure
def test_dtypes(measure):
    assert measure(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert measure(jnp.ones(3, jnp.float64)).dtype == jnp.float64


def test_stable_rank_of_a_matrix():
    w = np.random.default_rng(1).standard_normal((6, 9))
    singular = np.linalg.svd(w, compute_uv=False)
    expected = np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2
    np.testing.assert_allclose(stable_rank(jnp.asarray(singular**2, jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 2, 8, 40])
def test_coding_gain_of_an_autoregressive_source(rho: float, n: int):
    sigma = np.asarray(rho, np.float64) ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    eigenvalues = jnp.asarray(np.linalg.eigvalsh(sigma), jnp.float32)
    np.testing.assert_allclose(coding_gain(eigenvalues), ar1_coding_gain(rho, n), rtol=1e-4)


def test_coding_gain_is_what_bit_allocation_gains():
    """Equal bits against bits that make every component's distortion equal, both at D(R) of a Gaussian."""
    variances, rate = jnp.asarray([9.0, 4.0, 1.0, 0.5]), 4.0
    equal_bits = gaussian_distortion(jnp.full(4, rate), variances).mean()
    bits = rate + jnp.log2(variances / jnp.exp(jnp.log(variances).mean())) / 2
    np.testing.assert_allclose(bits.mean(), rate, rtol=1e-6)
    best = gaussian_distortion(bits, variances).mean()
    np.testing.assert_allclose(equal_bits / best, coding_gain(variances), rtol=1e-5)
    saved = jnp.log2(equal_bits / best) / 2
    np.testing.assert_allclose(saved, coding_gain_bits(variances), rtol=1e-5)


def test_flat_variances_gain_nothing_and_a_zero_gains_everything():
    np.testing.assert_allclose(coding_gain(jnp.full(5, 3.0)), 1, rtol=1e-6)
    np.testing.assert_allclose(coding_gain_bits(jnp.full(5, 3.0)), 0, atol=1e-6)
    assert coding_gain(jnp.asarray([1.0, 0.0])) == jnp.inf


def test_an_empty_spectrum_has_no_dimension():
    assert all(jnp.isnan(f(jnp.zeros(3))) for f in MEASURES)
