r"""How unequal a set of energies is: effective dimensions and coding gain.

The argument is a spectrum along the last axis: eigenvalues :math:`\lambda_i \ge 0` of a second moment, squared
singular values of a weight, or variances of coefficients. Order does not matter. All but ``coding_gain`` say in how
many dimensions the energy lies, from 1 (in a single one) to ``n`` (evenly), and do not change when the spectrum is
scaled; they are Rényi-type ranks and so ordered: stable rank <= participation ratio <= entropy rank <= n.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float


def participation_ratio(spectrum: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    r"""Participation ratio of a spectrum, its effective dimension of order two.

    .. math::

        \frac{\left(\sum_i \lambda_i\right)^2}{\sum_i \lambda_i^2}

    Args:
        spectrum: energies, not negative.

    Example:
        >>> print(participation_ratio(jnp.asarray([1.0, 1.0, 0.0, 0.0])))
        2.0
    """
    return 1 / jnp.square(_shares(spectrum)).sum(-1)


def entropy_rank(spectrum: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    r"""Effective rank: the exponential of the entropy of the normalised spectrum.

    .. math::

        \exp\left(-\sum_i p_i \ln p_i\right), \qquad p_i = \frac{\lambda_i}{\sum_j \lambda_j}

    Args:
        spectrum: energies, not negative.

    Example:
        >>> print(entropy_rank(jnp.asarray([1.0, 1.0, 0.0, 0.0])))
        2.0

    References:
        Roy & Vetterli, The effective rank, EUSIPCO 2007 (there for singular values).
    """
    return jnp.exp(entr(_shares(spectrum)).sum(-1))


def stable_rank(spectrum: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    r"""Total energy over the largest: :math:`\sum_i \lambda_i / \max_i \lambda_i`.

    For squared singular values of a matrix it is :math:`\lVert W \rVert_F^2 / \lVert W \rVert_2^2`.

    Args:
        spectrum: energies, not negative.

    Example:
        >>> print(stable_rank(jnp.asarray([4.0, 2.0, 2.0])))
        2.0

    References:
        Rudelson & Vershynin, Sampling from large matrices, J. ACM 54, 2007.
    """
    return 1 / _shares(spectrum).max(-1)


def coding_gain(variances: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    r"""Arithmetic over geometric mean of variances: what optimal bit allocation gains over equal bits.

    .. math::

        G = \frac{\frac1n \sum_i \sigma_i^2}{\left(\prod_i \sigma_i^2\right)^{1/n}} \ge 1

    At high rate the distortion falls by the factor ``G``, or the rate by :math:`\frac12 \log_2 G` bits
    (:func:`coding_gain_bits`). A variance of zero makes it infinite.

    Args:
        variances: energies of coefficients, not negative.

    Example:
        >>> print(coding_gain(jnp.asarray([4.0, 1.0])))
        1.25

    References:
        Jayant & Noll, Digital Coding of Waveforms, 1984, chapter 12. Goyal, Theoretical foundations of transform
        coding, 2001.
    """
    return jnp.exp(_log_gain(variances))


def coding_gain_bits(variances: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    r"""Coding gain as a rate: :math:`\frac12 \log_2 G`, in bits per coefficient saved at equal distortion.

    Args:
        variances: energies of coefficients, not negative.

    Example:
        >>> print(coding_gain_bits(jnp.asarray([16.0, 4.0, 1.0, 1.0])).round(2))
        0.48
    """
    return _log_gain(variances) / (2 * math.log(2))


def _log_gain(variances: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Minus the mean logarithm of the energies over their mean: logarithms of numbers near one."""
    shares = _shares(variances)
    return -jnp.log(shares * shares.shape[-1]).mean(-1)


def _shares(spectrum: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Energies over their sum; through the largest, so that the sum does not overflow."""
    spectrum = spectrum.astype(np.promote_types(spectrum.dtype, jnp.float32))
    spectrum = spectrum / spectrum.max(-1, keepdims=True)
    return spectrum / spectrum.sum(-1, keepdims=True)
