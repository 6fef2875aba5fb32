r"""Coordinates of a representation's parameters: original, rotated, and two kinds of aligned.

Parameters are rows :math:`\theta`, coordinates :math:`y = \theta A` with :math:`\theta \approx y B`. The error of the
function is :math:`e H e^\top`, so an error in coordinate :math:`j` alone costs :math:`(B H B^\top)_{jj}` times its
square: the coordinate's sensitivity.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax.codec import encode_transform
from occ_jax.transforms import Transform, klt, random_hadamard

CUTOFF = 1e-10
"""Eigenvalues of a sensitivity below this fraction of the largest count as zero."""

_Square = Float[np.ndarray, "size size"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Coordinates:
    """One way to write parameters down.

    Args:
        name: ``original``, ``rotated``, ``hessian``, ``klt`` or ``learned``.
        forward: :math:`A`.
        inverse: :math:`B`.
        sensitivity: function error of a unit error in every coordinate.
        basis_bytes: what the basis takes if a file has to hold it.
    """

    name: str
    forward: Float[np.ndarray, "size axes"]
    inverse: Float[np.ndarray, "axes size"]
    sensitivity: Float[np.ndarray, " axes"]
    basis_bytes: int


def original(hessian: _Square) -> Coordinates:
    """Parameters as they are."""
    eye = np.eye(len(hessian))
    return Coordinates(name="original", forward=eye, inverse=eye, sensitivity=np.diag(hessian).copy(), basis_bytes=0)


def rotated(hessian: _Square, *, seed: int) -> Coordinates:
    """All parameters mixed by a Hadamard transform with random signs."""
    transform = random_hadamard(len(hessian), key=jax.random.key(seed))
    return _orthogonal("rotated", transform, hessian)


def hessian_basis(hessian: _Square) -> Coordinates:
    """Eigenbasis of the sensitivity.

    Example:
        >>> print(hessian_basis(np.array([[2.0, 1.0], [1.0, 2.0]])).sensitivity.round(3))
        [3. 1.]
    """
    return _orthogonal("hessian", klt(hessian), hessian)


def source_klt(hessian: _Square, typical: Float[np.ndarray, "draws size"]) -> Coordinates:
    r"""KLT of a source in the metric of the function.

    With :math:`H = U \Lambda U^\top`, the coordinates :math:`\theta U \Lambda^{1/2}` are orthonormal in function
    space; there the eigenvectors of the second moment of typical draws are taken. Two representations with the same
    span get the same coordinates.

    Args:
        hessian: :math:`H`.
        typical: parameters of draws other than those that are coded.
    """
    values, vectors = np.linalg.eigh(hessian)
    kept = values > CUTOFF * values.max()
    whiten, undo = vectors[:, kept] * np.sqrt(values[kept]), vectors[:, kept].T / np.sqrt(values[kept])[:, None]
    white = typical @ whiten
    transform = klt(white.T @ white / len(white))
    basis = np.asarray(transform.basis, np.float64)
    return Coordinates(
        name="klt",
        forward=whiten @ basis,
        inverse=basis.T @ undo,
        sensitivity=np.ones(int(kept.sum())),
        basis_bytes=encode_transform(transform, len(basis)).num_bytes,
    )


@jax.jit
def _forward(transform: Transform, x: Float[Array, "vectors size"]) -> Float[Array, "vectors size"]:
    return transform.forward(x)


def _orthogonal(name: str, transform: Transform, hessian: _Square) -> Coordinates:
    size = len(hessian)
    forward = np.asarray(_forward(transform, jnp.eye(size, dtype=jnp.float32)), np.float64)
    return Coordinates(
        name=name,
        forward=forward,
        inverse=forward.T,
        sensitivity=np.einsum("ij,ik,kj->j", forward, hessian, forward, optimize=True),
        basis_bytes=encode_transform(transform, size).num_bytes,
    )
