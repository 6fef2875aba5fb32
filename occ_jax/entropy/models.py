r"""Entropy models: differentiable code lengths of integers, and the integer tables that a coder uses.

A discretised model gives the integer :math:`k` the mass of the unit interval around it under a continuous density,

.. math::

    P(k) = F(k + \tfrac12) - F(k - \tfrac12)

and, for training, the same difference to every real :math:`z` (the density convolved with a unit box, which is what
additive uniform noise sees). Everything is in steps of the quantizer, in float32 or wider, and computed from logarithms
of tail probabilities, so that code lengths and gradients stay finite where probabilities have long underflowed.

References:
    Ballé, Laparra & Simoncelli, End-to-end optimized image compression, ICLR 2017, section 3.
"""

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln, log_ndtr
from jaxtyping import Array, Float, Int

from occ_jax._pytree import pytree_dataclass
from occ_jax.entropy.gamma_tail import SWITCH, gamma_series, log_gammaincc
from occ_jax.entropy.tables import ESCAPE_BITS, FreqTable, from_counts
from occ_jax.numerics import log1mexp, safe_log

_LOG2_E = float(np.log2(np.e))

_FAR = 1e9
"""Distances beyond this many scales cost no more: their square must stay finite in float32."""

_NARROW = 1e-2
"""Relative change of the density over a unit interval below which its value in the middle is taken for the mean.

The error is at most 0.001 bit, where the difference of two float32 logarithms would begin to lose more."""


def _widen(*arrays: Array | float) -> tuple[Array, ...]:
    """The arrays in their common type, float32 at least."""
    is_double = any(jnp.result_type(array) == jnp.float64 for array in arrays)
    return tuple(jnp.asarray(array).astype(jnp.float64 if is_double else jnp.float32) for array in arrays)


class EntropyModel(abc.ABC):
    """A distribution of integers with a code length for every real number.

    A model has parameters of one shape; ``bits`` broadcasts them against ``z``.
    """

    @abc.abstractmethod
    def bits(self, z: Float[Array, "..."] | Int[Array, "..."]) -> Float[Array, "..."]:
        """Code length of ``z`` in bits, differentiable in ``z`` and in the parameters."""

    @abc.abstractmethod
    def center(self) -> Float[Array, "..."]:
        """A value of highest probability."""

    def freq_table(self, precision: int = 12) -> FreqTable:
        """Integer table of the values whose probability is worth a unit of frequency; on the host.

        Raises:
            ValueError: the parameters are not scalars.
        """
        if np.shape(self.center()):
            raise ValueError(f"a table needs scalar parameters, got shape {np.shape(self.center())}: make one each")
        reach = 1 << (precision - 1)
        middle = round(float(self.center()))
        values = np.arange(middle - reach + 1, middle + reach)
        p = np.exp2(-np.asarray(_bits(self, jnp.asarray(values, jnp.int32)), np.float64))
        kept = np.flatnonzero(p >= 0.5 / 2**precision)
        first, last = (kept[0], kept[-1] + 1) if kept.size else (reach - 1, reach)
        counts = np.round(p[first:last] * 2.0**40).astype(np.int64)
        escape = max(0, 2**40 - int(counts.sum()))
        return from_counts(counts, int(values[first]), precision, escape_count=escape)


@jax.jit
def _bits(model: EntropyModel, z: Array) -> Array:
    return model.bits(z)


def _difference_bits(upper: Array, lower: Array, least: Array) -> Array:
    r""":math:`-\log_2(e^\mathrm{upper} - e^\mathrm{lower})`, whose difference is known to be ``least`` or more."""
    gap = jnp.maximum(upper - lower, least)
    return -(upper + log1mexp(gap)) * _LOG2_E


