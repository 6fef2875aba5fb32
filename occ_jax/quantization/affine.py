"""Integers with a shared scale: the INT8 / INT4 / INT3 / INT2 formats that others use, with their scales counted."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Int32, Key

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.quantization.base import Quantizer, to_index, uniform_noise

CLIP_RATIOS = tuple(1 - k / 32 for k in range(24))
"""Parts of a group's range that are tried: from all of it down to a quarter."""

_LARGEST_FLOAT16 = 65504.0


@pytree_dataclass
class Affine(Quantizer):
    r"""Fixed-width integers with one scale, and perhaps one zero point, per group of coefficients.

    .. math::

        q = \operatorname{clip}(\operatorname{round}(y / s) + z,\ q_{\min},\ q_{\max}), \qquad \hat y = s (q - z)

    Symmetric (``zero_point`` is ``None``): :math:`z = 0`, :math:`q \in [-2^{b-1}, 2^{b-1} - 1]`. Asymmetric:
    :math:`q \in [0, 2^b - 1]` with an integer zero point in the same range. Groups are runs of ``group_size``
    coefficients along the last axis; the last group of a row may be shorter. A scale array with a leading axis of
    length 1 is shared along that axis. Fit one to data with :func:`fit_affine`.

    Args:
        scale: float16 scales :math:`s > 0`, shape ``lead + (groups,)``.
        zero_point: integer zero points of the same shape, or ``None``.
        bits: width :math:`b` of an index, 2 to 8.
        group_size: number of neighbouring coefficients that share a scale.

    Example:
        >>> quantizer = Affine(jnp.array([0.5], jnp.float16), None, bits=2, group_size=4)
        >>> q = quantizer.quantize(jnp.array([-0.9, 0.1, 0.4, 3.0]))
        >>> print(q, quantizer.dequantize(q))
        [-2  0  1  1] [-1.   0.   0.5  0.5]

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        CVPR 2018, equation 1.
    """

    scale: Float16[Array, "*groups"]
    zero_point: Int32[Array, "*groups"] | None
    bits: int = static_field()
    group_size: int = static_field()

    def __post_init__(self):
        _check_width(self.bits)
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}: take 1 or more coefficients per scale")

    @property
    def index_range(self) -> tuple[int, int]:
        """Smallest and largest index."""
        levels = 1 << self.bits
        return (-levels // 2, levels // 2 - 1) if self.zero_point is None else (0, levels - 1)

    @property
    def side_info_bits(self) -> int:
        """Bits of scales (16 each) and zero points (``bits`` each)."""
        return 16 * self.scale.size + (0 if self.zero_point is None else self.bits * self.zero_point.size)

    def quantize(self, y: Float[Array, "..."]) -> Int32[Array, "..."]:
        """``clip(round(y / scale) + zero_point)``."""
        scale, zero_point = self._per_coefficient(y.shape[-1])
        smallest, largest = self.index_range
        # Limited before the zero point is added, which the largest integers have no room for.
        rounded = to_index(jnp.round(y.astype(jnp.float32) / scale))
        return jnp.clip(rounded, smallest - zero_point, largest - zero_point) + zero_point

    def dequantize(self, q: Int32[Array, "..."]) -> Float[Array, "..."]:
        """``scale * (q - zero_point)`` in float32."""
        scale, zero_point = self._per_coefficient(q.shape[-1])
        return scale * (q - zero_point).astype(jnp.float32)

    def relax(self, y: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
        """``y / scale + zero_point`` plus uniform noise, clipped half a step outside the range of the index."""
        scale, zero_point = self._per_coefficient(y.shape[-1])
        smallest, largest = self.index_range
        z = uniform_noise(y.astype(jnp.float32) / scale + zero_point.astype(jnp.float32), key=key)
        return jnp.clip(z, smallest - 0.5, largest + 0.5).astype(y.dtype)

    def _per_coefficient(self, size: int) -> tuple[Float[Array, "..."], Int32[Array, "..."]]:
        scale = spread_groups(self.scale, self.group_size, size).astype(jnp.float32)
        if self.zero_point is None:
            return scale, jnp.zeros_like(scale, jnp.int32)
        return scale, spread_groups(self.zero_point, self.group_size, size)


def fit_affine(
    y: Float[Array, "..."],
    bits: int,
    *,
    group_size: int | Literal["tensor", "channel"],
    symmetric: bool = False,
    clip: bool = False,
    weights: Float[Array, "..."] | None = None,
) -> Affine:
    r"""The affine quantizer that spans the range of the data, group by group, or the best part of that range.

    .. math::

        s = \frac{\max(y, 0) - \min(y, 0)}{2^b - 1}, \quad z = \operatorname{round}(-\min(y, 0) / s)
        \qquad \text{or, symmetric,} \qquad s = \frac{\max |y|}{2^{b - 1} - \tfrac12}

    Scales are rounded **up** to float16, so that :math:`|y - \hat y| \le s / 2` holds for every coefficient.

    With few indices it is better to clip the largest coefficients and to have smaller steps for all others. With
    ``clip`` each group tries :data:`CLIP_RATIOS` of its range and takes the one of the least (weighted) squared error.

    Args:
        y: coefficients, at least one axis.
        bits: width of an index, 2 to 8.
        group_size: coefficients per scale along the last axis; ``"channel"`` is one scale per row, ``"tensor"`` a
            single one.
        symmetric: no zero points.
        clip: search for the range.
        weights: what the squared error of each coefficient counts in that search; as many axes as ``y``.

    Returns:
        The quantizer. A group of zeros has scale 1.

    Raises:
        ValueError: for a width outside 2 to 8, an unknown or non-positive group size, or a scalar ``y``.

    Example:
        >>> y = jnp.array([[0.0, 3.0, -1.0, 0.5, 8.0]])
        >>> quantizer = fit_affine(y, 2, group_size=4)
        >>> print(quantizer.scale, quantizer.zero_point, quantizer.side_info_bits)
        [[1.334 2.668]] [[1 0]] 36
        >>> print(quantizer.quantize(y))
        [[1 3 0 1 3]]

    References:
        Frantar et al., GPTQ, ICLR 2023, section 4 (grids per group); Nagel et al., A White Paper on Neural Network
        Quantization, arXiv 2106.08295, sections 2.2 and 3.1 (ranges of least squared error).
    """
    _check_width(bits)
    if y.ndim == 0:
        raise ValueError("a scalar has no axis to group: reshape it to one of length 1")
    y = y.astype(jnp.float32)
    lowest, highest, size = group_ranges(y, group_size)

    def spanning(ratio: Array | float) -> Affine:
        low, high = ratio * lowest, ratio * highest
        if symmetric:
            scale = _float16_above(jnp.maximum(-low, high) / (2 ** (bits - 1) - 0.5))
            return Affine(scale, None, bits=bits, group_size=size)
        scale = _float16_above((high - low) / (2**bits - 1))
        zero_point = to_index(jnp.round(-low / scale.astype(jnp.float32)))
        return Affine(scale, zero_point, bits=bits, group_size=size)

    if not clip:
        return spanning(1.0)
    weights = jnp.ones((), jnp.float32) if weights is None else weights.astype(jnp.float32)
    grouped, weighted = (_grouped(x, group_size)[0] for x in (y, jnp.broadcast_to(weights, y.shape)))

    def attempt(best: tuple[Array, Array], ratio: Array) -> tuple[tuple[Array, Array], None]:
        quantizer = spanning(ratio)
        # Quantized and back, group by group and in floats: one pass over the coefficients for each ratio.
        scale = quantizer.scale.astype(jnp.float32)[..., None]
        zero = 0.0 if quantizer.zero_point is None else quantizer.zero_point.astype(jnp.float32)[..., None]
        smallest, largest = quantizer.index_range
        error = grouped - scale * jnp.clip(jnp.round(grouped / scale), smallest - zero, largest - zero)
        error = (weighted * jnp.square(error)).sum(-1)
        better = error < best[0]
        return (jnp.where(better, error, best[0]), jnp.where(better, ratio, best[1])), None

    start = jnp.full(lowest.shape, jnp.inf), jnp.ones(lowest.shape, jnp.float32)
    (_, ratio), _ = jax.lax.scan(attempt, start, jnp.asarray(CLIP_RATIOS, jnp.float32))
    return spanning(ratio)


def _check_width(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}: affine integers are 2 to 8 bits wide")


def group_ranges(
    y: Float[Array, "..."], group_size: int | str
) -> tuple[Float[Array, "*groups"], Float[Array, "*groups"], int]:
    """``min(y, 0)`` and ``max(y, 0)`` of every group, and the number of coefficients in a full group."""
    grouped, size = _grouped(y, group_size)
    return jnp.min(grouped, axis=-1, initial=0.0), jnp.max(grouped, axis=-1, initial=0.0), size


def spread_groups(x: Array, group_size: int, length: int) -> Array:
    """What each group has, for each of the ``length`` coefficients along the last axis."""
    return jnp.repeat(x, group_size, axis=-1)[..., :length]


def _grouped(y: Float[Array, "..."], group_size: int | str) -> tuple[Float[Array, "*groups size"], int]:
    """Groups along an axis of their own, filled up with zeros, and the number of coefficients in a full one."""
    row = max(y.shape[-1], 1)
    if y.shape[-1] == 0:
        return y[..., None], row  # no coefficients, no groups
    if group_size == "tensor":
        return y.reshape((1,) * y.ndim + (-1,)), row
    if group_size == "channel":
        return y[..., None, :], row
    if isinstance(group_size, int) and group_size >= 1:
        size = min(group_size, row)
        # Zeros change neither min(y, 0) nor max(y, 0), so they can fill up the last group.
        padded = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, -row % size)])
        return padded.reshape(*y.shape[:-1], padded.shape[-1] // size, size), size
    raise ValueError(f"group_size is {group_size!r}: give a positive number, 'channel' or 'tensor'")


def _float16_above(scale: Float[Array, "*groups"]) -> Float16[Array, "*groups"]:
    """The smallest float16 that is not below ``scale``; 1 in the place of 0."""
    near = jnp.minimum(scale, _LARGEST_FLOAT16).astype(jnp.float16)
    ordered = jax.lax.bitcast_convert_type(near, jnp.uint16)
    short = (near.astype(jnp.float32) < scale) & (near < jnp.float16(_LARGEST_FLOAT16))
    above = jax.lax.bitcast_convert_type(ordered + short.astype(jnp.uint16), jnp.float16)
    return jnp.where(scale > 0, above, jnp.ones_like(above))
