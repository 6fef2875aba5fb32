"""Tokens whose gradients and inputs depend on each other: what one odd token says of all the others."""

import jax.numpy as jnp
import numpy as np
from occ_llm.calibration.weighting import LARGEST_WEIGHT, Tokens, weighted_moments

WINDOWS, LENGTH, N, ROWS = 40, 64, 12, 9


def tokens(seed: int, *, sink: float) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and gradients; the first token of every window has one input, and gradients that are larger."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((WINDOWS, LENGTH, N)) * np.exp(rng.normal(0, 0.5, N))
    d = rng.standard_normal((WINDOWS, LENGTH, ROWS)) * np.exp(rng.normal(0, 0.5, ROWS))
    x[:, 0] = rng.standard_normal(N)
    d[:, 0] *= sink
    return x.astype(np.float32), d.astype(np.float32)


def fitted(x: np.ndarray, d: np.ndarray, batch: int = WINDOWS) -> tuple[np.ndarray, np.ndarray]:
    """Moment, and Fisher matrix of two kinds of layers together."""
    batches = [
        Tokens(
            jnp.asarray(x[i : i + batch]),
            {"a": jnp.asarray(d[i : i + batch, :, :4]), "b": jnp.asarray(d[i : i + batch, :, 4:])},
        )
        for i in range(0, WINDOWS, batch)
    ]
    moment, fisher = weighted_moments(batches)
    count = WINDOWS * LENGTH
    rows = np.concatenate([np.diagonal(fisher[kind].mean(count)) for kind in "ab"])
    return moment.mean(count), rows


def test_one_token_does_not_speak_for_the_others():
    """Across the one input of the first tokens errors cost what the other tokens say; along it, much more."""
    x, d = tokens(0, sink=40.0)
    moment, rows = fitted(x, d)
    plain = (d[:, 1:].astype(np.float64) ** 2).mean((0, 1))
    assert (np.square(d).mean((0, 1)) > 10 * plain).all(), "the mean over all tokens is that of the first ones"
    others = x[:, 1:].reshape(-1, N)
    direction = x[0, 0] / np.linalg.norm(x[0, 0])
    rng = np.random.default_rng(1)
    for _ in range(5):
        e = rng.standard_normal(N)
        across = e - e @ direction * direction
        expected = plain * np.square(others @ across).mean()
        np.testing.assert_allclose(rows * (across @ moment @ across), expected, rtol=0.35)
    along = rows * (direction @ moment @ direction)
    assert (along > 3 * plain * np.square(others @ direction).mean()).all()


def test_like_tokens_are_averaged():
    """Without odd tokens the product is the plain one, up to sampling."""
    x, d = tokens(2, sink=1.0)
    moment, rows = fitted(x, d)
    flat = x.reshape(-1, N).astype(np.float64)
    plain = np.einsum("i,jk->ijk", np.square(d).mean((0, 1)), flat.T @ flat / len(flat))
    found = np.einsum("i,jk->ijk", rows, moment)
    assert np.linalg.norm(found - plain) < 0.1 * np.linalg.norm(plain)


def test_batches_change_nothing_but_rounding():
    x, d = tokens(3, sink=40.0)
    for one, other in zip(fitted(x, d), fitted(x, d, batch=7), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_a_layer_without_gradient_has_no_cost():
    """As where only one token is seen and attention has nothing to choose."""
    x, d = tokens(4, sink=1.0)
    d[..., 4:] = 0
    moment, rows = fitted(x, d)
    assert np.isfinite(moment).all()
    assert not rows[4:].any()
    assert rows[:4].all()


def test_the_largest_weight_bounds_a_token():
    x, d = tokens(5, sink=1e4)
    moment, _ = fitted(x, d)
    bound = LARGEST_WEIGHT * x.reshape(-1, N).T @ x.reshape(-1, N) / (WINDOWS * LENGTH)
    assert np.linalg.eigvalsh(bound - moment).min() > -1e-4 * np.trace(bound)
