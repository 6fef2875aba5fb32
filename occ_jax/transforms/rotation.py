"""Rotations by a dense orthogonal matrix."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from .._pytree import pytree_dataclass
from .base import Transform, along_axis


@pytree_dataclass
class Rotation(Transform):
    r"""Product with an orthogonal matrix that is given.

    .. math::

        y = R x, \qquad x = R^\top y, \qquad R^\top R = I

    Orthogonality is the caller's promise and is not checked: a matrix that was itself quantized keeps it only
    nearly, and then ``inverse`` is as inexact as the matrix.

    Args:
        matrix: :math:`R`, whose rows are the directions that the coefficients measure. The side information.

    Example:
        >>> quarter_turn = Rotation(jnp.asarray([[0.0, -1.0], [1.0, 0.0]]))
        >>> print(quarter_turn.forward(jnp.asarray([1.0, 0.0])))
        [0. 1.]
    """

    matrix: Float[Array, "n n"]

    def __post_init__(self) -> None:
        shape = jnp.shape(self.matrix)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"A rotation takes a square matrix, got shape {shape}.")

    @property
    def is_orthonormal(self) -> bool:
        """Always true, as the caller promised."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``R x`` for every vector."""
        return apply_matrix(self.matrix, x)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``R^T y`` for every vector."""
        return apply_matrix(self.matrix.T, y)


def apply_matrix(matrix: Float[Array, "m n"], x: Float[Array, "*batch length"]) -> Float[Array, "*batch m"]:
    """``matrix @ x`` for every vector along the last axis, in float32 or wider; the dtype of ``x`` comes back.

    Example:
        >>> print(apply_matrix(jnp.asarray([[1.0, 2.0]]), jnp.ones((3, 2))).T)
        [[3. 3. 3.]]
    """
    if matrix.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"A matrix of shape {matrix.shape} does not act on vectors of length {x.shape[-1]}: "
            "its second size must be that length."
        )
    dtype = np.promote_types(np.promote_types(matrix.dtype, x.dtype), jnp.float32)
    y = jnp.matmul(x.astype(dtype), matrix.T.astype(dtype), precision="highest")
    return y.astype(x.dtype)


def forward_rows(
    transform: Transform, x: Float[Array, "n *batch"], rows: Int[Array, " k"] | None = None
) -> Float[Array, "m *batch"]:
    """Some rows of ``T x``, for a transform along the first axis: of a dense rotation, at their share of the cost.

    Args:
        transform: ``T``, of vectors of length ``n``.
        x: what is transformed.
        rows: which of them, ``m = k``; all by default, ``m = n``.

    Example:
        >>> r = random_rotation(8, key=jax.random.key(0))
        >>> some = forward_rows(r, jnp.eye(8), jnp.asarray([5, 2]))
        >>> bool(jnp.allclose(some, r.matrix[jnp.asarray([5, 2])], atol=1e-6))
        True
    """
    if rows is None:
        return along_axis(transform, 0).forward(x)
    if isinstance(transform, Rotation):
        return jnp.matmul(transform.matrix[rows], x, precision="highest")
    return along_axis(transform, 0).forward(x)[rows]


def random_rotation(n: int, *, key: Key[Array, ""], dtype: DTypeLike = jnp.float32) -> Rotation:
    r"""A rotation (or reflection) drawn from the Haar measure: every orthogonal matrix is equally likely.

    The orthogonal factor of a Gaussian matrix, with the signs that make the triangular factor's diagonal positive;
    without them the distribution would depend on the factorization. :math:`O(n^3)`.

    Args:
        n: length of the vectors.
        key: source of randomness.
        dtype: of the matrix.

    Example:
        >>> r = random_rotation(8, key=jax.random.key(0)).matrix
        >>> bool(jnp.allclose(r @ r.T, jnp.eye(8), atol=1e-5))
        True

    References:
        Mezzadri, How to generate random matrices from the classical compact groups, Notices AMS 54, 2007.
    """
    if n < 1:
        raise ValueError(f"A rotation needs at least one dimension, got n={n}.")
    q, r = jnp.linalg.qr(jax.random.normal(key, (n, n), dtype))
    return Rotation(q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)[None, :])
