"""Linear bases: Parseval, exactness where theory promises it, and least squares."""

import numpy as np
import pytest
from occ_toy.bases import BASES, fit, ladder
from occ_toy.representations import fit_basis, relative_error
from occ_toy.sources import SOURCES

ORTHONORMAL = ("fourier", "dct", "haar")
LINE, SQUARE = SOURCES["bandlimited"], SOURCES["patch"]


@pytest.mark.parametrize("source", [LINE, SQUARE], ids=["line", "square"])
@pytest.mark.parametrize("name", ORTHONORMAL)
def test_parseval(name, source):
    for size in ladder(source):
        design = BASES[name].design(source, size)
        np.testing.assert_allclose(design.T @ design / len(design), np.eye(size), atol=1e-12)
    draws = source.draw(4, stream=0)
    theta = fit(design, draws)
    np.testing.assert_allclose(np.square(theta).sum(1), np.square(draws).mean(1))
    np.testing.assert_allclose(theta @ design.T, draws, atol=1e-10)


@pytest.mark.parametrize("name", BASES)
def test_columns_have_a_mean_square_near_one(name):
    design = BASES[name].design(LINE, 64)
    assert design.shape == (256, 64)
    assert np.square(design).mean() == pytest.approx(1, rel=0.1)


def test_a_band_limited_sum_is_exact_in_enough_fourier_coefficients():
    fitted = fit_basis(LINE, "fourier", draws=4, others=8, accuracy=1e-12)
    assert fitted.theta.shape[1] == 32
    assert fitted.relative_error(fitted.theta) < 1e-20


def test_a_polynomial_is_exact_in_chebyshev():
    x = LINE.points()[:, 0]
    polynomial = (1 - 3 * x + 2 * x**3)[None, :]
    design = BASES["chebyshev"].design(LINE, 4)
    assert relative_error(fit(design, polynomial) @ design.T, polynomial) < 1e-20


def test_a_step_at_a_dyadic_point_takes_two_haar_coefficients():
    step = np.where(LINE.points()[:, 0] < 0.5, 1.0, 3.0)[None, :]
    theta = fit(BASES["haar"].design(LINE, 256), step)
    assert np.flatnonzero(np.abs(theta[0]) > 1e-10).tolist() == [0, 1]


def test_a_convolution_has_one_fourier_coefficient_for_each_pair_of_equal_frequencies():
    theta = fit(BASES["fourier"].design(SQUARE, 256), SOURCES["convolution"].draw(1, stream=0))
    used = np.flatnonzero(np.abs(theta[0]) > 1e-9 * np.abs(theta).max())
    frequency = (np.arange(16) + 1) // 2
    assert all(frequency[i // 16] == frequency[i % 16] for i in used)


def test_sizes_grow_until_the_fit_is_accurate():
    coarse, fine = (fit_basis(LINE, "dct", draws=4, others=8, accuracy=a) for a in (0.5, 1e-3))
    assert coarse.theta.shape[1] < fine.theta.shape[1]
    assert fine.relative_error(fine.theta) <= 1e-3
    hopeless = fit_basis(SOURCES["ar1"], "chebyshev", draws=4, others=8, accuracy=1e-9)
    assert hopeless.theta.shape[1] == max(ladder(SOURCES["ar1"]))
    assert hopeless.relative_error(hopeless.theta) > 1e-9
