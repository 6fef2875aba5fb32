"""What a quantizer is: reals to integers, integers back to reals, and a differentiable stand-in for the pair."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

# The largest float32 below 2**31: a float can be cast to int32 safely only inside this range.
_INT32_REACH = float(2**31 - 128)


class Quantizer(abc.ABC):
    r"""A map from real coefficients to integer indices, and back.

    .. math::

        q = Q(y) \in \mathbb{Z}, \qquad \hat y = Q^{-1}(q)

    Every implementation promises that reconstruction points are fixed points, ``quantize(dequantize(q)) == q`` for
    every index that it can produce, that both maps act on each coefficient by itself (given the quantizer's
    parameters, which broadcast against ``y``), and that ``relax`` follows the same index in expectation while its
    gradient exists almost everywhere. All three methods can be traced by ``jit``, ``vmap`` and ``grad``.
    """

    @abc.abstractmethod
    def quantize(self, y: Float[Array, "..."]) -> Int32[Array, "..."]:
        """Indices of the coefficients ``y``, of the same shape."""

    @abc.abstractmethod
    def dequantize(self, q: Int32[Array, "..."]) -> Float[Array, "..."]:
        """Reconstruction points of the indices ``q``, in the float dtype of the quantizer's parameters."""

    @abc.abstractmethod
    def relax(self, y: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
        """Differentiable stand-in for ``quantize(y)``: in steps, with noise in the place of rounding."""


def to_index(z: Float[Array, "..."]) -> Int32[Array, "..."]:
    """Cast integer-valued floats to int32, saturating at the ends of the range.

    Example:
        >>> print(to_index(jnp.array([-2.0, 3.0, 1e30])))
        [         -2           3 2147483520]
    """
    return jnp.clip(z, -_INT32_REACH, _INT32_REACH).astype(jnp.int32)


def uniform_noise(z: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
    r"""Add noise that is uniform on :math:`[-\tfrac12, \tfrac12)`: rounding error as it looks at high rate.

    References:
        Ballé, Laparra & Simoncelli, End-to-end Optimized Image Compression, ICLR 2017, section 3.
    """
    return z + jax.random.uniform(key, jnp.shape(z), z.dtype, -0.5, 0.5)
