"""Distortion measures: definitions, closed forms, and what they mean for a layer's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.metrics import hessian_weighted_error, mse, sqnr_db

PAIRWISE = pytest.mark.parametrize("measure", [mse, sqnr_db], ids=lambda f: f.__name__)


@pytest.fixture
def layer() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 8))
    x = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8))
    return {"w": w, "w_hat": w + 0.1 * rng.standard_normal((5, 8)), "x": x, "g": rng.uniform(0.5, 2, 5)}


def single(a: np.ndarray) -> jax.Array:
    return jnp.asarray(a, jnp.float32)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_mse_and_sqnr_are_their_definitions(layer, axis):
    w, w_hat = layer["w"], layer["w_hat"]
    error = np.square(w - w_hat)
    np.testing.assert_allclose(mse(single(w), single(w_hat), axis), error.mean(axis), rtol=1e-4)
    ratio = np.square(w).sum(axis) / error.sum(axis)
    np.testing.assert_allclose(sqnr_db(single(w), single(w_hat), axis), 10 * np.log10(ratio), rtol=1e-4)


@PAIRWISE
def test_jit_vmap_gradient_and_lowering(measure, layer, lowers_everywhere):
    w, w_hat = single(layer["w"]), single(layer["w_hat"])
    np.testing.assert_allclose(jax.jit(measure)(w, w_hat), measure(w, w_hat), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(measure)(w, w_hat), measure(w, w_hat, 1), rtol=1e-5)
    assert jnp.isfinite(jax.grad(measure, argnums=1)(w, w_hat)).all()
    lowers_everywhere(measure, w, w_hat)


@PAIRWISE
def test_mixed_precision_is_measured_in_the_wider(measure):
    x = jnp.asarray([0.1, 0.2, 0.3])
    x_hat = x.astype(jnp.bfloat16)
    assert measure(x, x_hat).dtype == jnp.float32
    np.testing.assert_allclose(measure(x, x_hat), measure(x, x_hat.astype(jnp.float32)))
    with jax.enable_x64(True):
        assert measure(jnp.ones(2, jnp.float64), jnp.zeros(2, jnp.float32)).dtype == jnp.float64


def test_a_perfect_reconstruction():
    x = jnp.arange(1.0, 4.0)
    assert mse(x, x) == 0
    assert sqnr_db(x, x) == jnp.inf


def test_one_more_bit_is_worth_six_decibels():
    x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, 200_000), jnp.float32)
    coarse, fine = (sqnr_db(x, step * (jnp.floor(x / step) + 0.5)) for step in (2 / 64, 2 / 128))
    np.testing.assert_allclose(fine - coarse, 20 * np.log10(2), atol=0.03)


def test_uniform_noise_has_a_twelfth_of_the_squared_step():
    x, step = jnp.asarray(np.random.default_rng(2).standard_normal(200_000), jnp.float32), 0.05
    measured = float(mse(x, step * jnp.round(x / step)))
    # The variance of a squared uniform error is step^4 / 180: five standard deviations of the mean.
    assert abs(measured - step**2 / 12) < 5 * step**2 / np.sqrt(180 * x.size)


def test_hessian_weighted_error_is_the_error_of_the_outputs(layer):
    w, w_hat, x, g = (layer[k] for k in ("w", "w_hat", "x", "g"))
    hessian = x.T @ x / len(x)
    outputs = np.square(x @ (w - w_hat).T).mean(0)
    args = single(w), single(w_hat), single(hessian)
    np.testing.assert_allclose(hessian_weighted_error(*args), outputs.sum(), rtol=1e-4)
    np.testing.assert_allclose(hessian_weighted_error(*args, row_weights=single(g)), (g * outputs).sum(), rtol=1e-4)
    fisher = np.diag(g) + 0.1 * np.outer(g, g)
    expected = np.einsum("ij,jk,kl,il->", fisher, w - w_hat, hessian, w - w_hat)
    np.testing.assert_allclose(hessian_weighted_error(*args, row_weights=single(fisher)), expected, rtol=1e-4)


def test_hessian_weighted_error_with_white_inputs_is_the_squared_error(layer):
    w, w_hat = single(layer["w"]), single(layer["w_hat"])
    np.testing.assert_allclose(hessian_weighted_error(w, w_hat, jnp.eye(8)), mse(w, w_hat) * w.size, rtol=1e-5)


def test_hessian_weighted_error_does_not_depend_on_the_basis(layer):
    w, w_hat, x = (layer[k] for k in ("w", "w_hat", "x"))
    rotation, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))
    hessian = x.T @ x
    before = hessian_weighted_error(single(w), single(w_hat), single(hessian))
    after = hessian_weighted_error(
        single(w @ rotation), single(w_hat @ rotation), single(rotation.T @ hessian @ rotation)
    )
    np.testing.assert_allclose(after, before, rtol=1e-4)


def test_hessian_weighted_error_gradient_and_lowering(layer, lowers_everywhere):
    w, w_hat, hessian = single(layer["w"]), single(layer["w_hat"]), single(layer["x"].T @ layer["x"] / 200)
    gradient = jax.grad(hessian_weighted_error, argnums=1)(w, w_hat, hessian)
    np.testing.assert_allclose(gradient, 2 * (w_hat - w) @ hessian, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        jax.jit(hessian_weighted_error)(w, w_hat, hessian), hessian_weighted_error(w, w_hat, hessian), rtol=1e-5
    )
    lowers_everywhere(hessian_weighted_error, w, w_hat, hessian)


def test_hessian_weighted_error_in_double_precision(layer):
    with jax.enable_x64(True):
        w, w_hat, x, g = (jnp.asarray(layer[k]) for k in ("w", "w_hat", "x", "g"))
        value = hessian_weighted_error(w, w_hat, x.T @ x, row_weights=g)
        expected = np.einsum("i,ij,jk,ik->", g, w - w_hat, x.T @ x, w - w_hat)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
