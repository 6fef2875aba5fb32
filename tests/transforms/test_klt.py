"""Karhunen-Loève transform: diagonal, ordered, oriented, and optimal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.metrics import ar1_coding_gain, coding_gain
from occ_jax.transforms import DCT, KLT, Transform, hadamard, identity, klt, random_rotation


def ar1_covariance(n: int, rho: float) -> np.ndarray:
    return rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))


def coefficient_variances(t: Transform, sigma: np.ndarray) -> jax.Array:
    """Variances of T x: the diagonal of T Sigma T^T."""
    rows = t.forward(jnp.asarray(sigma, jnp.float32))
    return jnp.diagonal(t.forward(rows.T))


@settings(max_examples=20, deadline=None)
@given(n=st.sampled_from([1, 2, 9, 40]), seed=st.integers(0, 2**32 - 1))
def test_diagonalises_any_second_moment(n: int, seed: int):
    samples = np.random.default_rng(seed).standard_normal((n + 3, n))
    sigma = samples.T @ samples
    t = klt(sigma)
    basis, values = np.asarray(t.basis, np.float64), np.asarray(t.eigenvalues)
    np.testing.assert_allclose(basis.T @ sigma @ basis, np.diag(values), atol=1e-5 * np.trace(sigma))
    np.testing.assert_allclose(basis.T @ basis, np.eye(n), atol=1e-5)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(sigma)[::-1], atol=1e-5 * np.trace(sigma))
    assert (np.diff(values) <= 0).all()


def test_decorrelates_samples():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    t = klt(x.T @ x / 50)
    y = np.asarray(t.forward(jnp.asarray(x, jnp.float32)), np.float64)
    np.testing.assert_allclose(y.T @ y / 50, np.diag(t.eigenvalues), atol=1e-4)


@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_has_the_largest_coding_gain(rho: float):
    n = 16
    sigma = ar1_covariance(n, rho)
    best = float(coding_gain(coefficient_variances(klt(sigma), sigma)))
    np.testing.assert_allclose(best, ar1_coding_gain(rho, n), rtol=1e-3)
    others = [identity(), DCT(), hadamard(n), *(random_rotation(n, key=jax.random.key(i)) for i in range(5))]
    gains = [float(coding_gain(coefficient_variances(t, sigma))) for t in others]
    assert max(gains) < best
    np.testing.assert_allclose(gains[0], 1, rtol=1e-5)
    # The classical result: the DCT comes close, and closer as neighbours grow alike.
    assert gains[1] > 0.95 * best


def test_leading_coefficients_hold_the_most_energy():
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((40, 8)) * np.arange(1, 9)
    sigma = samples.T @ samples
    best = np.cumsum(coefficient_variances(klt(sigma), sigma))
    for i in range(5):
        other = np.sort(coefficient_variances(random_rotation(8, key=jax.random.key(i)), sigma))[::-1]
        assert (np.cumsum(other)[:-1] <= best[:-1]).all()


def test_orientation_and_order_are_canonical():
    sigma = ar1_covariance(7, 0.6)
    basis = np.asarray(klt(sigma).basis)
    for column in basis.T:
        large = column[np.abs(column) >= np.abs(column).max() / 2]
        assert large[0] > 0
    np.testing.assert_array_equal(klt(jnp.asarray(sigma, jnp.float32)).basis, klt(sigma.astype(np.float32)).basis)


def test_only_the_symmetric_part_counts():
    sigma = ar1_covariance(5, 0.7)
    skew = np.triu(np.full((5, 5), 0.3), 1)
    np.testing.assert_allclose(klt(sigma + skew - skew.T).eigenvalues, klt(sigma).eigenvalues, rtol=1e-6)


def test_singular_moments_have_no_negative_energy():
    x = np.random.default_rng(2).standard_normal((3, 10))
    values = np.asarray(klt(x.T @ x).eigenvalues)
    assert (values >= 0).all()
    np.testing.assert_allclose(values[3:], 0, atol=1e-5)


def test_traced_and_concrete_agree(lowers_everywhere):
    sigma = jnp.asarray(ar1_covariance(6, 0.8), jnp.float32)
    host, traced = klt(sigma), jax.jit(klt)(sigma)
    np.testing.assert_allclose(traced.eigenvalues, host.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(traced.basis, host.basis, atol=1e-4)
    lowers_everywhere(klt, sigma)


def test_the_callers_dtype_comes_back():
    sigma = ar1_covariance(4, 0.5)
    assert klt(sigma).basis.dtype == jnp.float32
    with jax.enable_x64(True):
        t = klt(sigma)
        assert t.basis.dtype == jnp.float64
        np.testing.assert_allclose(t.basis @ jnp.diag(t.eigenvalues) @ t.basis.T, sigma, atol=1e-14)


def test_bad_moments():
    with pytest.raises((ValueError, TypeError), match=r"second.moment"):
        klt(np.ones((2, 3)))
    with pytest.raises(ValueError, match="2 entries that are not finite"):
        klt(np.asarray([[1.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises((ValueError, TypeError), match="eigenvalue"):
        KLT(jnp.eye(3), jnp.ones(2))
    with pytest.raises(ValueError, match="does not act on vectors of length 4"):
        klt(np.eye(3)).forward(jnp.ones((2, 4)))
