"""Fast Walsh-Hadamard transform: against dense matrices, for every kind of size, and in cache-sized groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.transforms import (
    Hadamard,
    hadamard,
    hartley_matrix,
    random_hadamard,
    sylvester_matrix,
)


def dense(n: int) -> np.ndarray:
    """The definition, from SciPy's own Hadamard matrix and Fourier transform."""
    odd = n
    while odd % 2 == 0:
        odd //= 2
    spectrum = scipy.fft.fft(np.eye(odd), norm="ortho")
    return np.kron(spectrum.real - spectrum.imag, scipy.linalg.hadamard(n // odd) / np.sqrt(n // odd))


forward = jax.jit(lambda t, x: t.forward(x))
inverse = jax.jit(lambda t, x: t.inverse(x))


def rows(count: int, n: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(n).standard_normal((count, n)), jnp.float32)


@pytest.mark.parametrize("exponent", range(8))
def test_sylvester_matrix_is_scipys(exponent: int):
    n = 2**exponent
    np.testing.assert_allclose(sylvester_matrix(exponent) * np.sqrt(n), scipy.linalg.hadamard(n), rtol=1e-15)


@pytest.mark.parametrize("size", [1, 3, 9, 19, 43, 127, 255])
def test_hartley_matrix_is_flat_symmetric_and_orthogonal(size: int):
    c = hartley_matrix(size)
    np.testing.assert_array_equal(c, c.T)
    np.testing.assert_allclose(c @ c, np.eye(size), atol=1e-14 * size)
    assert np.abs(c).max() <= np.sqrt(2 / size) * (1 + 1e-12)


# Powers of two with 1, 2 and 3 factors; odd parts in a dense matrix, merged into a factor, as a factor, by FFT.
@pytest.mark.parametrize("n", [1, 2, 8, 32, 64, 128, 1024, 4096, 9, 63, 96, 576, 1536, 2432, 4864, 65, 130, 794, 2056])
def test_agrees_with_the_dense_matrix(n: int):
    x = rows(3, n)
    t = random_hadamard(n, key=jax.random.key(n))
    expected = (np.asarray(x, np.float64) * np.asarray(t.signs)) @ dense(n).T
    np.testing.assert_allclose(forward(t, x), expected, atol=2e-5)


@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_any_size_and_signs(n: int, seed: int):
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.asarray([-1, 1], np.int8), n)
    x = rng.standard_normal(n).astype(np.float32)
    t = Hadamard(jnp.asarray(signs))
    y = forward(t, jnp.asarray(x))
    np.testing.assert_allclose(y, dense(n) @ (signs * x), atol=2e-5)
    np.testing.assert_allclose(inverse(t, y), x, atol=2e-5)


@pytest.mark.parametrize("n", [8, 576, 514])
def test_without_signs_it_is_its_own_inverse(n: int):
    x = rows(2, n)
    t = hadamard(n)
    np.testing.assert_allclose(forward(t, forward(t, x)), x, atol=1e-5)
    np.testing.assert_allclose(forward(t, x), inverse(t, x), atol=1e-6)


@pytest.mark.parametrize("n", [64, 576, 1536, 4864, 514])
def test_an_outlier_is_spread_over_every_coefficient(n: int):
    spike = jnp.zeros((n,)).at[n // 3].set(1.0)
    y = forward(random_hadamard(n, key=jax.random.key(0)), spike)
    assert jnp.abs(y).max() <= np.sqrt(2 / n) * (1 + 1e-5)


def test_outputs_of_spiky_inputs_are_nearly_gaussian():
    """Student's t with 3 degrees of freedom has no fourth moment; sums of 1,536 signed entries look Gaussian."""
    x = jnp.asarray(np.random.default_rng(0).standard_t(3, (64, 1536)), jnp.float32)
    y = forward(random_hadamard(1536, key=jax.random.key(1)), x)
    # Rows keep their own scale: standardise each before pooling.
    y = y / jnp.sqrt(jnp.mean(y * y, axis=1, keepdims=True))
    assert abs(float(jnp.mean(y**4)) - 3) < 5 * np.sqrt(24 / y.size) + 0.01


# More than two groups of 2**17 entries: groups that divide the rows, and groups that leave a remainder.
BIG = {"even": (288, 1024), "remainder": (271, 1025 * 2), "merged": (640, 576)}


@pytest.mark.parametrize(("count", "n"), BIG.values(), ids=BIG.keys())
def test_large_arrays_go_through_the_same_transform(count: int, n: int):
    x = rows(count, n)
    t = random_hadamard(n, key=jax.random.key(7))
    y = forward(t, x)
    pick = np.asarray([0, 1, count // 2, count - 1])
    np.testing.assert_allclose(y[pick], forward(t, x[pick]), atol=2e-5)
    np.testing.assert_allclose(inverse(t, y), x, atol=3e-5)
    np.testing.assert_allclose(jax.jit(t.forward)(x.reshape(1, count, n))[0], y, atol=2e-5)


def test_large_arrays_under_transformations(lowers_everywhere):
    count, n = 131, 4096  # A prime number of rows leaves a remainder.
    x = rows(count, n)
    t = random_hadamard(n, key=jax.random.key(8))
    c = jnp.cos(x)
    gradient = jax.grad(lambda x: jnp.vdot(c, forward(t, x)))(x)
    np.testing.assert_allclose(gradient, inverse(t, c), atol=2e-5)
    stacked = jnp.stack([x, c])
    np.testing.assert_allclose(jax.vmap(t.forward)(stacked), forward(t, stacked), atol=2e-5)
    lowers_everywhere(forward, t, x)


def test_rows_sharded_over_devices():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows", None))
    x = rows(96, 4096)
    t = random_hadamard(4096, key=jax.random.key(9))
    sharded = jax.jit(t.forward, in_shardings=sharding, out_shardings=sharding)(jax.device_put(x, sharding))
    np.testing.assert_allclose(sharded, forward(t, x), atol=2e-5)


def test_vectors_of_another_length():
    with pytest.raises(ValueError, match="Hadamard of size 8 got vectors of length 6"):
        hadamard(8).forward(jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="Hadamard of size 8 got vectors of length 6"):
        hadamard(8).inverse(jnp.ones((2, 6)))


@pytest.mark.parametrize("n", [0, -3])
def test_sizes_that_do_not_exist(n: int):
    with pytest.raises(ValueError, match=f"got n={n}"):
        hadamard(n)
    with pytest.raises(ValueError, match=f"got n={n}"):
        random_hadamard(n, key=jax.random.key(0))


@pytest.mark.parametrize("signs", [np.ones((2, 2), np.int8), np.ones(4, np.float32)], ids=["matrix", "float"])
def test_signs_of_the_wrong_kind(signs: np.ndarray):
    with pytest.raises((ValueError, TypeError), match="signs"):
        Hadamard(jnp.asarray(signs))


def test_random_signs_are_balanced_and_depend_on_the_key():
    a, b = (random_hadamard(10_000, key=jax.random.key(i)).signs for i in (0, 1))
    assert set(np.unique(a)) == {-1, 1}
    # A sum of n fair signs has standard deviation sqrt(n).
    assert abs(int(a.astype(jnp.int32).sum())) < 500
    assert abs(int((a * b).astype(jnp.int32).sum())) < 500
