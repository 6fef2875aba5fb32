"""Integers with shared scales as an objective: values of the real quantizer, gradients that go straight through."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.learned import (
    affine_reconstruction,
    fed_back_error,
    fed_back_reconstruction,
    find_ranges,
    regressions,
)
from occ_jax.quantization import fit_affine, prepare_hessian
from occ_jax.quantization.integer_feedback import quantize_integers

T = jnp.asarray(np.random.default_rng(0).standard_normal((8, 32)), jnp.float32)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [4, 7, "channel", "tensor"])
def test_straight_through_integers_are_the_real_ones(group_size, symmetric, clip):
    y = T[:5, :15]
    options = {"group_size": group_size, "symmetric": symmetric, "clip": clip}
    quantizer = fit_affine(y, 3, **options)
    expected = quantizer.dequantize(quantizer.quantize(y))
    np.testing.assert_allclose(affine_reconstruction(y, 3, **options), expected, rtol=1e-6, atol=1e-6)


def test_the_error_falls_with_the_range_alone():
    y = jnp.asarray([[0.1, -0.4, 0.3, 2.0]])
    gradient = jax.grad(lambda y: jnp.square(affine_reconstruction(y, 3, group_size=4, symmetric=True) - y).sum())(y)
    np.testing.assert_allclose(gradient[0, :3], 0, atol=1e-6)
    # The error is a constant in steps, so that its square grows as the square of the largest entry.
    error = affine_reconstruction(y, 3, group_size=4, symmetric=True) - y
    assert float(gradient[0, 3]) == pytest.approx(2 * float(jnp.square(error).sum()) / 2.0, rel=2e-3)


def test_what_is_clipped_moves_its_own_error():
    y = jnp.concatenate([T[:1], jnp.asarray([[9.0]])], axis=1)
    options = {"group_size": 33, "symmetric": True, "clip": True}
    error = affine_reconstruction(y, 2, **options) - y
    assert float(error[0, -1]) < -1.0, "the outlier is beyond the range"
    scale = float(fit_affine(y, 2, **options).scale.item())

    def at_a_fixed_range(last):
        moved = y.at[0, -1].set(last)
        return jnp.square(jnp.clip(jnp.round(moved / scale), -2, 1) * scale - moved).sum()

    gradient = jax.grad(lambda y: jnp.square(affine_reconstruction(y, 2, **options) - y).sum())(y)
    # At the best range the error does not change with the range: what is left is that of the outlier itself.
    assert float(gradient[0, -1]) == pytest.approx(float(jax.grad(at_a_fixed_range)(9.0)), rel=0.3)


@pytest.mark.parametrize(("bits", "clip"), [(2, False), (2, True), (3, False), (3, True), (4, True)])
def test_the_expected_error_is_what_feedback_leaves(bits, clip):
    rng = np.random.default_rng(bits)
    mixing = np.eye(128) + 0.1 * rng.standard_normal((128, 128))
    x = rng.standard_normal((2048, 128)) @ mixing
    hessian = x.T @ x / len(x)
    w = rng.standard_normal((256, 128)).astype(np.float32)
    factor = prepare_hessian(hessian, damping=1e-6)
    result = quantize_integers(w, factor, bits=bits, group_size=64, clip=clip)
    error = w - np.asarray(result.quantizer.dequantize(result.q), np.float64)
    left = np.trace(error @ hessian @ error.T)
    costs = jnp.asarray(1 / np.square(factor.diagonal), jnp.float32)
    expected = float(fed_back_error(jnp.asarray(w), costs, bits, group_size=64, clip=clip).sum())
    # What is fed back widens the groups a little, more so the fewer bits there are.
    assert 0.65 < expected / left < 1.1


@pytest.mark.parametrize("clip", [False, True])
def test_draws_cost_what_is_expected(clip):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 64)) @ (np.eye(64) + 0.1 * rng.standard_normal((64, 64)))
    hessian = jnp.asarray(x.T @ x / len(x), jnp.float32)
    w = jnp.asarray(rng.standard_normal((32, 64)), jnp.float32)
    passed_on, costs_of_columns = regressions(hessian)
    ranges = find_ranges(w, costs_of_columns, 2, group_size=32) if clip else None

    @jax.vmap
    def cost(key):
        error = fed_back_reconstruction(w, passed_on, 2, key=key, group_size=32, ranges=ranges) - w
        return jnp.einsum("ij,jk,ik->i", error, hessian, error)

    costs = cost(jax.random.split(jax.random.key(0), 400))
    expected = fed_back_error(w, costs_of_columns, 2, group_size=32, clip=clip)
    # The square of an index beyond the range is the same in every draw; all else has an error bar.
    assert float(jnp.abs((costs.mean(0) - expected) / (costs.std(0) / 20)).max()) < 4.5


def test_a_draw_follows_the_ranges():
    """Wider groups, larger errors: the gradient of a draw's squared error is that of the squared step."""
    w = jnp.asarray([[0.5, 1.0, 2.0, 6.0]])

    def error(w):
        return jnp.square(fed_back_reconstruction(w, jnp.eye(4), 2, key=jax.random.key(0), group_size=4) - w).sum()

    value, gradient = jax.value_and_grad(error)(w)
    # Homogeneous of degree two, and only the largest entry moves the range.
    np.testing.assert_allclose(gradient, [[0, 0, 0, 2 * value / 6]], rtol=1e-4, atol=1e-5)


def _drawn(w, clip):
    costs = jnp.ones(w.shape[1])
    ranges = find_ranges(jax.lax.stop_gradient(w), costs, 2, group_size=8) if clip else None
    key = jax.random.key(0)
    return fed_back_reconstruction(w, jnp.eye(w.shape[1]), 2, key=key, group_size=8, ranges=ranges)


def test_ranges_that_were_found_follow_the_coefficients():
    """A part of the range, not a number: where all coefficients grow, so do their steps, and their errors."""
    ranges = find_ranges(T, jnp.ones(T.shape[1]), 2, group_size=8)
    assert float(ranges.share.min()) < 0.9
    draw = partial(fed_back_reconstruction, bits=2, key=jax.random.key(0), group_size=8, ranges=ranges)
    alone = jnp.eye(T.shape[1])
    np.testing.assert_allclose(draw(3 * T, alone), 3 * draw(T, alone), rtol=1e-5, atol=1e-5)


def test_what_later_columns_do_has_no_gradient():
    def made(passed_on):
        return fed_back_reconstruction(T, passed_on, 2, key=jax.random.key(0), group_size=8).sum()

    np.testing.assert_array_equal(jax.grad(made)(jnp.eye(T.shape[1])), 0)


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_lower_to_every_platform(clip, lowers_everywhere):
    lowers_everywhere(jax.grad(lambda t: affine_reconstruction(t, 3, group_size=8, clip=clip).sum()), T)
    costs = jnp.ones(T.shape[1])
    lowers_everywhere(jax.grad(lambda t: fed_back_error(t, costs, 2, group_size=8, clip=clip).sum()), T)
    lowers_everywhere(jax.grad(lambda t: _drawn(t, clip).sum()), T)
