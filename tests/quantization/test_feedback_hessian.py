"""The factor of a second moment: exact, water-filling, and clear about what it cannot factor."""

import numpy as np
import pytest
from scipy.linalg import hilbert

from occ_jax.quantization.hessian import prepare_hessian


def second_moment(n, seed=0, samples=None):
    x = np.random.default_rng(seed).standard_normal((samples or 3 * n, n))
    return x.T @ x / len(x)


@pytest.mark.parametrize("n", [1, 2, 7, 96])
def test_it_factors_the_inverse(n):
    h = second_moment(n)
    factor = prepare_hessian(h, damping=0.1)
    damped = h + 0.1 * np.mean(np.diagonal(h)) * np.eye(n)
    assert np.array_equal(factor.upper, np.triu(factor.upper))
    assert (factor.diagonal > 0).all()
    assert np.allclose(factor.upper.T @ factor.upper @ damped, np.eye(n), atol=1e-12)
    assert np.allclose(factor.upper, np.linalg.cholesky(np.linalg.inv(damped)).T, rtol=1e-9)


def test_it_is_accurate_where_an_explicit_inverse_is_not():
    h = hilbert(9)  # condition number 5e11
    factor = prepare_hessian(h, damping=0.0)
    assert np.allclose(factor.upper @ h @ factor.upper.T, np.eye(9), atol=1e-5)


def test_the_diagonal_is_one_over_a_conditional_deviation():
    h = second_moment(6)
    factor = prepare_hessian(h, damping=0.0)
    for j in range(6):
        later = np.arange(j + 1, 6)
        explained = h[j, later] @ np.linalg.solve(h[np.ix_(later, later)], h[later, j]) if later.size else 0.0
        assert factor.diagonal[j] == pytest.approx((h[j, j] - explained) ** -0.5)


def test_steps_by_water_filling_are_optimal():
    """At high rate: of all steps of one total rate, those in proportion to the diagonal have the least distortion."""
    loudness = np.exp(np.random.default_rng(1).standard_normal(40))
    factor = prepare_hessian(second_moment(40) * np.outer(loudness, loudness))

    def distortion(steps):
        steps = steps / np.exp(np.mean(np.log(steps)))  # the rate is minus the mean log of the steps
        return np.mean(np.square(steps / factor.relative_steps)) / 12

    best = distortion(factor.relative_steps)
    log_det = np.mean(np.log(factor.diagonal))
    assert best == pytest.approx(np.exp(-2 * log_det) / 12)  # det(H)**(1/n) / 12: the feedback bound
    rng = np.random.default_rng(0)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(20):
            assert distortion(factor.relative_steps * np.exp(size * rng.standard_normal(40))) > best
    assert distortion(np.ones(40)) > 1.1 * best


def test_the_order_permutes_and_does_not_change_the_determinant():
    h = second_moment(12)
    order = np.argsort(-np.diagonal(h))
    ordered, natural = prepare_hessian(h, order=order), prepare_hessian(h)
    assert np.log(ordered.diagonal).sum() == pytest.approx(np.log(natural.diagonal).sum())
    again = prepare_hessian(h[np.ix_(order, order)])
    assert np.allclose(ordered.upper, again.upper)
    assert np.array_equal(ordered.relative_steps[order], ordered.diagonal)


def test_float32_input_is_factored_in_float64():
    h = second_moment(30).astype(np.float32)
    factor = prepare_hessian(h)
    assert factor.upper.dtype == np.float64
    assert h.dtype == np.float32


def test_a_damped_dead_channel_gets_the_largest_step():
    h = second_moment(8)
    h[3, :] = h[:, 3] = 0
    factor = prepare_hessian(h)
    assert factor.relative_steps.argmax() == 3


@pytest.mark.parametrize(
    ("spoil", "damping", "message"),
    [
        (lambda h: h.__setitem__((2, 2), np.nan), 0.01, "1 entries of the second moment are NaN"),
        (lambda h: h.__setitem__((0, 3), np.inf), 0.01, "NaN or infinite"),
        (lambda h: h.__setitem__((0, 3), h[0, 3] + 1), 0.01, "not symmetric"),
        (lambda h: h.__imul__(0), 0.01, "none of 8 channels"),
        (lambda h: (h.__setitem__(slice(3, 4), 0), h.__setitem__((slice(None), 3), 0)), 0.0, r"1 input .*first: \[3\]"),
        (lambda h: h.__isub__(10 * np.eye(8)), 0.01, "none of 8 channels"),
        (lambda h: None, -1.0, "damping is -1"),
        (lambda h: None, float("nan"), "damping is nan"),
    ],
)
def test_what_cannot_be_factored_is_refused(spoil, damping, message):
    h = second_moment(8)
    spoil(h)
    with pytest.raises(ValueError, match=message):
        prepare_hessian(h, damping=damping)


def test_too_little_text_is_singular_and_said_so():
    h = second_moment(20, samples=5)
    with pytest.raises(ValueError, match="singular at a damping of 0"):
        prepare_hessian(h - 1e-12 * np.eye(20), damping=0.0)
    prepare_hessian(h)


def test_shapes_and_orders_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="permutation of 3 columns"):
        prepare_hessian(np.eye(3), order=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="square matrix"):
        prepare_hessian(np.zeros((0, 0)))
