"""Sources: shapes, seeds, and the closed forms of the AR(1) path."""

import jax.numpy as jnp
import numpy as np
import pytest
from occ_toy.sources import CORRELATION, NUM_VALUES, SOURCES, ar1_covariance

from occ_jax.metrics import ar1_coding_gain, coding_gain, rate_at_distortion


@pytest.mark.parametrize("name", SOURCES)
def test_draws_are_functions_on_the_grid_and_the_same_in_every_run(name):
    source = SOURCES[name]
    draws = source.draw(3, stream=0)
    assert draws.shape == (3, NUM_VALUES)
    assert source.points().shape == (NUM_VALUES, source.num_axes)
    assert np.isfinite(draws).all()
    assert np.square(draws).mean() > 0.01
    np.testing.assert_array_equal(draws, source.draw(3, stream=0))
    assert not np.array_equal(draws, source.draw(3, stream=1))


def test_ar1_draws_have_the_covariance_of_the_formula():
    draws = SOURCES["ar1"].draw(4000, stream=2)
    error = draws.T @ draws / len(draws) - ar1_covariance(NUM_VALUES)
    # Standard error of a product of unit Gaussians: at most sqrt(2 / n).
    assert np.abs(error).max() < 6 * np.sqrt(2 / len(draws))


def test_ar1_spectrum_gives_the_closed_form_of_its_coding_gain():
    spectrum = np.linalg.eigvalsh(ar1_covariance(64))
    assert float(coding_gain(jnp.asarray(spectrum, jnp.float32))) == pytest.approx(
        ar1_coding_gain(CORRELATION, 64), rel=1e-4
    )


def test_ar1_rate_is_the_closed_form_below_the_smallest_eigenvalue():
    n, distortion = 64, 0.01
    spectrum = np.linalg.eigvalsh(ar1_covariance(n))
    assert distortion < spectrum.min()
    determinant = (n - 1) * np.log2(1 - CORRELATION**2)  # log2 det of the covariance
    rate = float(rate_at_distortion(jnp.asarray(spectrum, jnp.float32), jnp.float32(distortion)))
    assert rate == pytest.approx(0.5 * (determinant / n - np.log2(distortion)), rel=1e-4)


def test_a_sawtooth_has_the_variance_of_a_uniform_distribution():
    assert np.square(SOURCES["sawtooth"].draw(500, stream=2)).mean() == pytest.approx(1 / 3, rel=0.01)


def test_a_convolution_is_circulant():
    matrix = SOURCES["convolution"].draw(1, stream=0).reshape(16, 16)
    np.testing.assert_allclose(np.roll(matrix, (1, 1), (0, 1)), matrix, atol=1e-12)


def test_a_smooth_kernel_has_few_singular_values():
    singular = np.linalg.svd(SOURCES["integral"].draw(1, stream=0).reshape(16, 16))[1]
    assert np.square(singular[6:]).sum() < 1e-3 * np.square(singular).sum()