@pytree_dataclass
class DiscretizedGaussian(EntropyModel):
    r"""A Gaussian on the integers, :math:`F(t) = \Phi((t - \text{loc}) / \text{scale})`.

    Attributes:
        scale: standard deviation of the density, in steps.
        loc: its mean.

    Example:
        >>> model = DiscretizedGaussian(scale=jnp.float32(1.0), loc=jnp.float32(0.0))
        >>> print(model.bits(jnp.array([0, 1, 40])))
        [   1.38...    2.04... 1132.11...]
    """

    scale: Float[Array, "..."]
    loc: Float[Array, "..."]

    def center(self) -> Float[Array, "..."]:
        """The mean."""
        return self.loc

    def bits(self, z: Float[Array, "..."] | Int[Array, "..."]) -> Float[Array, "..."]:
        """Code length of ``z`` in bits."""
        z, scale, loc = _widen(z, self.scale, self.loc)
        distance = jnp.minimum(jnp.abs(z - loc), _FAR * scale)
        near, far = (0.5 - distance) / scale, (-0.5 - distance) / scale
        # The slope of log Phi is at least its argument's size, a bound that survives when the difference rounds away.
        least = jnp.maximum(-near, jnp.finfo(z.dtype).tiny) / scale
        density_bits = ((distance / scale) ** 2 / 2 + jnp.log(scale) + float(np.log(2 * np.pi) / 2)) * _LOG2_E
        return jnp.where(1 / scale < _NARROW, density_bits, _difference_bits(log_ndtr(near), log_ndtr(far), least))


@pytree_dataclass
class DiscretizedLaplace(EntropyModel):
    r"""A Laplace density on the integers, :math:`f(t) = e^{-|t - \text{loc}| / \text{scale}} / (2\,\text{scale})`.

    Attributes:
        scale: mean absolute deviation of the density, in steps; the standard deviation is :math:`\sqrt2` times it.
        loc: its median.

    Example:
        >>> model = DiscretizedLaplace(scale=jnp.float32(1.0), loc=jnp.float32(0.0))
        >>> print(model.bits(jnp.array([0, 1, 40])))
        [ 1.345...  2.38... 58.64...]
    """

    scale: Float[Array, "..."]
    loc: Float[Array, "..."]

    def center(self) -> Float[Array, "..."]:
        """The median."""
        return self.loc

    def bits(self, z: Float[Array, "..."] | Int[Array, "..."]) -> Float[Array, "..."]:
        """Code length of ``z`` in bits."""
        z, scale, loc = _widen(z, self.scale, self.loc)
        distance = jnp.minimum(jnp.abs(z - loc), _FAR * scale)
        holds_center = distance < 0.5
        inner = jnp.where(holds_center, distance, 0)
        outer = jnp.where(holds_center, 0.5, distance)
        log_inner = safe_log(-(jnp.expm1((inner - 0.5) / scale) + jnp.expm1((-inner - 0.5) / scale)) / 2)
        log_outer = (0.5 - outer) / scale + log1mexp(1 / scale) - float(np.log(2))
        return -jnp.where(holds_center, log_inner, log_outer) * _LOG2_E


