"""Rate-distortion-optimised rounding against exhaustive search, and as a trade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.entropy.tables import cost_bits, from_counts
from occ_jax.quantization import rdo_round

RNG = np.random.default_rng(7)
REACH = 6


def laplace_costs(rates) -> jnp.ndarray:
    """Code lengths of two-sided geometric laws on ``-REACH..REACH``, with an escape of 12 bits."""
    k = np.abs(np.arange(-REACH, REACH + 1))[None, :]
    p = np.exp(-k * np.asarray(rates)[:, None])
    bits = -np.log2(p / p.sum(axis=1, keepdims=True))
    return jnp.asarray(np.concatenate([bits, np.full((len(rates), 1), 12.0)], axis=1), jnp.float32)


def lagrangian(y, q, step, costs, contexts, lmbda):
    symbol = np.asarray(q) + REACH
    escape = costs.shape[1] - 1
    inside = (symbol >= 0) & (symbol < escape)
    bits = np.where(inside, np.asarray(costs)[contexts, np.where(inside, symbol, escape)], 12.0)
    return (np.asarray(y) - step * np.asarray(q)) ** 2 + lmbda * bits


@pytest.mark.parametrize("lmbda", [0.0, 0.01, 0.05, 0.3])
def test_agrees_with_exhaustive_search(lmbda):
    """The best of all indices is one of the three nearest as long as a bit is worth less than a squared step."""
    step, costs = 0.7, laplace_costs([0.3, 1.0, 2.5])
    y = RNG.laplace(size=(50, 9)).astype(np.float32)
    contexts = RNG.integers(0, 3, y.shape)
    q = rdo_round(
        jnp.asarray(y), jnp.array(step), costs, jnp.full(3, -REACH), lmbda, contexts=jnp.asarray(contexts, jnp.int32)
    )
    every = np.arange(-20, 21)
    all_costs = np.stack([lagrangian(y, np.full(y.shape, k), step, costs, contexts, lmbda) for k in every])
    nearest = np.rint(y / step)
    allowed = np.abs(every[:, None, None] - nearest[None]) <= 1
    best = np.where(allowed, all_costs, np.inf).min(axis=0)
    np.testing.assert_allclose(lagrangian(y, q, step, costs, contexts, lmbda), best, atol=1e-4)
    if lmbda <= 0.05:
        np.testing.assert_allclose(best, all_costs.min(axis=0), atol=1e-6)


def test_zero_multiplier_is_plain_rounding():
    y = jnp.asarray(RNG.standard_normal(1000) * 3, jnp.float32)
    q = rdo_round(y, jnp.array(0.5), laplace_costs([1.0]), jnp.array([-REACH]), 0.0)
    np.testing.assert_array_equal(q, jnp.round(y / 0.5).astype(jnp.int32))


def test_rate_falls_and_distortion_rises_with_the_multiplier():
    y = jnp.asarray(RNG.laplace(size=20_000), jnp.float32)
    costs = laplace_costs([1.0])
    rates, distortions = [], []
    for lmbda in (0.0, 0.02, 0.08, 0.2):
        q = rdo_round(y, jnp.array(1.0), costs, jnp.array([-REACH]), lmbda)
        rates.append(float(np.mean(lagrangian(0 * y, q, 0.0, costs, 0, 1.0))))
        distortions.append(float(np.mean((np.asarray(y) - np.asarray(q)) ** 2)))
    assert rates == sorted(rates, reverse=True)
    assert distortions == sorted(distortions)
    assert rates[-1] < 0.95 * rates[0]


def test_a_symbol_that_cannot_be_coded_is_avoided():
    costs = jnp.array([[3.0, jnp.inf, 3.0, 20.0]])
    q = rdo_round(jnp.array([0.1, -0.1]), jnp.array(1.0), costs, jnp.array([-1]), 0.01)
    np.testing.assert_array_equal(q, [1, -1])


def test_values_far_outside_the_table_become_escapes_not_neighbours():
    y = jnp.array([1e6, -1e6, 1e30, -1e30], jnp.float32)
    q = rdo_round(y, jnp.array(1.0), laplace_costs([1.0]), jnp.array([-REACH]), 0.5)
    assert np.all(np.abs(np.asarray(q, np.float64)) >= 1e6 - 1)


def test_compiles_for_every_accelerator(lowers_everywhere):
    costs = laplace_costs([1.0])
    lowers_everywhere(
        lambda y, lmbda: rdo_round(y, jnp.float32(0.5), costs, jnp.array([-REACH]), lmbda),
        jnp.zeros((3, 5)),
        jnp.array(0.1),
    )
    jitted = jax.jit(lambda y: rdo_round(y, jnp.float32(0.5), costs, jnp.array([-REACH]), 0.1))
    assert jitted(jnp.zeros((3, 5))).shape == (3, 5)


def test_a_table_of_the_coder_counts_an_escape_once():
    """Zero in the table at one bit, and everything else behind an escape of one bit and two bytes."""
    table = from_counts(np.array([1]), 0, precision=1)
    costs = cost_bits(table)[None]
    assert costs.tolist() == [[1.0, 17.0]]
    for lmbda, expected in ((1 / 16.5, 1), (1 / 15.5, 0)):  # an error of one squared step for sixteen bits
        assert rdo_round(jnp.array([1.0]), jnp.array(1.0), costs, jnp.array([0]), lmbda).tolist() == [expected]
