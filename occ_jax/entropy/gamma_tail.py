r"""The regularised incomplete gamma functions as smooth formulas, differentiable in both arguments.

The general-purpose routines iterate until convergence, underflow in the tail, and take minutes to compile with the
derivative in their first argument. For the shapes of weight distributions (``a`` up to 8) a fixed series and a fixed
continued fraction do.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

SWITCH = 6.0
"""Arguments up to this use the series, larger ones the continued fraction."""

NUM_SERIES_TERMS = 64
"""Terms of the series: beyond float64 accuracy for ``x <= 6``."""

NUM_FRACTION_TERMS = 32
"""Terms of the continued fraction: beyond float32 accuracy, and 1e-10, for ``x >= 6`` and ``a <= 8``."""


def gamma_series(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The series of the lower function without its leading factor, for :math:`0 \le x \le 6`.

    .. math::

        P(a, x) = \frac{x^a e^{-x}}{\Gamma(a + 1)} S(a, x),
        \qquad S(a, x) = \sum_{n=0}^\infty \frac{x^n}{(a + 1) (a + 2) \cdots (a + n)}

    Example:
        >>> float(gamma_series(jnp.float32(0.5), jnp.float32(0.0)))
        1.0

    References:
        NIST Digital Library of Mathematical Functions, 8.7.1 and 8.5.1.
    """

    def horner(k, total):
        return 1 + x / (a + (NUM_SERIES_TERMS - k).astype(x.dtype)) * total

    return lax.fori_loop(0, NUM_SERIES_TERMS, horner, jnp.ones_like(x))


def log_gammaincc(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    r""":math:`\log Q(a, x)` with :math:`Q = 1 - P`, for ``0 < a <= 8`` and ``x > 0``; finite far beyond underflow.

    For large :math:`x` by Legendre's continued fraction,

    .. math::

        Q(a, x) = \frac{e^{-x} x^a}{\Gamma(a)}
        \cfrac{1}{x + 1 - a - \cfrac{1 (1 - a)}{x + 3 - a - \cfrac{2 (2 - a)}{x + 5 - a - \cdots}}}

    Example:
        >>> float(log_gammaincc(jnp.float32(0.5), jnp.float32(1000.0)))
        -1004.026...

    References:
        NIST Digital Library of Mathematical Functions, 8.9.2.
    """
    a, x = jnp.broadcast_arrays(a, x)
    is_large = x > SWITCH
    moderate, large = jnp.where(is_large, SWITCH, x), jnp.where(is_large, x, SWITCH)

    def backwards(k, fraction):
        n = (NUM_FRACTION_TERMS - k).astype(x.dtype)
        return large + (2 * n - 1) - a - n * (n - a) / fraction

    fraction = lax.fori_loop(0, NUM_FRACTION_TERMS, backwards, large + (2 * NUM_FRACTION_TERMS + 1) - a)
    tail = a * jnp.log(large) - large - gammaln(a) - jnp.log(fraction)
    lower = jnp.exp(a * jnp.log(moderate) - moderate - gammaln(a + 1)) * gamma_series(a, moderate)
    return jnp.where(is_large, tail, jnp.log1p(-jnp.minimum(lower, 1 - jnp.finfo(x.dtype).eps)))
