"""The product nearest to many quadratic forms: its two conditions, its loss, and what it is for."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.quantization.product_form import product_of_sums, token_leverages, token_weights


def forms(seed: int, kinds: int = 2, rows: int = 40, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows over several decades, and moments with unlike spectra."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 1.5, (kinds, rows)))
    roots = rng.standard_normal((kinds, n, n)) * np.exp(rng.normal(0, 1, (kinds, 1, n)))
    return weights, roots @ roots.swapaxes(1, 2)


def stein_loss(rows, moment, exact) -> float:
    """Mean of ``tr(F M^-1) - log det(F M^-1) - n`` over rows, ``M`` the product."""
    ratios = np.linalg.solve(rows[:, None, None] * moment, exact)
    _, logdet = np.linalg.slogdet(ratios)
    return float(np.mean(np.trace(ratios, axis1=1, axis2=2) - logdet) - len(moment))


def exact_forms(weights, moments) -> np.ndarray:
    return np.einsum("ki,kab->iab", weights, moments)


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_both_conditions_hold(kinds):
    weights, moments = forms(0, kinds)
    rows, moment = product_of_sums(weights, moments, damping=0.0)
    exact = exact_forms(weights, moments)
    np.testing.assert_allclose(moment, np.mean(exact / rows[:, None, None], axis=0), rtol=1e-6)
    np.testing.assert_allclose(rows, np.trace(np.linalg.solve(moment, exact), axis1=1, axis2=2) / 8, rtol=1e-3)


def test_a_product_is_its_own_nearest():
    weights, moments = forms(1)
    weights[1] = 3 * weights[0]
    rows, moment = product_of_sums(weights, moments, damping=0.0)
    expected = exact_forms(weights, moments)
    np.testing.assert_allclose(rows[:, None, None] * moment, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_nothing_near_is_better_and_matching_traces_is_worse():
    weights, moments = forms(2)
    exact = exact_forms(weights, moments)
    rows, moment = product_of_sums(weights, moments, damping=0.0)
    least = stein_loss(rows, moment, exact)
    rng = np.random.default_rng(0)
    for _ in range(20):
        bent = np.eye(8) + 0.03 * rng.standard_normal((8, 8))
        assert stein_loss(rows * np.exp(0.05 * rng.standard_normal(rows.size)), moment, exact) > least
        assert stein_loss(rows, bent @ moment @ bent.T, exact) > least
    traces = np.trace(exact, axis1=1, axis2=2)
    assert stein_loss(traces, exact.sum(0) / traces.sum(), exact) > 1.1 * least


def test_errors_made_with_the_product_cost_least_at_their_rate():
    """Errors of covariance ``(g_i H)^-1``, scaled to one rate, against those of a product that matches traces."""
    weights, moments = forms(3)
    exact = exact_forms(weights, moments)

    def cost(rows, moment):
        products = rows[:, None, None] * moment
        scale = np.exp(np.linalg.slogdet(products)[1].mean() / 8)  # one mean rate for all choices
        return scale * np.trace(np.linalg.solve(products, exact), axis1=1, axis2=2).mean()

    traces = np.trace(exact, axis1=1, axis2=2)
    assert cost(*product_of_sums(weights, moments, damping=0.0)) < 0.95 * cost(traces, exact.sum(0))


def test_a_row_without_weight_is_named():
    weights, moments = forms(4)
    weights[:, 7] = 0
    with pytest.raises(ValueError, match="row 7 costs nothing"):
        product_of_sums(weights, moments)


def test_tokens_give_back_the_forms_of_independent_inputs_and_gradients():
    """Then every token weighs one and has a leverage of one on average, and weights tell nothing of inputs."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6))
    gains = np.exp(rng.normal(0, 1, 10))
    d = rng.standard_normal((4000, 10)) * np.sqrt(gains)
    weights = np.asarray(token_weights(jnp.asarray(d, jnp.float32), jnp.asarray((d**2).mean(0), jnp.float32), 1e6))
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    plain, weighted = x.T @ x / 4000, (x.T * weights) @ x / 4000
    # A mean of 4000 products of unit variance times weights of variance 2 / 10; six entries of each row matter.
    error = np.linalg.solve(plain, weighted - plain)
    assert np.abs(error).max() < 6 * np.sqrt(2 * 2 / 10 / 4000) * np.sqrt(np.linalg.cond(plain))
    upper = np.linalg.cholesky(np.linalg.inv(plain)).T
    leverages = np.asarray(token_leverages(jnp.asarray(x, jnp.float32), jnp.asarray(upper, jnp.float32)))
    np.testing.assert_allclose(leverages, np.einsum("ti,ti->t", x, np.linalg.solve(plain, x.T).T) / 6, rtol=1e-3)
    np.testing.assert_allclose(leverages.mean(), 1, rtol=1e-4)


def test_no_token_weighs_more_than_it_may():
    d = jnp.array([[100.0, 0.0], [0.1, 0.1]])
    weights = token_weights(d, jnp.array([1.0, 1.0]), 20.0)
    np.testing.assert_allclose(weights, [20.0, 0.01], rtol=1e-6)


def test_token_functions_lower_everywhere(lowers_everywhere):
    d, x = jnp.ones((5, 3)), jnp.ones((5, 4))
    lowers_everywhere(functools.partial(token_weights, largest=20.0), d, jnp.ones(3))
    lowers_everywhere(token_leverages, x, jnp.eye(4))
