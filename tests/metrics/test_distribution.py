"""Tails, peaks and sparsity: against SciPy, against closed forms, and on edge cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from occ_jax.metrics import gini, kurtosis, l2_norm, linf_rms_ratio, sparsity

MEASURES = {
    "kurtosis": kurtosis,
    "linf_rms_ratio": linf_rms_ratio,
    "l2_norm": l2_norm,
    "sparsity": partial(sparsity, threshold=0.5),
    "gini": gini,
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
# Few shapes, so that few programs are compiled.
vectors = hnp.arrays(np.float32, st.sampled_from([2, 5, 32]), elements=st.floats(-100, 100, width=32))


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


@each_measure
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reduces_one_axis(measure, axis: int):
    x = jnp.asarray(values(6, 8), jnp.float32)
    rows = jnp.moveaxis(x, axis, -1)
    np.testing.assert_allclose(measure(x, axis), [measure(row) for row in rows], rtol=1e-5)
    assert measure(x).shape == ()


@each_measure
def test_jit_vmap_gradient_and_lowering(measure, lowers_everywhere):
    x = jnp.asarray(values(4, 9), jnp.float32)
    np.testing.assert_allclose(jax.jit(measure)(x), measure(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(measure)(x), measure(x, 1), rtol=1e-5)
    assert jnp.isfinite(jax.grad(measure)(x)).all()
    lowers_everywhere(measure, x)


@each_measure
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_measured_in_single(measure, dtype):
    x = jnp.asarray(values(300), dtype)
    assert measure(x).dtype == jnp.float32
    np.testing.assert_allclose(measure(x), measure(x.astype(jnp.float32)), rtol=1e-6)


@each_measure
def test_double_precision_is_kept(measure):
    with jax.enable_x64(True):
        assert measure(jnp.asarray(values(5))).dtype == jnp.float64


@pytest.mark.parametrize("measure", [kurtosis, linf_rms_ratio, gini, MEASURES["sparsity"]])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(measure, scale: float):
    x = jnp.asarray(values(200), jnp.float32)
    np.testing.assert_allclose(measure(x * scale), measure(x), rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(x=vectors.filter(lambda x: x.std() > 1e-2 * np.abs(x).max() > 0))
def test_agrees_with_scipy_and_keeps_bounds(x: np.ndarray):
    n, wide = x.size, x.astype(np.float64)
    np.testing.assert_allclose(kurtosis(jnp.asarray(x)), scipy.stats.kurtosis(wide, fisher=False), rtol=1e-3)
    np.testing.assert_allclose(l2_norm(jnp.asarray(x)), np.linalg.norm(wide), rtol=1e-5)
    assert 1 - 1e-5 <= linf_rms_ratio(jnp.asarray(x)) <= np.sqrt(n) * (1 + 1e-5)
    assert -1e-5 <= gini(jnp.asarray(x)) <= 1 - 1 / n + 1e-5


@pytest.mark.parametrize(
    ("distribution", "expected"), [(scipy.stats.norm, 3.0), (scipy.stats.uniform, 1.8), (scipy.stats.laplace, 6.0)]
)
def test_kurtosis_of_known_distributions(distribution, expected: float):
    n = 200_000
    x = distribution.rvs(size=n, random_state=np.random.default_rng(0))
    # Error bar of the ratio m4 / m2^2 by the delta method, from the distribution's own moments about its mean.
    m2, m4, m6, m8 = (distribution.expect(lambda v, p=p: (v - distribution.mean()) ** p) for p in (2, 4, 6, 8))
    k = m4 / m2**2
    variance = (m8 / m2**4 - 4 * k * m6 / m2**3 + 4 * k**3 - k**2) / n
    if distribution is scipy.stats.norm:
        np.testing.assert_allclose(variance, 24 / n, rtol=1e-6)
    assert abs(float(kurtosis(jnp.asarray(x, jnp.float32))) - expected) < 5 * np.sqrt(variance)


def test_kurtosis_ignores_the_mean_and_is_one_for_signs():
    signs = jnp.asarray([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose([kurtosis(signs), kurtosis(signs + 5)], 1, rtol=1e-6)


def test_linf_rms_ratio_at_its_ends():
    np.testing.assert_allclose(linf_rms_ratio(jnp.full(9, -2.0)), 1, rtol=1e-6)
    np.testing.assert_allclose(linf_rms_ratio(jnp.eye(16)[3]), 4, rtol=1e-6)


def test_l2_norm_over_both_axes_is_frobenius():
    x = values(5, 7)
    np.testing.assert_allclose(l2_norm(jnp.asarray(x, jnp.float32), (0, 1)), np.linalg.norm(x), rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.1, 1.0, 2.0])
def test_sparsity_of_a_gaussian(threshold: float):
    n = 100_000
    x = np.random.default_rng(1).standard_normal(n)
    p = 2 * scipy.stats.norm.cdf(threshold) - 1
    # Five binomial standard deviations.
    assert abs(float(sparsity(jnp.asarray(x, jnp.float32), threshold=threshold)) - p) < 5 * np.sqrt(p * (1 - p) / n)


def test_sparsity_counts_exact_zeros_by_default():
    assert sparsity(jnp.asarray([0.0, 1e-20, -3.0, 0.0])) == 0.5
    assert sparsity(jnp.zeros(3)) == 1


def test_sparsity_rejects_negative_thresholds():
    with pytest.raises(ValueError, match="threshold of -1"):
        sparsity(jnp.ones(3), threshold=-1.0)


@pytest.mark.parametrize(("draw", "expected"), [("standard_normal", np.sqrt(2) - 1), ("laplace", 0.5)])
def test_gini_of_known_distributions(draw: str, expected: float):
    n = 100_000
    x = getattr(np.random.default_rng(2), draw)(size=n)
    # The standard deviation of the index is below 0.5 / sqrt(n) for both.
    assert abs(float(gini(jnp.asarray(x, jnp.float32))) - expected) < 5 * 0.5 / np.sqrt(n)


@settings(max_examples=20, deadline=None)
@given(x=vectors.filter(lambda x: np.abs(x).max() > 1e-3))
def test_gini_is_the_mean_difference_of_pairs(x: np.ndarray):
    magnitude = np.abs(x.astype(np.float64))
    pairs = np.abs(magnitude[:, None] - magnitude[None, :]).sum()
    np.testing.assert_allclose(gini(jnp.asarray(x)), pairs / (2 * x.size * magnitude.sum()), atol=1e-5)


def test_gini_keeps_hurley_and_rickards_axioms():
    x = jnp.asarray(np.abs(values(12)), jnp.float32)
    base = float(gini(x))
    low, high = int(x.argmin()), int(x.argmax())
    robin_hood = x.at[high].add(-0.1).at[low].add(0.1)
    assert gini(robin_hood) < base
    assert gini(x + 1) < base  # rising tide
    assert gini(jnp.concatenate([x, jnp.zeros(1)])) > base  # babies
    assert gini(x.at[high].add(10)) > base  # Bill Gates
    np.testing.assert_allclose(gini(jnp.concatenate([x, x])), base, rtol=1e-5)  # cloning
    np.testing.assert_allclose(gini(-x), base, rtol=1e-6)


def test_undefined_quantities_are_nan():
    assert all(jnp.isnan(f(jnp.zeros(4))) for f in (kurtosis, linf_rms_ratio, gini))
    assert jnp.isnan(kurtosis(jnp.full(4, 2.0)))
