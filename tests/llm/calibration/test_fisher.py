"""The Fisher information against its closed form, in which no label is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import calibrate
from occ_llm.folding import fold_norms
from occ_llm.roles import EMBEDDING, HEAD, linear_name

DRAWS = 400


def exact_fisher(config, naive, weights, tokens, name) -> np.ndarray:
    """``sum over s of J^T (diag(p) - p p^T) J`` with ``J`` the Jacobian of the logits at s by the outputs at t.

    Labels at different positions are drawn independently, so their contributions add up.
    """
    width = config.hidden_size if name == EMBEDDING else weights[name].shape[0]
    dtype = weights[EMBEDDING].dtype

    def logits(probe):
        return naive.logits(config, weights, tokens, {name: probe})

    zero = jnp.zeros((len(tokens), width), dtype)
    p = np.asarray(jax.nn.softmax(logits(zero)))
    jacobian = np.asarray(jax.jit(jax.jacrev(logits))(zero))  # positions of logits, vocabulary, positions of y, outputs
    covariance = np.einsum("sv,vw->svw", p, np.eye(config.vocab_size)) - np.einsum("sv,sw->svw", p, p)
    return np.einsum("svti,svw,swtj->ij", jacobian, covariance, jacobian, optimize=True) / len(tokens)


@pytest.fixture(scope="module")
def one_window():
    return np.random.default_rng(7).integers(0, 37, 6, dtype=np.int32)


@pytest.fixture
def many_draws(config, naive, one_window):
    """The statistics of one window seen many times, each time with labels of its own."""
    weights = naive.weights(config, 2)
    statistics = calibrate(config, weights, np.tile(one_window, (DRAWS, 1)), key=jax.random.key(0))
    return dict(fold_norms(config, weights)), statistics


@pytest.mark.parametrize(
    "name", [EMBEDDING, linear_name(0, "o"), linear_name(0, "down"), linear_name(1, "o"), linear_name(1, "down")]
)
def test_the_mean_over_labels_is_the_closed_form(config, naive, one_window, many_draws, name):
    weights, statistics = many_draws
    exact = exact_fisher(config, naive, weights, one_window, name)
    np.testing.assert_allclose(statistics.fisher(name).sum(), np.trace(exact), rtol=0.1)
    diagonal, expected = statistics.fisher(name), np.diagonal(exact)
    # A sum of squares of DRAWS gradients, heavier tailed than a Gaussian's: standard error about 2 / sqrt(DRAWS).
    assert np.abs(diagonal - expected).max() < 6 * 2 / np.sqrt(DRAWS) * expected.max()
    error = np.linalg.norm(statistics.fisher_matrix(name) - exact) / np.linalg.norm(exact)
    assert error < 0.25


def test_labels_of_the_text_would_give_something_else(config, naive, one_window):
    """The empirical Fisher (labels from the text) of a random network is far from the true one."""
    weights = dict(fold_norms(config, naive.weights(config, 2)))
    name = linear_name(1, "down")

    def loss(probe):
        log_p = jax.nn.log_softmax(naive.logits(config, weights, one_window, {name: probe}))
        return -jnp.sum(jnp.take_along_axis(log_p[:-1], one_window[1:, None], 1))

    g = np.asarray(jax.grad(loss)(jnp.zeros((6, config.hidden_size))))
    empirical = (g**2).sum() / 5
    true = np.trace(exact_fisher(config, naive, weights, one_window, name))
    assert abs(empirical / true - 1) > 0.1


def test_gradients_include_the_effect_on_later_tokens(config, naive, one_window):
    """Keys and values of the first block matter for the tokens after them, the last block's MLP for its own alone."""
    weights = naive.weights(config, 2)
    folded = dict(fold_norms(config, weights))
    for name, reaches in ((linear_name(0, "v"), True), (linear_name(1, "up"), False)):

        def own_loss_only(probe, name=name):
            """Negative log-likelihood of a fixed label at the last position."""
            return -jax.nn.log_softmax(naive.logits(config, folded, one_window, {name: probe}))[-1, 0]

        g = np.asarray(jax.grad(own_loss_only)(jnp.zeros((6, folded[name].shape[0]))))
        assert (np.abs(g[:-1]).max() > 0) == reaches


def test_fisher_of_the_logits_is_the_mean_variance_of_a_label(config, naive, one_window, many_draws):
    weights, statistics = many_draws
    p = np.asarray(jax.nn.softmax(naive.logits(config, weights, one_window)))
    np.testing.assert_allclose(statistics.fisher(HEAD), (p * (1 - p)).mean(0), rtol=1e-4, atol=1e-7)


def test_a_window_of_one_token(config, naive, one_window):
    weights = naive.weights(config, 2)
    statistics = calibrate(config, weights, np.tile(one_window[:1], (DRAWS, 1)), key=jax.random.key(1))
    exact = exact_fisher(config, naive, dict(fold_norms(config, weights)), one_window[:1], EMBEDDING)
    error = np.linalg.norm(statistics.fisher_matrix(EMBEDDING) - exact) / np.linalg.norm(exact)
    assert error < 0.25
