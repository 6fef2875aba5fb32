"""A factor for each entry: what is left of an invertible transform beside its rotations."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass
from .base import Transform


@pytree_dataclass
class Scaling(Transform):
    r"""Product with a positive diagonal matrix, stored by logarithms.

    .. math::

        y_j = 2^{\ell_j} x_j

    Invertible for every :math:`\ell`, and the identity for zeros; after a rotation, ``chain(rotation, scaling)``, it
    is a diagonal matrix times an orthogonal one. Not orthonormal: an error of one unit in coefficient ``j`` is an
    error of :math:`2^{-\ell_j}` in the vector.

    Args:
        log2_scale: :math:`\ell`, one for each entry; the side information.

    Example:
        >>> print(Scaling(jnp.asarray([0.0, 3.0])).forward(jnp.ones(2)))
        [1. 8.]
    """

    log2_scale: Float[Array, " n"]

    def __post_init__(self) -> None:
        if jnp.ndim(self.log2_scale) != 1:
            raise ValueError(f"A scaling takes a vector of logarithms, got shape {jnp.shape(self.log2_scale)}.")

    @property
    def is_orthonormal(self) -> bool:
        """Never promised, whatever the factors are."""
        return False

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``2**log2_scale * x``."""
        return self._multiply(x, self.log2_scale)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``2**-log2_scale * y``."""
        return self._multiply(y, -self.log2_scale)

    def _multiply(self, x: Float[Array, "*batch n"], exponent: Float[Array, " m"]) -> Float[Array, "*batch n"]:
        if x.shape[-1] != exponent.shape[-1]:
            raise ValueError(
                f"A scaling of {exponent.shape[-1]} entries got vectors of length {x.shape[-1]}: make one of that size."
            )
        dtype = np.promote_types(np.promote_types(x.dtype, exponent.dtype), jnp.float32)
        factor = jnp.exp2(exponent.astype(dtype)).reshape((1,) * (x.ndim - 1) + exponent.shape)
        return (factor * x.astype(dtype)).astype(x.dtype)
