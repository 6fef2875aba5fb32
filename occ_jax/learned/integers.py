r"""What integers with shared scales leave of coefficients, differentiably.

Their rate is constant, so their error is all there is to train: that of rounding to the nearest, which is exact and
whose gradient goes straight through, or the one that feedback will leave: its expected cost as a closed form, and draws
of it for networks that are run with it.

References:
    Esser et al., Learned step size quantization, ICLR 2020, arXiv:1902.08153, section 2.1.
    Liu et al., SpinQuant, 2024, arXiv:2405.16406.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Int32, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.affine import fit_affine, group_ranges, spread_groups

_NOISE_BITS = 8
"""Of a draw of noise: its steps are far finer than those of the integers."""


@pytree_dataclass
class Ranges:
    """The best part of every group's range, as :func:`find_ranges` finds it.

    A search is dear. What it finds, relative to the range that a group spans, changes slowly while coordinates are
    learned, and may be used for several steps.

    Attributes:
        share: scale that was found, over the one that spans the whole range.
        zero: zero point.
    """

    share: Float[Array, "*layers rows groups"]
    zero: Int32[Array, "*layers rows groups"]


def affine_reconstruction(
    y: Float[Array, "*shape"],
    bits: int,
    *,
    group_size: int | Literal["tensor", "channel"],
    symmetric: bool = False,
    clip: bool = False,
) -> Float[Array, "*shape"]:
    r"""What integers with shared scales make of coefficients, with straight-through gradients.

    .. math::

        \hat y = s\,(q - z), \qquad \frac{\partial \hat y}{\partial y} = I
        + \left(q - z - \frac{y}{s}\right) \frac{\partial s}{\partial y}

    The value is exactly that of :func:`~occ_jax.quantization.fit_affine`; the gradient takes rounding for the
    identity, of the coefficients and of the scale's float16, and knows that the scale is the range of the group, or
    with ``clip`` the best part of it. The error :math:`\hat y - y` therefore moves with the scale alone: to lower it is
    to lower the ranges. A coefficient that was clipped is at the edge of the range,
    :math:`\partial \hat y / \partial y = (q - z)\, \partial s / \partial y`, and its error moves with itself.

    Args:
        y: coefficients; groups run along the last axis.
        bits: width of an index.
        group_size: coefficients per scale, or ``"channel"`` or ``"tensor"``.
        symmetric: no zero points.
        clip: search for the range, as :func:`~occ_jax.quantization.fit_affine` does.

    Example:
        >>> y = jnp.asarray([[0.0, 1.0, 2.0, 6.0]])
        >>> print(affine_reconstruction(y, 2, group_size=4))
        [[0. 0. 2. 6.]]
    """
    quantizer = fit_affine(lax.stop_gradient(y), bits, group_size=group_size, symmetric=symmetric, clip=clip)
    lowest, highest, size = group_ranges(y.astype(jnp.float32), group_size)
    span = jnp.maximum(-lowest, highest) / (2 ** (bits - 1) - 0.5) if symmetric else (highest - lowest) / (2**bits - 1)
    scale = _follow(quantizer.scale, span)
    step = spread_groups(scale, size, y.shape[-1])
    q = quantizer.quantize(lax.stop_gradient(y)).astype(jnp.float32)
    if quantizer.zero_point is not None:
        q = q - spread_groups(quantizer.zero_point, size, y.shape[-1]).astype(jnp.float32)
    ratio = y.astype(jnp.float32) / step
    inside = jnp.abs(lax.stop_gradient(ratio) - q) <= 0.5 + 1e-3
    return (step * (q + jnp.where(inside, ratio - lax.stop_gradient(ratio), 0.0))).astype(y.dtype)


def fed_back_error(
    w: Float[Array, "rows columns"],
    costs: Float[Array, " columns"],
    bits: int,
    *,
    group_size: int,
    clip: bool = False,
) -> Float[Array, " rows"]:
    r"""Expected weighted error of every row of asymmetric integers with feedback (GPTQ).

    An error in column :math:`j` costs :math:`c_j`, what later columns cannot make up for. Within the range it is
    uniform in a step :math:`s`, and a coefficient beyond the range is wrong by its distance :math:`b` from the last
    index,

    .. math::

        D_i = \sum_j c_j \begin{cases} s_{ij}^2 / 12 & \text{inside,} \\ b_{ij}^2 & \text{outside.} \end{cases}

    Args:
        w: coefficients before any feedback.
        costs: :math:`c`, by :func:`~occ_jax.learned.column_costs`.
        bits: width of an index.
        group_size: coefficients that share a scale.
        clip: search for the range of every group, as the quantizer will; otherwise all coefficients are inside.

    Example:
        >>> w = jnp.asarray([[0.0, 1.0, 2.0, 6.0]])
        >>> print(fed_back_error(w, jnp.ones(4), 2, group_size=4))  # four errors, uniform in a step of 2
        [1.3333334]
    """
    w = w.astype(jnp.float32)
    if not clip:
        lowest, highest, size = group_ranges(w, group_size)
        in_groups = jnp.pad(costs, (0, -len(costs) % size)).reshape(-1, size).sum(1)
        return jnp.matmul(jnp.square((highest - lowest) / (2**bits - 1)), in_groups, precision="highest") / 12
    ranges = lax.stop_gradient(find_ranges(lax.stop_gradient(w), lax.stop_gradient(costs), bits, group_size=group_size))
    step, missed = _steps(w, bits, group_size, ranges)
    return jnp.matmul(jnp.where(missed == 0, jnp.square(step) / 12, jnp.square(missed)), costs, precision="highest")


def find_ranges(
    w: Float[Array, "rows columns"], costs: Float[Array, " columns"], bits: int, *, group_size: int
) -> Ranges:
    """Search for the range of every group, as the quantizer will: the one of least weighted error.

    Args:
        w: coefficients before any feedback.
        costs: of an error in every column, by :func:`~occ_jax.learned.column_costs`.
        bits: width of an index.
        group_size: coefficients that share a scale.

    Example:
        >>> w = jnp.asarray([[-1.0, 0.2, 0.1, 5.0, -0.1, 0.3, -0.2, 0.4]])
        >>> find_ranges(w, jnp.ones(8), 2, group_size=8).share.item() < 1  # one coefficient is clipped
        True
    """
    quantizer = fit_affine(w, bits, group_size=group_size, clip=True, weights=costs[None, :])
    lowest, highest, _ = group_ranges(w.astype(jnp.float32), group_size)
    assert quantizer.zero_point is not None
    return Ranges(_share(quantizer.scale, (highest - lowest) / (2**bits - 1)), quantizer.zero_point)


def fed_back_reconstruction(
    w: Float[Array, "rows columns"],
    passed_on: Float[Array, "columns columns"],
    bits: int,
    *,
    key: Key[Array, ""],
    group_size: int,
    ranges: Ranges | None = None,
) -> Float[Array, "rows columns"]:
    r"""What asymmetric integers with feedback (GPTQ) may make of coefficients: a draw of the errors that are expected.

    The errors :math:`d` of :func:`fed_back_error`, uniform within the range, and what later columns make of them,

    .. math::

        e = d \, \operatorname{diag}(U)^{-1} U, \qquad e H e^\top = \sum_j d_j^2 / U_{jj}^2, \qquad H^{-1} = U^\top U .

    Their expected cost is the sum of that function, and their gradient goes into the steps and distances, not into the
    draw. What later columns do is best for :math:`H`, so that a small change of it changes the cost to second order
    only: by the envelope theorem no gradient goes into ``passed_on``.

    Args:
        w: coefficients before any feedback.
        passed_on: :math:`\operatorname{diag}(U)^{-1} U`, by :func:`~occ_jax.learned.regressions`.
        bits: width of an index.
        key: source of the noise.
        group_size: coefficients that share a scale.
        ranges: the part of the range that every group has, by :func:`find_ranges`; all of it when left out.

    Example:
        >>> w = jnp.asarray([[0.0, 1.0, 2.0, 6.0]])
        >>> made = fed_back_reconstruction(w, jnp.eye(4), 2, key=random.key(0), group_size=4)
        >>> bool((jnp.abs(made - w) <= 1).all())  # half a step of 2
        True
    """
    y = w.astype(jnp.float32)
    step, missed = _steps(y, bits, group_size, ranges)
    drawn = random.bits(key, y.shape, jnp.uint8).astype(jnp.float32)
    noise = (drawn + 0.5) / 2**_NOISE_BITS - 0.5
    error = jnp.where(missed == 0, noise * step, missed)
    return (y + jnp.matmul(error, lax.stop_gradient(passed_on), precision="highest")).astype(w.dtype)


def _steps(
    w: Float[Array, "rows columns"], bits: int, group_size: int, ranges: Ranges | None
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]:
    """The step of every coefficient, and of those beyond the range what reaches the last index; zero for others."""
    lowest, highest, size = group_ranges(w, group_size)
    span = (highest - lowest) / (2**bits - 1)
    if ranges is None:
        return spread_groups(span, size, w.shape[-1]), jnp.zeros_like(w)
    step, zero = (spread_groups(x, size, w.shape[-1]) for x in (ranges.share * span, ranges.zero))
    zero = zero.astype(jnp.float32)
    below, above = -zero * step - w, (2**bits - 1 - zero) * step - w
    missed = jnp.where(below > step / 2, below, jnp.where(above < -step / 2, above, 0.0))
    return step, missed


def _follow(scale: Float[Array, "*groups"], span: Float[Array, "*groups"]) -> Float[Array, "*groups"]:
    """``scale`` in float32, with the gradient of the part of ``span`` that it is."""
    fixed = lax.stop_gradient(span)
    return lax.stop_gradient(scale.astype(jnp.float32)) + lax.stop_gradient(_share(scale, span)) * (span - fixed)


def _share(scale: Float[Array, "*groups"], span: Float[Array, "*groups"]) -> Float[Array, "*groups"]:
    """Scale of every group over the one that spans its range; that of zeros is 1."""
    return scale.astype(jnp.float32) / jnp.where(span > 0, span, 1.0)
