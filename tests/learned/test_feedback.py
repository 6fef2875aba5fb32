"""Costs of columns and what later columns do, against independent solutions, and gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.learned import column_costs, regressions
from occ_jax.quantization.hessian import prepare_hessian

N = 12


@pytest.fixture(scope="module")
def moment() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((40, N)).astype(np.float32)
    return x.T @ x / 40


def test_costs_are_those_of_feedback(moment):
    expected = prepare_hessian(moment, damping=0.0).relative_steps ** -2
    np.testing.assert_allclose(column_costs(jnp.asarray(moment)), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(column_costs)(jnp.asarray(moment)), expected, rtol=1e-4)


def test_the_gradient_is_that_of_the_factorization(moment):
    """In float64, along directions in which a second moment can move."""
    weights = np.random.default_rng(1).standard_normal(N)
    gradient = jax.grad(lambda h: jnp.vdot(column_costs(h), jnp.asarray(weights, jnp.float32)))(jnp.asarray(moment))

    def exact(h: np.ndarray) -> float:
        root = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
        return float(weights @ np.diagonal(root) ** 2)

    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal((N, N))
        direction = direction + direction.T
        ends = [exact(moment.astype(np.float64) + sign * 1e-6 * direction) for sign in (1, -1)]
        assert float(np.vdot(gradient, direction)) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-4)


def test_a_sample_of_columns_estimates_the_gradient_without_bias(moment):
    h = jnp.asarray(moment)
    whole = jax.grad(lambda h: column_costs(h).sum())(h)
    one = jax.jit(lambda key: jax.grad(lambda h: column_costs(h, key, 0.25).sum())(h))
    many = jax.vmap(one)(jax.random.split(jax.random.key(0), 2000))
    error = many.std(0) / np.sqrt(2000)
    assert float(jnp.abs((many.mean(0) - whole) / jnp.maximum(error, 1e-6)).max()) < 5
    np.testing.assert_array_equal(column_costs(h, jax.random.key(0), 0.25), column_costs(h))


def test_the_determinant_is_shared_by_all_bases(moment):
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((N, N)))
    turned = jnp.asarray(rotation @ moment @ rotation.T, jnp.float32)
    expected = np.linalg.slogdet(moment.astype(np.float64))[1]
    assert float(jnp.log(column_costs(turned)).sum()) == pytest.approx(expected, abs=1e-2)


def test_later_columns_make_the_best_of_an_error(moment):
    """Each column's error is passed on by the regression of the later columns on it, solved one by one in float64."""
    h = moment.astype(np.float64)
    rows = []
    for j in range(N):
        row = np.zeros(N)
        row[j] = 1.0
        row[j + 1 :] = -np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
        rows.append(row)
    error = np.random.default_rng(3).standard_normal((5, N))
    found, costs = regressions(jnp.asarray(moment))
    np.testing.assert_allclose(found, rows, rtol=2e-3, atol=2e-3)
    passed = error @ np.asarray(found)
    cost = np.einsum("ij,jk,ik->i", passed, h, passed)
    np.testing.assert_allclose(cost, np.square(error) @ costs, rtol=1e-3)


@pytest.mark.parametrize("n", [1, 7, 128, 129, 300])
def test_regressions_are_those_of_the_quantizer(n):
    """At sizes that are halved once, twice and never."""
    x = np.random.default_rng(n).standard_normal((4 * n, n)).astype(np.float32)
    moment = x.T @ x / len(x)
    factor = prepare_hessian(moment, damping=0.0)
    rows, costs = regressions(jnp.asarray(moment))
    np.testing.assert_allclose(rows, factor.upper / factor.diagonal[:, None], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(costs, column_costs(jnp.asarray(moment)), rtol=1e-5)
