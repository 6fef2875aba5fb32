"""Sums of outer products, and sums of sums that do not lose anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from occ_llm.calibration import CompensatedSum, gram, zero_sum


@pytest.mark.parametrize("width", [1, 3, 255, 256, 257, 600, 1100])
def test_gram_is_the_sum_of_outer_products(width):
    x = np.random.default_rng(width).standard_normal((33, width)).astype(np.float32)
    expected = x.astype(np.float64).T @ x
    np.testing.assert_allclose(gram(jnp.asarray(x)), expected, atol=1e-4)


def test_gram_of_batches_of_windows_flattens_them():
    x = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(gram(jnp.asarray(x)), np.einsum("bti,btj->ij", x, x), atol=1e-5)


def test_gram_multiplies_five_eighths_of_the_full_product():
    x = jax.ShapeDtypeStruct((4096, 2048), jnp.float32)
    cost = jax.jit(gram).lower(x).compile().cost_analysis()
    full = 2 * 4096 * 2048**2
    assert 0.6 * full < cost["flops"] < 0.65 * full


def test_moments_lower_everywhere(lowers_everywhere):
    x = jnp.ones((4, 600), jnp.float32)
    lowers_everywhere(gram, x)
    lowers_everywhere(CompensatedSum.add, zero_sum((4, 600), jnp.float32), x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gram_keeps_the_dtype(dtype):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((9, 300)), dtype)
        assert gram(x).dtype == dtype


@jax.jit
def summed(terms: np.ndarray) -> CompensatedSum:
    def step(total, term):
        return total.add(term), None

    return jax.lax.scan(step, zero_sum((), jnp.float32), jnp.asarray(terms))[0]


def test_compensation_survives_compilation():
    """A plain float32 sum of 2^24 and ones stays at 2^24; a compiler that simplifies ``(t - s) - y`` would too."""
    terms = np.concatenate([[2.0**24], np.ones(1000)]).astype(np.float32)
    plain = jax.lax.scan(lambda s, x: (s + x, None), jnp.float32(0), jnp.asarray(terms))[0]
    assert float(plain) == 2.0**24
    assert float(summed(terms).mean(1)) == 2.0**24 + 1000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=40, max_size=40))
def test_compensated_sum_of_positive_terms_is_exact_to_rounding(terms):
    terms = np.asarray(terms, np.float32)
    expected = terms.astype(np.float64).sum()
    assert abs(float(summed(terms).mean(1)) - expected) <= 2 * np.finfo(np.float32).eps * expected + 1e-38


def test_mean_divides_in_float64_and_comes_back_in_the_dtype_of_the_sum():
    total = zero_sum((2,), jnp.float32).add(jnp.asarray([1.0, 2.0]))
    mean = total.mean(3)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, (np.asarray([1.0, 2.0]) / 3).astype(np.float32))
