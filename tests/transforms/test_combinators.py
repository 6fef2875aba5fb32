"""Combinators: algebra, and what each does to an array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from occ_jax.transforms import (
    DCT,
    AlongAxis,
    Blockwise,
    Chain,
    Identity,
    Inverse,
    RealFFT,
    Rotation,
    Transform,
    along_axis,
    blockwise,
    chain,
    hadamard,
    identity,
    inverse,
    random_rotation,
)


@pytest.fixture
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((5, 12)), jnp.float32)


def matrix_of(t: Transform, n: int) -> np.ndarray:
    """The matrix of a transform: column j is the image of the unit vector j."""
    return np.asarray(t.forward(jnp.eye(n))).T


def test_chain_multiplies_matrices_from_right_to_left():
    a, b = (random_rotation(6, key=jax.random.key(i)) for i in (0, 1))
    np.testing.assert_allclose(matrix_of(chain(a, b), 6), np.asarray(b.matrix) @ np.asarray(a.matrix), atol=1e-6)


def test_chain_simplifies():
    a, b, c = DCT(), RealFFT(), hadamard(4)
    assert chain(chain(a, b), identity(), c).transforms == (a, b, c)  # type: ignore[attr-defined]
    assert chain(a, identity()) is a
    assert isinstance(chain(), Identity)


def test_empty_chain_is_the_identity(x):
    t = Chain(())
    assert t.is_orthonormal
    np.testing.assert_array_equal(t.inverse(t.forward(x)), x)


def test_inverse_is_an_involution():
    t = DCT()
    assert inverse(inverse(t)) is t
    assert isinstance(inverse(t), Inverse)


def test_inverse_of_a_rotation_is_its_transpose():
    r = random_rotation(7, key=jax.random.key(5))
    np.testing.assert_allclose(matrix_of(inverse(r), 7), np.asarray(r.matrix).T, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_along_axis_is_the_transform_of_that_axis(axis: int):
    x = np.random.default_rng(1).standard_normal((4, 6, 5)).astype(np.float32)
    matrix = np.asarray(random_rotation(x.shape[axis], key=jax.random.key(2)).matrix)
    expected = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    t = along_axis(Rotation(jnp.asarray(matrix)), axis)
    np.testing.assert_allclose(t.forward(jnp.asarray(x)), expected, atol=1e-5)
    np.testing.assert_allclose(t.inverse(jnp.asarray(expected)), x, atol=1e-5)


def test_both_sides_of_a_weight():
    """Rows and columns: W -> A W B^T."""
    w = jnp.asarray(np.random.default_rng(2).standard_normal((6, 8)), jnp.float32)
    a, b = random_rotation(6, key=jax.random.key(0)), random_rotation(8, key=jax.random.key(1))
    t = chain(b, along_axis(a, 0))
    np.testing.assert_allclose(t.forward(w), a.matrix @ w @ b.matrix.T, atol=1e-5)
    np.testing.assert_allclose(t.inverse(t.forward(w)), w, atol=1e-5)


def test_along_an_axis_that_is_not_there(x):
    with pytest.raises(ValueError, match="out of bounds"):
        along_axis(DCT(), 2).forward(x)


def test_blockwise_is_block_diagonal():
    r = random_rotation(3, key=jax.random.key(3))
    expected = scipy.linalg.block_diag(*[np.asarray(r.matrix)] * 4)
    np.testing.assert_allclose(matrix_of(blockwise(r, 3), 12), expected, atol=1e-6)


def test_blockwise_of_blockwise_takes_the_inner_blocks(x):
    t = blockwise(blockwise(hadamard(2), 2), 4)
    np.testing.assert_allclose(t.forward(x), blockwise(hadamard(2), 2).forward(x), atol=1e-6)


def test_blocks_that_do_not_fit(x):
    with pytest.raises(ValueError, match="Blocks of 5 do not divide an axis of 12"):
        blockwise(DCT(), 5).forward(x)
    with pytest.raises(ValueError, match="Blocks of 5 do not divide an axis of 12"):
        blockwise(DCT(), 5).inverse(x)


@pytest.mark.parametrize("size", [0, -4])
def test_blocks_of_nothing(size: int):
    with pytest.raises(ValueError, match=f"size={size}"):
        blockwise(DCT(), size)


def test_configuration_is_static_and_parameters_are_leaves():
    t = AlongAxis(Blockwise(Chain((hadamard(4), DCT())), 4), 0)
    assert [leaf.dtype for leaf in jax.tree.leaves(t)] == [jnp.int8]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(t)[0]]
    assert paths == [".transform.transform.transforms[0].signs"]


def test_a_chain_is_orthonormal_only_when_every_link_is():
    class Doubling(Transform):
        @property
        def is_orthonormal(self) -> bool:
            return False

        def forward(self, x):
            return 2 * x

        def inverse(self, y):
            return y / 2

    for t in (Doubling(), chain(DCT(), Doubling()), inverse(Doubling()), along_axis(Doubling(), 0)):
        assert not t.is_orthonormal
    assert not blockwise(Doubling(), 2).is_orthonormal
    assert chain(DCT(), RealFFT()).is_orthonormal


def test_a_transform_without_both_directions_is_abstract():
    class OneWay(Transform):
        @property
        def is_orthonormal(self) -> bool:
            return True

        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="abstract"):
        OneWay()  # type: ignore[abstract]
