"""Divergence of predictions, against the formula written out, and its gradient against differentiation of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.model import mean_divergence
from scipy.special import log_softmax


def operands(length: int):
    rng = np.random.default_rng(0)
    shapes = (length, 12), (300, 12), (length, 8), (300, 8)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def plain(states, own_head, hidden, head):
    ours, theirs = (jax.nn.log_softmax(x @ w.T) for x, w in ((states, own_head), (hidden, head)))
    return jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1))


@pytest.mark.parametrize("length", [1, 7, 300])
def test_value_and_gradient(length):
    given = operands(length)
    value, gradient = jax.jit(jax.value_and_grad(mean_divergence))(*given)
    states, own_head, hidden, head = (np.asarray(x, np.float64) for x in given)
    ours, theirs = log_softmax(states @ own_head.T, axis=1), log_softmax(hidden @ head.T, axis=1)
    np.testing.assert_allclose(value, np.mean(np.sum(np.exp(theirs) * (theirs - ours), 1)), rtol=1e-5)
    np.testing.assert_allclose(mean_divergence(*given), value, rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(plain)(*given), rtol=1e-4, atol=1e-6)


def test_the_same_predictions_do_not_diverge():
    states, head, *_ = operands(5)
    value, gradient = jax.value_and_grad(mean_divergence)(states, head, states, head)
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
