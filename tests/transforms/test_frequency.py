"""Frequency transforms: against SciPy and against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.fftpack

from occ_jax.transforms import DCT, RealFFT, Transform

SIZES = (1, 2, 3, 7, 64, 101, 576)

# Compiled as a whole: one program is made sooner than its parts.
forward = jax.jit(lambda t, x: t.forward(x))
inverse = jax.jit(lambda t, x: t.inverse(x))


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((4, n))


@pytest.mark.parametrize("n", SIZES)
def test_dct_is_scipys(n: int):
    x = rows(n)
    np.testing.assert_allclose(forward(DCT(), jnp.asarray(x, jnp.float32)), scipy.fft.dct(x, norm="ortho"), atol=3e-5)
    np.testing.assert_allclose(inverse(DCT(), jnp.asarray(x, jnp.float32)), scipy.fft.idct(x, norm="ortho"), atol=3e-5)


@pytest.mark.parametrize("n", SIZES)
def test_real_fft_is_scipys_packed_spectrum(n: int):
    """SciPy's packing [y(0), Re y(1), Im y(1), ...], with both halves of the spectrum in one coefficient."""
    x = rows(n)
    weights = np.full(n, np.sqrt(2 / n))
    weights[0] = np.sqrt(1 / n)
    if n % 2 == 0:
        weights[-1] = np.sqrt(1 / n)
    expected = scipy.fftpack.rfft(x) * weights
    np.testing.assert_allclose(forward(RealFFT(), jnp.asarray(x, jnp.float32)), expected, atol=3e-5)
    np.testing.assert_allclose(inverse(RealFFT(), jnp.asarray(expected, jnp.float32)), x, atol=3e-5)


@pytest.mark.parametrize("n", SIZES)
def test_dct_in_double_precision(n: int):
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            forward(DCT(), jnp.asarray(rows(n))), scipy.fft.dct(rows(n), norm="ortho"), atol=1e-12
        )


@pytest.mark.parametrize("n", [5, 8])
def test_dct_is_its_defining_sum(n: int):
    j = np.arange(n)
    matrix = np.sqrt(2 / n) * np.cos(np.pi * (2 * j[None, :] + 1) * j[:, None] / (2 * n))
    matrix[0] /= np.sqrt(2)
    np.testing.assert_allclose(forward(DCT(), jnp.eye(n)).T, matrix, atol=1e-6)


@pytest.mark.parametrize("t", [DCT(), RealFFT()], ids=["dct", "real_fft"])
@pytest.mark.parametrize("n", [1, 9, 10])
def test_matrix_is_orthogonal(t: Transform, n: int):
    matrix = np.asarray(forward(t, jnp.eye(n)), np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-6)


def test_a_constant_lies_in_the_first_coefficient():
    for t in (DCT(), RealFFT()):
        y = forward(t, jnp.full((16,), 0.5))
        np.testing.assert_allclose(y, np.eye(16)[0] * 2, atol=1e-6)


@pytest.mark.parametrize("frequency", [1, 3, 7])
def test_a_wave_lies_in_its_two_coefficients(frequency: int):
    angle = 2 * np.pi * frequency * np.arange(16) / 16
    cosine, sine = (forward(RealFFT(), jnp.asarray(f(angle), jnp.float32)) for f in (np.cos, np.sin))
    np.testing.assert_allclose(cosine, np.eye(16)[2 * frequency - 1] * np.sqrt(8), atol=1e-5)
    np.testing.assert_allclose(sine, -np.eye(16)[2 * frequency] * np.sqrt(8), atol=1e-5)


def test_real_fft_gradient_passes_through_both_directions():
    t, x = RealFFT(), jnp.asarray(rows(9)[0], jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(inverse(t, jnp.tanh(forward(t, x))) ** 2))(x)
    y = forward(RealFFT(), x)
    # Orthonormal around a pointwise function: the chain rule in closed form.
    expected = inverse(RealFFT(), 2 * jnp.tanh(y) * (1 - jnp.tanh(y) ** 2))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
