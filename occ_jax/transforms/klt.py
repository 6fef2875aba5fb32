"""The Karhunen-Loève transform: the eigenbasis of a second moment."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass
from .base import Transform
from .rotation import apply_matrix


@pytree_dataclass
class KLT(Transform):
    r"""Karhunen-Loève transform, also known as PCA without centring.

    .. math::

        y = V^\top x, \qquad \Sigma = \mathbb{E}[x x^\top] = V \operatorname{diag}(\lambda) V^\top,
        \qquad \lambda_1 \ge \lambda_2 \ge \dots \ge 0

    The coefficients are uncorrelated, :math:`\mathbb{E}[y_i y_j] = \lambda_i \delta_{ij}`, and the first :math:`r`
    of them hold more energy than any other :math:`r` coordinates: among orthonormal transforms of a Gaussian vector
    none has a higher coding gain.

    Args:
        basis: :math:`V`, eigenvectors as columns. The side information of the transform.
        eigenvalues: :math:`\lambda`, descending: the energy of each coefficient. The transform does not use them.

    Example:
        >>> t = klt(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]))
        >>> print(t.eigenvalues.round(), t.forward(jnp.asarray([1.0, 1.0])).round(3))
        [3. 1.] [1.414 0.   ]

    References:
        Goyal, Theoretical foundations of transform coding, IEEE Signal Processing Magazine 18(5), 2001.
    """

    basis: Float[Array, "n n"]
    eigenvalues: Float[Array, " n"]

    def __post_init__(self) -> None:
        shape = jnp.shape(self.basis)
        if len(shape) != 2 or shape[0] != shape[1] or jnp.shape(self.eigenvalues) != shape[:1]:
            raise ValueError(
                f"A KLT takes a square basis and one eigenvalue for each column, got shapes {shape} and "
                f"{jnp.shape(self.eigenvalues)}."
            )

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Principal components of every vector, the most energetic direction first."""
        return apply_matrix(self.basis.T, x)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Vectors that have these principal components."""
        return apply_matrix(self.basis, y)


def klt(second_moment: Float[Array, "n n"] | Float[np.ndarray, "n n"]) -> KLT:
    r"""The KLT of vectors with a given second moment :math:`\Sigma = \mathbb{E}[x x^\top]`.

    A concrete matrix is diagonalised on the host in float64; under a JAX transformation the eigenvectors come from
    :func:`jax.numpy.linalg.eigh` in the matrix's own dtype. Only the symmetric part counts. Eigenvectors are
    oriented so that their first entry of at least half the largest magnitude is positive, and eigenvalues that
    rounding made negative are set to zero.

    Args:
        second_moment: :math:`\Sigma`, symmetric and positive semidefinite.

    Returns:
        The transform, in the dtype of ``second_moment`` (float64 becomes float32 unless 64-bit types are enabled).

    Raises:
        ValueError: when the matrix is not square, or when a concrete one holds NaN or infinities.

    Example:
        >>> print(klt(jnp.diag(jnp.asarray([1.0, 3.0, 2.0]))).eigenvalues.round())
        [3. 2. 1.]
    """
    shape = jnp.shape(second_moment)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"A second moment is a square matrix, got shape {shape}.")
    if isinstance(second_moment, jax.core.Tracer):
        values, vectors = jnp.linalg.eigh(second_moment)
        return KLT(*_canonical(vectors, values))
    sigma = np.asarray(second_moment, np.float64)
    if not np.isfinite(sigma).all():
        bad = int((~np.isfinite(sigma)).sum())
        raise ValueError(f"The second moment has {bad} entries that are not finite: check the vectors it came from.")
    values, vectors = scipy.linalg.eigh((sigma + sigma.T) / 2)
    dtype = jax.dtypes.canonicalize_dtype(second_moment.dtype)
    return KLT(*(jnp.asarray(a, dtype) for a in _canonical(vectors, values)))


def _canonical(vectors: Any, values: Any) -> tuple[Any, Any]:
    """Descending order, columns oriented, no negative energies; NumPy in, NumPy out, and likewise for JAX."""
    xp: Any = jnp if isinstance(vectors, jax.Array) else np
    vectors, values = vectors[:, ::-1], values[::-1]
    magnitude = xp.abs(vectors)
    # Half, not all: entries of equal magnitude are common by symmetry, and rounding would choose among them.
    first_large = xp.argmax(magnitude >= magnitude.max(0, keepdims=True) / 2, axis=0)
    landmark = xp.take_along_axis(vectors, first_large[None, :], axis=0)
    return vectors * xp.where(landmark < 0, -1, 1).astype(vectors.dtype), xp.maximum(values, 0)
