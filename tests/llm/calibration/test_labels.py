"""Labels drawn from the model's predictions, and the gradient that they send back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from occ_llm.calibration import draw, head_gradient, label_bits


def random_probabilities(positions: int, vocab: int, seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).exponential(size=(positions, vocab)) ** 3
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("vocab", [1, 2, 37, 256, 257, 3000])
def test_draw_inverts_the_distribution_function(vocab):
    p = random_probabilities(200, vocab)
    bits = np.random.default_rng(1).integers(0, 2**32, 200, dtype=np.uint32)
    labels = np.asarray(draw(jnp.asarray(p), jnp.asarray(bits)))
    cumulative = np.cumsum(p.astype(np.float64), axis=1)
    target = bits / 2.0**32 * cumulative[:, -1]
    below = np.where(labels > 0, cumulative[np.arange(200), labels - 1], 0.0)
    assert (below <= target + 1e-5).all()
    assert (target <= cumulative[np.arange(200), labels] + 1e-5).all()


def test_labels_have_the_frequencies_of_the_model():
    p = random_probabilities(1, 300)
    bits = label_bits(jax.random.key(0), 0, count=1, length=100_000)[0]
    labels = jax.lax.map(lambda b: draw(jnp.asarray(p), b[None])[0], bits, batch_size=10_000)
    counts = np.bincount(np.asarray(labels), minlength=300)
    likely = p[0] * len(labels) > 10
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[0, likely], p[0, ~likely].sum())
    test = scipy.stats.chisquare(observed, expected / expected.sum() * observed.sum())
    assert test.pvalue > 1e-4


@pytest.mark.parametrize("bits", [0, 1, 2**31, 2**32 - 1])
def test_extreme_bits_stay_in_the_vocabulary(bits):
    p = random_probabilities(3, 301)
    labels = np.asarray(draw(jnp.asarray(p), jnp.full(3, bits, jnp.uint32)))
    assert ((labels >= 0) & (labels < 301)).all()


def test_impossible_tokens_are_not_drawn():
    p = np.zeros((64, 600), np.float32)
    p[:, [3, 299, 555]] = 1 / 3
    bits = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    labels = np.asarray(draw(jnp.asarray(p), jnp.asarray(bits)))
    assert set(labels) == {3, 299, 555}


def test_bits_of_a_window_do_not_depend_on_its_batch():
    key = jax.random.key(5)
    together = label_bits(key, 0, count=5, length=9)
    np.testing.assert_array_equal(together[2:4], label_bits(key, 2, count=2, length=9))
    assert len(np.unique(together)) == 45
    assert not np.array_equal(together, label_bits(jax.random.key(6), 0, count=5, length=9))


@pytest.mark.parametrize("positions", [1, 30, 256, 300])
def test_gradient_is_that_of_the_likelihood_of_the_labels(positions):
    rng = np.random.default_rng(positions)
    hidden = jnp.asarray(rng.standard_normal((positions, 8)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((50, 8)), jnp.float32)
    bits = jnp.asarray(rng.integers(0, 2**32, positions, dtype=np.uint32))
    result = head_gradient(hidden, head, bits)

    def loss(x):
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(x @ head.T), result.labels[:, None], 1))

    p = np.asarray(jax.nn.softmax(hidden @ head.T))
    np.testing.assert_array_equal(result.labels, draw(jnp.asarray(p), bits))
    np.testing.assert_allclose(result.hidden, jax.grad(loss)(hidden), atol=2e-5)
    np.testing.assert_allclose(result.logit_fisher, (p * (1 - p)).sum(0), rtol=1e-4, atol=1e-5)


def test_logit_fisher_is_the_mean_square_of_the_logit_gradient():
    """``p (1 - p)`` against many draws of ``(p - 1_label)^2``."""
    p = random_probabilities(1, 12)
    bits = label_bits(jax.random.key(1), 0, count=1, length=50_000)[0]
    labels = np.asarray(draw(jnp.asarray(np.repeat(p, 50_000, 0)), bits))
    squares = (p - np.eye(12)[labels]) ** 2
    error = squares.std(0) / np.sqrt(len(labels))
    assert (np.abs(squares.mean(0) - p[0] * (1 - p[0])) < 5 * error + 1e-6).all()


def test_head_lowers_everywhere(lowers_everywhere):
    lowers_everywhere(head_gradient, jnp.ones((300, 8)), jnp.ones((50, 8)), jnp.ones(300, jnp.uint32))
    lowers_everywhere(draw, jnp.ones((3, 50)), jnp.ones(3, jnp.uint32))
