"""Rates against closed forms and the codec's own scales; gradients against finite differences and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.learned import (
    WATER_LMBDA,
    code_length,
    fitted_model,
    gaussian_control,
    relax,
    scale_field,
    scale_field_bits,
    water_filled,
)
from occ_jax.quantization.scales import CLASS_SHIFT, class_sigmas, fit_class_levels, scale_classes

KEY = jax.random.key(1)
RNG = np.random.default_rng(5)
FIELD = jnp.asarray(np.exp2(RNG.normal(size=(40, 1)) + RNG.normal(size=(1, 30))), jnp.float32)
T = 6 * FIELD * jnp.asarray(RNG.standard_normal((40, 30)), jnp.float32)


def test_a_field_of_scales_is_found_exactly_where_there_is_no_noise():
    rows, columns = scale_field(FIELD)
    np.testing.assert_allclose(rows * columns, jnp.square(FIELD), rtol=1e-4)


def test_the_field_is_that_of_the_codec():
    rows, columns = scale_field(T)
    levels = fit_class_levels(T)
    sigma = class_sigmas()[np.asarray(scale_classes(*levels, shift=CLASS_SHIFT))]
    # Classes are a quarter of an octave wide, and so are the roundings of rows and columns together.
    inside = (sigma > class_sigmas()[0]) & (sigma < class_sigmas()[-1])
    octaves = np.log2(np.sqrt(np.asarray(rows * columns)) / sigma)[inside]
    assert inside.mean() > 0.9
    assert np.abs(octaves).max() < 0.3
    assert abs(octaves.mean()) < 0.125


@pytest.mark.parametrize(
    ("scales", "shape"), [("tensor", (1, 1)), ("rows", (40, 1)), ("columns", (1, 30)), ("field", (40, 30))]
)
def test_scales_vary_where_they_should(scales, shape):
    rows, columns = scale_field(T, scales=scales)
    assert (len(np.unique(rows)), len(np.unique(columns))) == shape
    np.testing.assert_allclose(jnp.mean(jnp.square(T) / (rows * columns)), 1, rtol=1e-4)


def test_the_closed_form_is_the_mean_entropy_and_its_gradient_is_exact():
    rows, columns = (np.asarray(a, np.float64) for a in scale_field(T))
    expected = np.log2(np.sqrt(2 * np.pi * np.e * rows * columns)).mean()
    assert float(scale_field_bits(T)) == pytest.approx(expected, abs=1e-4)
    direction = jnp.asarray(RNG.standard_normal(T.shape), jnp.float32)
    slope = jnp.vdot(jax.grad(scale_field_bits)(T), direction)
    ahead, behind = (float(scale_field_bits(T + h * direction)) for h in (0.05, -0.05))
    assert float(slope) == pytest.approx((ahead - behind) / 0.1, rel=0.03)


@pytest.mark.parametrize(
    ("family", "make", "entropy"),
    [
        ("gaussian", lambda rng: rng.standard_normal((100, 200)), 0.5 * np.log2(2 * np.pi * np.e)),
        ("laplace", lambda rng: rng.laplace(size=(100, 200)), np.log2(2 * np.e)),
        ("generalized_gaussian", lambda rng: rng.laplace(size=(100, 200)), np.log2(2 * np.e)),
    ],
)
def test_code_lengths_are_entropies_at_high_rate(family, make, entropy):
    x = jnp.asarray(8 * make(np.random.default_rng(0)), jnp.float32)
    bits, gradient = jax.value_and_grad(code_length)(x, key=KEY, family=family)
    assert float(bits) == pytest.approx(entropy + 3, abs=0.02)
    # A rate in steps grows by one bit when everything doubles: Euler's theorem, whatever the model.
    assert float(jnp.vdot(gradient, x)) == pytest.approx(np.log2(np.e), rel=0.05)


def test_soft_rounding_brings_the_rate_down_to_the_true_one():
    x = jnp.asarray(np.random.default_rng(0).laplace(size=(100, 200)) * 0.5, jnp.float32)
    true = float(fitted_model(x, "laplace").bits(jnp.round(x)).mean())
    noisy, soft = (float(code_length(x, key=KEY, temperature=tau)) for tau in (None, 0.05))
    assert true + 0.03 < noisy
    assert soft == pytest.approx(true, abs=0.01)


def test_relaxed_indices_go_from_noise_to_rounding():
    t = jnp.linspace(-3.3, 3.3, 1001)
    noisy = relax(t, key=KEY)
    assert float(jnp.abs(noisy - t).max()) <= 0.5
    np.testing.assert_allclose(relax(t, key=KEY, temperature=50.0), noisy, atol=2e-3)
    sharp = relax(t, key=KEY, temperature=0.01)
    assert float(jnp.mean(jnp.abs(sharp - jnp.round(t)) < 0.02)) > 0.9


def test_rates_lower_to_every_platform(lowers_everywhere):
    for family, scales in (("gaussian", "field"), ("laplace", "tensor"), ("generalized_gaussian", "columns")):

        def gradient(t, family=family, scales=scales):
            return jax.grad(code_length)(t, key=KEY, family=family, scales=scales, temperature=0.5)

        lowers_everywhere(gradient, T)


def test_above_the_water_level_the_gradient_is_that_of_the_scale_field():
    def lagrangian(t):
        point = water_filled(t)
        return point.bits + WATER_LMBDA * point.distortion

    high = 40 * T
    np.testing.assert_allclose(jax.grad(lagrangian)(high), jax.grad(scale_field_bits)(high), atol=1e-3 * 1e-3)
    assert float(water_filled(high).distortion) == pytest.approx(1 / 12, rel=1e-3)
    low = water_filled(T / 1000)
    assert (float(low.bits), float(low.distortion)) == pytest.approx((0, float(jnp.square(T / 1000).mean())), rel=0.2)
    between = 0.02 * T
    step = 1e-3 * jnp.cos(jnp.arange(T.size, dtype=jnp.float32)).reshape(T.shape)
    difference = (lagrangian(between + step) - lagrangian(between - step)) / 2
    np.testing.assert_allclose(difference, (jax.grad(lagrangian)(between) * step).sum(), rtol=0.05, atol=1e-6)


def test_the_control_has_the_scales_of_the_matrix_and_nothing_else():
    made = gaussian_control(T, key=KEY)
    assert float(scale_field_bits(made)) == pytest.approx(float(scale_field_bits(T)), abs=0.05)
    correlation = np.corrcoef(np.asarray(made).ravel(), np.asarray(T).ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(T.size)
    small = gaussian_control(2.0**-14 * T, key=KEY)
    np.testing.assert_allclose(small, 2.0**-14 * made, rtol=1e-5, err_msg="the unit of the weights does not matter")
