"""Scalar quantizers that trade a little distortion for fewer bits: a dead zone, and a search with a cost table."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.base import Quantizer, to_index, uniform_noise


@pytree_dataclass
class DeadZone(Quantizer):
    r"""Uniform reconstruction with a rounding offset: the thresholds move, the reconstruction points do not.

    .. math::

        q = \operatorname{sign}(y) \lfloor |y| / \Delta + r \rfloor, \qquad \hat y = \Delta q

    The zero bin is :math:`2 (1 - r) \Delta` wide. The offset :math:`r = 1/2` is the uniform quantizer; smaller ones
    send more coefficients towards zero, which is optimal for a peaked density when an entropy coder follows
    (1/3 and 1/6 are the classical choices of video coding).

    Args:
        step: the step :math:`\Delta > 0`; a scalar, or an array of the rank of ``y`` that broadcasts against it.
        rounding: the offset :math:`r` in (0, 1/2], of a shape like ``step``'s.

    Example:
        >>> quantizer = DeadZone(jnp.array(1.0), jnp.array(1 / 3))
        >>> print(quantizer.quantize(jnp.array([-1.7, -0.6, 0.6, 0.7])))
        [-2  0  0  1]

    References:
        Sullivan, Efficient Scalar Quantization of Exponential and Laplacian Random Variables, IEEE Trans.
        Information Theory, 1996.
    """

    step: Float[Array, "..."]
    rounding: Float[Array, "..."]

    def quantize(self, y: Float[Array, "..."]) -> Int32[Array, "..."]:
        """``sign(y) * floor(|y| / step + rounding)``."""
        magnitude = jnp.floor(jnp.abs(y) / self.step.astype(y.dtype) + self.rounding.astype(y.dtype))
        return to_index(jnp.sign(y) * magnitude)

    def dequantize(self, q: Int32[Array, "..."]) -> Float[Array, "..."]:
        """``step * q``."""
        return self.step * q.astype(self.step.dtype)

    def relax(self, y: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
        r"""``y / step`` plus noise whose mean is that of the rounding error.

        Outside the zero bin the error ``q - y / step`` is uniform with mean ``(rounding - 1/2) * sign(y)``; inside
        the zero bin the mean is taken linear, so that the stand-in stays continuous at zero.
        """
        z = y / self.step.astype(y.dtype)
        rounding = self.rounding.astype(y.dtype)
        bias = (rounding - 0.5) * jnp.clip(z / (1.0 - rounding), -1.0, 1.0)
        return uniform_noise(z + bias, key=key)


def rdo_round(
    y: Float[Array, "*shape"],
    step: Float[Array, "..."],
    cost_bits: Float[Array, "classes symbols"],
    offset: Int[Array, "classes"],
    lmbda: float | Float[Array, ""],
    *,
    contexts: Int[Array, "*shape"] | None = None,
) -> Int32[Array, "*shape"]:
    r"""Rate-distortion-optimised rounding: the best of the nearest index and its two neighbours.

    .. math::

        q = \arg\min_{k \in \{r - 1, r, r + 1\}} (y - \Delta k)^2 + \lambda\, b(k), \qquad
        r = \operatorname{round}(y / \Delta)

    with ``b`` from a table of code lengths, as :func:`~occ_jax.entropy.tables.cost_bits` makes it: column ``s`` of row
    ``c`` is the cost in context ``c`` of the index ``offset[c] + s``, and the last column is that of every other index,
    the escape and the value behind it. Its Lagrangian is never larger than that of plain rounding, and
    :math:`\lambda = 0` is plain rounding.

    Args:
        y: coefficients.
        step: step, a scalar or an array of the rank of ``y``.
        cost_bits: code lengths in bits; infinite for a symbol that cannot be coded.
        offset: the index that symbol 0 of every row stands for.
        lmbda: distortion worth one bit, in squared units of ``y``.
        contexts: row of ``cost_bits`` for every coefficient; all zero when left out.

    Returns:
        The chosen indices.

    Example:
        >>> bits = jnp.array([[6.0, 0.1, 6.0, 12.0]])
        >>> y = jnp.array([0.4, 0.6, 0.95])
        >>> for lmbda in (0.0, 0.05, 1.0):
        ...     print(rdo_round(y, jnp.array(1.0), bits, jnp.array([-1]), lmbda))
        [0 1 1]
        [0 0 1]
        [0 0 0]

    References:
        Sullivan & Wiegand, Rate-Distortion Optimization for Video Compression, IEEE Signal Processing Magazine, 1998.
    """
    if contexts is None:
        contexts = jnp.zeros(y.shape, jnp.int32)
    step = step.astype(y.dtype)
    escape = cost_bits.shape[-1] - 1
    first = offset.astype(jnp.int32)[contexts]
    nearest = to_index(jnp.round(y / step))

    def lagrangian(q: Int32[Array, "*shape"]) -> Float[Array, "*shape"]:
        symbol = jnp.clip(q, first - 1, first + escape) - first
        inside = (symbol >= 0) & (symbol < escape)
        bits = cost_bits[contexts, jnp.where(inside, symbol, escape)]
        return (y - step * q.astype(y.dtype)) ** 2 + lmbda * bits.astype(y.dtype)

    # The nearest index stands first, so that a tie leaves it in place.
    candidates = jnp.stack([nearest, nearest - 1, nearest + 1])
    best = jnp.argmin(jnp.stack([lagrangian(q) for q in candidates]), axis=0)
    return jnp.take_along_axis(candidates, best[None], axis=0)[0]
