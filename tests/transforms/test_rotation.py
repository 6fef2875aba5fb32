"""Rotations: the matrix product, and the distribution of random ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.transforms import DCT, Identity, Rotation, apply_matrix, forward_rows, random_rotation


def test_rotation_is_the_matrix_product():
    rng = np.random.default_rng(0)
    matrix, _ = np.linalg.qr(rng.standard_normal((9, 9)))
    x = rng.standard_normal((2, 5, 9)).astype(np.float32)
    t = Rotation(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(t.forward(jnp.asarray(x)), np.einsum("ij,abj->abi", matrix, x), atol=1e-5)
    np.testing.assert_allclose(t.inverse(jnp.asarray(x)), np.einsum("ji,abj->abi", matrix, x), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 576])
def test_random_rotations_are_orthogonal(n: int):
    r = np.asarray(random_rotation(n, key=jax.random.key(n)).matrix, np.float64)
    np.testing.assert_allclose(r @ r.T, np.eye(n), atol=1e-5)


def test_random_rotation_follows_haars_measure():
    """Moments of the trace over O(n): E[tr] = 0, E[tr^2] = 1, E[tr^4] = 3 (Diaconis & Shahshahani, 1994)."""
    draws, n = 20_000, 5
    keys = jax.random.split(jax.random.key(0), draws)
    trace = np.asarray(jax.jit(jax.vmap(lambda key: jnp.trace(random_rotation(n, key=key).matrix)))(keys), np.float64)
    for power, expected in ((1, 0), (2, 1), (4, 3)):
        moment = trace**power
        assert abs(moment.mean() - expected) < 5 * moment.std() / np.sqrt(draws)


def test_reflections_are_as_likely_as_rotations():
    keys = jax.random.split(jax.random.key(1), 2_000)
    determinants = jax.vmap(lambda key: jnp.linalg.det(random_rotation(3, key=key).matrix))(keys)
    np.testing.assert_allclose(jnp.abs(determinants), 1, atol=1e-4)
    assert abs(float(jnp.sign(determinants).mean())) < 5 / np.sqrt(2_000)


def test_random_rotation_in_double_precision():
    with jax.enable_x64(True):
        r = random_rotation(33, key=jax.random.key(0), dtype=jnp.float64).matrix
        assert r.dtype == jnp.float64
        np.testing.assert_allclose(r @ r.T, np.eye(33), atol=1e-13)


def test_random_rotation_depends_on_the_key_only():
    a, b, c = (random_rotation(6, key=jax.random.key(i)).matrix for i in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(a - c).max()) > 0.1


def test_random_rotation_lowers_everywhere(lowers_everywhere):
    lowers_everywhere(lambda key: random_rotation(8, key=jax.random.wrap_key_data(key)).matrix, jnp.zeros(2, "uint32"))


def test_a_rotation_has_gradients_with_respect_to_its_matrix():
    t = random_rotation(4, key=jax.random.key(2))
    x, c = jnp.arange(4.0), jnp.ones(4)
    gradient = jax.grad(lambda t: jnp.vdot(c, t.forward(x)))(t)
    np.testing.assert_allclose(gradient.matrix, jnp.outer(c, x), atol=1e-6)


def test_apply_matrix_may_change_the_length():
    matrix = jnp.asarray(np.random.default_rng(3).standard_normal((2, 5)), jnp.float32)
    y = apply_matrix(matrix, jnp.ones((3, 5), jnp.bfloat16))
    assert y.shape == (3, 2)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y[0].astype(jnp.float32), matrix.sum(1), rtol=1e-2)


def test_bad_matrices_and_vectors():
    with pytest.raises((ValueError, TypeError), match="matrix"):
        Rotation(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="does not act on vectors of length 4"):
        Rotation(jnp.eye(3)).forward(jnp.ones(4))
    with pytest.raises(ValueError, match="n=0"):
        random_rotation(0, key=jax.random.key(0))


@pytest.mark.parametrize(
    "transform", [random_rotation(8, key=jax.random.key(0)), DCT(), Identity()], ids=["dense", "dct", "identity"]
)
def test_some_rows_of_a_product_are_rows_of_the_product(transform):
    x = jax.random.normal(jax.random.key(1), (8, 5))
    whole = transform.forward(x.T).T
    np.testing.assert_allclose(forward_rows(transform, x), whole, atol=1e-6)
    np.testing.assert_allclose(forward_rows(transform, x, jnp.asarray([6, 1])), whole[jnp.asarray([6, 1])], atol=1e-6)
