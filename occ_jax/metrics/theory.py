r"""Limits: what no compressor beats, and what a scalar quantizer loses against them.

Rates are in bits per component, distortions are mean squared errors per component.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

UNIFORM_LOSS_BITS = 0.5 * math.log2(math.pi * math.e / 6)
r"""Loss of uniform scalar quantization with ideal entropy coding at high rate, for every smooth density.

.. math::

    \tfrac12 \log_2 \frac{\pi e}{6} \approx 0.2546 \text{ bit, or } 1.53 \text{ dB}

It is the space-filling loss of the interval against the sphere in high dimension: Gish & Pierce, Asymptotically
efficient quantizing, IEEE Trans. Information Theory 14, 1968.
"""


def gaussian_rate(distortion: Float[ArrayLike, "..."], variance: Float[ArrayLike, "..."] = 1.0) -> Float[Array, "..."]:
    r"""Rate-distortion function of a memoryless Gaussian source, in bits.

    .. math::

        R(D) = \max\left(0, \tfrac12 \log_2 \frac{\sigma^2}{D}\right)

    Args:
        distortion: mean squared error :math:`D`.
        variance: :math:`\sigma^2`.

    Example:
        >>> print(gaussian_rate(0.0625))
        2.0

    References:
        Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.2.
    """
    distortion, variance = _floats(distortion, variance)
    return jnp.maximum(0, (jnp.log2(variance) - jnp.log2(distortion)) / 2)


def gaussian_distortion(rate: Float[ArrayLike, "..."], variance: Float[ArrayLike, "..."] = 1.0) -> Float[Array, "..."]:
    r"""Distortion-rate function of a memoryless Gaussian source: :math:`D(R) = \sigma^2\, 2^{-2R}`.

    Args:
        rate: bits.
        variance: :math:`\sigma^2`.

    Example:
        >>> print(gaussian_distortion(1.0))
        0.25

    References:
        Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.2.
    """
    rate, variance = _floats(rate, variance)
    return variance * jnp.exp2(-2 * rate)


def rate_at_distortion(variances: Float[Array, " n"], distortion: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""Rate-distortion function of independent Gaussian components, by reverse water-filling.

    .. math::

        D = \frac1n \sum_i \min(\theta, \sigma_i^2), \qquad
        R = \frac1n \sum_i \max\left(0, \tfrac12 \log_2 \frac{\sigma_i^2}{\theta}\right)

    Components below the water level :math:`\theta` get no bits. With the eigenvalues of a covariance it is the limit
    for the correlated Gaussian vector.

    Args:
        variances: energies of the components, not negative.
        distortion: mean squared error per component.

    Returns:
        Bits per component, in the shape of ``distortion``.

    Example:
        >>> print(rate_at_distortion(jnp.asarray([16.0, 1.0]), jnp.asarray([1.0, 2.5])))
        [1.  0.5]

    References:
        Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3.
    """
    level = water_level(variances, distortion)
    energies = _along_last(variances.astype(level.dtype), level)
    wet = energies <= level[..., None]
    bits = jnp.where(wet, 0, jnp.log2(jnp.where(wet, 1, energies)) - jnp.log2(level)[..., None])
    return bits.mean(-1) / 2


def water_level(variances: Float[Array, " n"], distortion: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""The level :math:`\theta` of :func:`rate_at_distortion`: the distortion of every component that gets bits.

    The level is exact: with the components in descending order it is the largest of the ``n`` levels
    :math:`\theta_k = \frac1k \left(n D - \sum_{i>k} \sigma_i^2\right)`.

    Args:
        variances: energies of the components, not negative.
        distortion: mean squared error per component.

    Example:
        >>> print(water_level(jnp.asarray([16.0, 1.0]), jnp.asarray([1.0, 2.5])))
        [1. 4.]

    References:
        Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3.
    """
    variances, distortion = _floats(variances, distortion)
    n = variances.shape[0]
    rising = jnp.sort(variances)
    tails = jnp.concatenate([jnp.zeros_like(rising[:1]), jnp.cumsum(rising)[:-1]])
    counts = jnp.arange(n, 0, -1, dtype=variances.dtype)
    return ((n * distortion[..., None] - _along_last(tails, distortion)) / _along_last(counts, distortion)).max(-1)


def distortion_at_rate(variances: Float[Array, " n"], rate: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""Distortion-rate function of independent Gaussian components, the inverse of :func:`rate_at_distortion`.

    The water level is the largest of :math:`\log_2 \theta_k = \frac1k \left(\sum_{i \le k} \log_2 \sigma_i^2 -
    2 n R\right)`, components in descending order.

    Args:
        variances: energies of the components, not negative.
        rate: bits per component, not negative.

    Returns:
        Mean squared error per component, in the shape of ``rate``.

    Example:
        >>> print(distortion_at_rate(jnp.asarray([16.0, 1.0]), jnp.asarray([1.0, 0.5])).round(3))
        [1.  2.5]

    References:
        Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3.
    """
    variances, rate = _floats(variances, rate)
    n = variances.shape[0]
    heads = jnp.cumsum(jnp.log2(jnp.sort(variances)[::-1]))
    counts = jnp.arange(1, n + 1, dtype=variances.dtype)
    level = ((_along_last(heads, rate) - 2 * n * rate[..., None]) / _along_last(counts, rate)).max(-1)
    return jnp.minimum(_along_last(variances, rate), jnp.exp2(level)[..., None]).mean(-1)


def ar1_coding_gain(correlation: float, n: int | None = None) -> float:
    r"""Coding gain of the KLT of a first-order autoregressive source with correlation :math:`\rho`.

    .. math::

        G_n = (1 - \rho^2)^{-(n-1)/n}, \qquad G_\infty = \frac{1}{1 - \rho^2}

    Args:
        correlation: :math:`\rho` between neighbours, in (-1, 1).
        n: length of the transform; None for the limit.

    Raises:
        ValueError: when the correlation is not inside (-1, 1), or ``n`` is below 1.

    Example:
        >>> round(ar1_coding_gain(0.95, 8), 2), round(ar1_coding_gain(0.95), 2)
        (7.67, 10.26)

    References:
        Jayant & Noll, Digital Coding of Waveforms, 1984, section 12.4.
    """
    if not -1 < correlation < 1:
        raise ValueError(f"A stationary source has a correlation inside (-1, 1), got {correlation}.")
    if n is not None and n < 1:
        raise ValueError(f"A transform has at least one coefficient, got n={n}.")
    return (1 - correlation**2) ** (-1 if n is None else (1 - n) / n)


def _along_last(vector: Float[Array, " n"], like: Float[Array, "*shape"]) -> Float[Array, "*ones n"]:
    """The vector with the leading axes that it needs to meet ``like[..., None]``."""
    return vector.reshape((1,) * like.ndim + vector.shape)


def _floats(*values: ArrayLike) -> tuple[Array, ...]:
    """Arrays of one float dtype, float32 or wider."""
    arrays = [jnp.asarray(v) for v in values]
    dtype = np.result_type(np.float32, *(a.dtype for a in arrays if not a.weak_type))
    return tuple(a.astype(dtype) for a in arrays)
