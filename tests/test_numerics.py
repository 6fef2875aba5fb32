"""Values, limits and gradients of the numerical primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import OPTIMIZED

from occ_jax.numerics import (
    log1mexp,
    lower_bound,
    safe_log,
    soft_round,
    soft_round_inverse,
    straight_through_round,
)

X = jnp.linspace(-3.0, 3.0, 121)


def test_straight_through_round_rounds_with_the_gradient_of_the_identity():
    np.testing.assert_array_equal(straight_through_round(X), np.round(X))
    np.testing.assert_array_equal(jax.grad(lambda x: straight_through_round(x).sum())(X), 1)


def test_straight_through_round_is_exact_for_large_values():
    """``x + (round(x) - x)`` must not lose the integer."""
    x = jnp.array([16777215.0, 8388607.5, 1234567.5, 0.49999997])
    np.testing.assert_array_equal(straight_through_round(x), np.round(x))


@pytest.mark.parametrize("alpha", [1e-2, 1.0, 5.0, 20.0])
def test_soft_round_has_integers_and_halves_as_fixed_points(alpha):
    fixed = jnp.arange(-6, 7) / 2
    np.testing.assert_allclose(soft_round(fixed, alpha), fixed, atol=1e-5)
    optimized = jax.jit(soft_round, compiler_options=OPTIMIZED)
    assert (jnp.diff(optimized(X, alpha)) >= 0).all()


def test_soft_round_limits():
    np.testing.assert_allclose(soft_round(X, 1e-2), X, atol=1e-5)
    away = jnp.array([-1.3, -0.2, 0.1, 0.45, 0.8, 2.3])
    np.testing.assert_allclose(soft_round(away, 200.0), jnp.round(away), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 6.0])
def test_soft_round_inverse(alpha):
    inside = X[jnp.abs(X - jnp.round(X)) > 1e-3]
    np.testing.assert_allclose(soft_round_inverse(soft_round(inside, alpha), alpha), inside, atol=1e-4)


@pytest.mark.parametrize("alpha", [1e-2, 1.0, 50.0, 1e4])
def test_soft_round_and_inverse_are_finite(alpha):
    for f in (soft_round, soft_round_inverse):
        value, gradient = jax.vmap(jax.value_and_grad(lambda x, f=f: f(x, alpha)))(X)
        assert jnp.isfinite(value).all()
        assert jnp.isfinite(gradient).all()


def test_soft_round_gradient_is_the_derivative():
    eps = 1e-2
    x = jnp.array([0.2, 0.6, 1.3])
    numeric = (soft_round(x + eps, 3.0) - soft_round(x - eps, 3.0)) / (2 * eps)
    np.testing.assert_allclose(jax.vmap(jax.grad(soft_round), (0, None))(x, 3.0), numeric, rtol=1e-2)


def test_lower_bound_lets_descent_come_back():
    x = jnp.array([0.5, 2.0])
    np.testing.assert_array_equal(lower_bound(x, 1.0), [1.0, 2.0])
    np.testing.assert_array_equal(jax.grad(lambda x: lower_bound(x, 1.0).sum())(x), [0.0, 1.0])
    np.testing.assert_array_equal(jax.grad(lambda x: -lower_bound(x, 1.0).sum())(x), [-1.0, -1.0])


def test_lower_bound_under_jit_and_vmap_and_with_a_traced_bound():
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, bound: -lower_bound(x, bound), argnums=(0, 1))))
    by_x, by_bound = gradient(jnp.array([0.0, 3.0]), jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(by_x, [-1.0, -1.0])
    np.testing.assert_array_equal(by_bound, 0)


def test_safe_log_is_log_where_that_exists():
    x = jnp.array([1e-30, 1e-3, 1.0, 1e30])
    np.testing.assert_allclose(safe_log(x), np.log(np.asarray(x, np.float64)), rtol=1e-6)
    value, gradient = jax.value_and_grad(safe_log)(0.0)
    assert np.isfinite(value)
    assert gradient == 0


def test_log1mexp_is_accurate_at_both_ends():
    x = np.geomspace(1e-30, 80, 200)
    with np.errstate(divide="ignore"):
        expected = np.where(x < 0.5, np.log(-np.expm1(-x)), np.log1p(-np.exp(-x)))
    np.testing.assert_allclose(log1mexp(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-37)
    assert jnp.isfinite(jax.vmap(jax.grad(log1mexp))(jnp.asarray(x, jnp.float32))).all()


@pytest.mark.parametrize("f", [straight_through_round, safe_log, log1mexp, lambda x: soft_round(x, 2.0)])
def test_dtype_is_kept(f):
    for dtype in (jnp.float32, jnp.bfloat16):
        assert f(jnp.full(3, 0.7, dtype)).dtype == dtype
    with jax.enable_x64(True):
        assert f(jnp.full(3, 0.7, jnp.float64)).dtype == jnp.float64


def test_lowering(lowers_everywhere):
    lowers_everywhere(lambda x: jax.grad(lambda x: lower_bound(soft_round(x, 3.0), 0.0).sum())(x), X)
