r"""Parameters of the entropy models from samples, by maximum likelihood or by moments; all jittable."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, Int

from occ_jax.entropy.models import DiscretizedGaussian, DiscretizedLaplace, GeneralizedGaussian
from occ_jax.numerics import safe_log

MIN_SCALE = 1e-3
"""Least scale that a fit returns, in steps: constant data still get a proper distribution."""

SHAPE_RANGE = (0.2, 8.0)
"""Shapes that :func:`fit_generalized_gaussian` chooses from."""


def _flat(z: Array) -> Array:
    return z.reshape(-1).astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)


def fit_gaussian(z: Float[Array, "..."] | Int[Array, "..."]) -> DiscretizedGaussian:
    r"""Gaussian of the mean and variance of ``z`` (in steps), the maximum-likelihood density.

    Integers are taken for rounded values, whose variance is :math:`1/12` too large (Sheppard's correction).

    Example:
        >>> model = fit_gaussian(jnp.array([1.0, 3.0, 1.0, 3.0]))
        >>> float(model.loc), float(model.scale)
        (2.0, 1.0)
    """
    flat = _flat(z)
    variance = jnp.var(flat) - (1 / 12 if jnp.issubdtype(z.dtype, jnp.integer) else 0)
    return DiscretizedGaussian(scale=jnp.sqrt(jnp.maximum(variance, MIN_SCALE**2)), loc=jnp.mean(flat))


def fit_laplace(z: Float[Array, "..."] | Int[Array, "..."]) -> DiscretizedLaplace:
    r"""Laplace density of the median and mean absolute deviation of ``z``, the maximum-likelihood density.

    For integers the scale is the one whose discretised density has their mean absolute deviation :math:`m` when the
    median is an integer: :math:`2 \sinh(1 / 2b) = 1 / m`.

    Example:
        >>> model = fit_laplace(jnp.array([0.0, 2.0, 4.0]))
        >>> float(model.loc), round(float(model.scale), 4)
        (2.0, 1.3333)
    """
    flat = _flat(z)
    loc = jnp.median(flat)
    deviation = jnp.maximum(jnp.mean(jnp.abs(flat - loc)), MIN_SCALE)
    if jnp.issubdtype(z.dtype, jnp.integer):
        return DiscretizedLaplace(scale=0.5 / jnp.arcsinh(0.5 / deviation), loc=loc)
    return DiscretizedLaplace(scale=deviation, loc=loc)


def generalized_gaussian_ratio(shape: Float[Array, "..."]) -> Float[Array, "..."]:
    r""":math:`\mathrm{E}|t|^2 / \mathrm{E}\,t^2 = \Gamma(2/\beta)^2 / (\Gamma(1/\beta)\, \Gamma(3/\beta))`, increasing.

    Example:
        >>> round(float(generalized_gaussian_ratio(jnp.float32(2.0))), 4)  # 2 / pi
        0.6366
    """
    a = 1 / shape
    return jnp.exp(2 * gammaln(2 * a) - gammaln(a) - gammaln(3 * a))


def fit_generalized_gaussian(z: Float[Array, "..."] | Int[Array, "..."]) -> GeneralizedGaussian:
    r"""Generalised Gaussian with the mean absolute value and the mean square of ``z``.

    The ratio :math:`(\mathrm{E}|z|)^2 / \mathrm{E}z^2` depends on the shape alone and is inverted by bisection; the
    scale follows from the mean square, :math:`\alpha^2 = \mathrm{E}z^2\, \Gamma(1/\beta) / \Gamma(3/\beta)`. For
    integers, 1/12 is taken off the mean square.

    Example:
        >>> model = fit_generalized_gaussian(jnp.array([-1.0, 1.0, -1.0, 1.0]))
        >>> float(model.shape)  # as flat as can be
        8.0

    References:
        Mallat, A theory for multiresolution signal decomposition, IEEE PAMI 1989, section IV.
    """
    flat = _flat(z)
    square = jnp.mean(flat**2) - (1 / 12 if jnp.issubdtype(z.dtype, jnp.integer) else 0)
    square = jnp.maximum(square, MIN_SCALE**2)
    ratio = jnp.mean(jnp.abs(flat)) ** 2 / square

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_flat = generalized_gaussian_ratio(jnp.exp(middle)) > ratio
        return jnp.where(too_flat, low, middle), jnp.where(too_flat, middle, high)

    bounds = jax.tree.map(lambda s: jnp.log(jnp.asarray(s, flat.dtype)), SHAPE_RANGE)
    low, high = lax.fori_loop(0, 40, halve, bounds)
    shape = jnp.clip(jnp.exp((low + high) / 2), *SHAPE_RANGE)
    log_scale = (safe_log(square) + gammaln(1 / shape) - gammaln(3 / shape)) / 2
    return GeneralizedGaussian(scale=jnp.exp(log_scale), shape=shape)