@pytree_dataclass
class GeneralizedGaussian(EntropyModel):
    r"""A generalised Gaussian on the integers, centred at zero.

    .. math::

        f(t) = \frac{\beta}{2 \alpha \Gamma(1 / \beta)} e^{-(|t| / \alpha)^\beta}

    Laplace at :math:`\beta = 1`, Gaussian of variance :math:`\alpha^2 / 2` at 2, heavy tails below. With
    :math:`Q` the regularised upper incomplete gamma function, one tail is
    :math:`1 - F(t) = \tfrac12 Q(1 / \beta, (t / \alpha)^\beta)`.

    Attributes:
        scale: :math:`\alpha`, in steps.
        shape: :math:`\beta`, about 0.2 to 8.

    Example:
        >>> model = GeneralizedGaussian(scale=jnp.float32(2**0.5), shape=jnp.float32(2.0))
        >>> print(model.bits(jnp.array([0, 1, 40])))
        [   1.38...    2.04... 1132.11...]

    References:
        Nadarajah, A generalized normal distribution, Journal of Applied Statistics, 2005.
    """

    scale: Float[Array, "..."]
    shape: Float[Array, "..."]

    def center(self) -> Float[Array, "..."]:
        """Zero."""
        return jnp.zeros_like(self.scale)

    def bits(self, z: Float[Array, "..."] | Int[Array, "..."]) -> Float[Array, "..."]:
        """Code length of ``z`` in bits."""
        z, scale, shape = _widen(z, self.scale, self.shape)
        distance = jnp.minimum(jnp.abs(z), 1e15 * scale)
        holds_center = distance < 0.5
        tiny = jnp.finfo(z.dtype).tiny
        a = 1 / shape

        def argument(t):
            # Within the square roots of float32's range, so that all derivatives of both tails stay finite.
            return jnp.exp(jnp.clip(shape * jnp.log(jnp.maximum(t / scale, 1e-30)), -80.0, 43.0))

        def half_mass(t):
            x = argument(t)
            is_small = x < SWITCH
            small = jnp.minimum(x, SWITCH)
            # P(a, x) with x^a written as it was before the power: exact for wide densities.
            lower = jnp.where(is_small, t / scale, 0) * jnp.exp(-small - gammaln(a + 1)) * gamma_series(a, small)
            return jnp.where(is_small, lower, -jnp.expm1(log_gammaincc(a, jnp.maximum(x, SWITCH))))

        inner = jnp.where(holds_center, distance, 0)
        mass = half_mass(0.5 - inner) + half_mass(0.5 + inner)
        outer = jnp.where(holds_center, 1, distance)
        near, far = argument(outer - 0.5), argument(outer + 0.5)
        # The hazard rate of a gamma variable is at least 1 - (a - 1) / x, and at least 1 for a <= 1.
        hazard = jnp.clip(1 - jnp.maximum(a - 1, 0) / jnp.maximum(near, 1e-6), 0, 1)
        least = jnp.maximum((far - near) * lax.stop_gradient(hazard), tiny)
        tail_bits = 1 + _difference_bits(log_gammaincc(a, near), log_gammaincc(a, far), least)
        density_bits = (argument(outer) + jnp.log(2 * scale / shape) + gammaln(a)) * _LOG2_E
        is_narrow = near * jnp.expm1(shape * jnp.log1p(1 / jnp.maximum(outer - 0.5, 0.5))) < _NARROW
        outer_bits = jnp.where(is_narrow & (outer >= 1), density_bits, tail_bits)
        return jnp.where(holds_center, 1 - safe_log(mass) * _LOG2_E, outer_bits)


@pytree_dataclass
class Categorical(EntropyModel):
    r"""Free probabilities of consecutive integers, :math:`P(\text{offset} + s) \propto e^{\text{logits}_s}`.

    Between integers the code length is interpolated linearly. Outside, it rises over one step to that of the last
    integer plus :data:`~occ_jax.entropy.tables.ESCAPE_BITS`.

    Attributes:
        logits: unnormalised log-probabilities (natural), at least two.
        offset: the value of the first one.

    Example:
        >>> model = Categorical.from_counts(np.array([1, 2, 1]), offset=-1)
        >>> model.bits(jnp.array([-1.0, 0.0, 0.5, 9.0]))
        Array([ 2. ,  1. ,  1.5, 18. ], dtype=float32)
    """

    logits: Float[Array, " symbols"]
    offset: Int[Array, ""]

    @classmethod
    def from_counts(cls, counts: Int[np.ndarray, " symbols"], offset: int) -> "Categorical":
        """Relative frequencies; values that did not occur count as one thousandth."""
        return cls(jnp.log(jnp.asarray(np.maximum(counts, 1e-3), jnp.float32)), jnp.asarray(offset, jnp.int32))

    def center(self) -> Float[Array, "..."]:
        """The most probable value."""
        return (jnp.argmax(self.logits, axis=-1) + self.offset).astype(jnp.float32)

    def bits(self, z: Float[Array, "..."] | Int[Array, "..."]) -> Float[Array, "..."]:
        """Code length of ``z`` in bits."""
        z, logits = _widen(z, self.logits)
        costs = -jax.nn.log_softmax(logits, axis=-1) * _LOG2_E
        last = logits.shape[-1] - 1
        position = z - self.offset.astype(z.dtype)
        inside = jnp.clip(position, 0, last)
        lower = jnp.clip(jnp.floor(inside).astype(jnp.int32), 0, max(last - 1, 0))
        weight = inside - lower.astype(z.dtype)
        between = (1 - weight) * costs[lower] + weight * costs[jnp.minimum(lower + 1, last)]
        return between + ESCAPE_BITS * jnp.minimum(jnp.abs(position - inside), 1)
