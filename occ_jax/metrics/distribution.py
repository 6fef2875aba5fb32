"""How the entries of an array are distributed: tails, peaks, sparsity.

Every function reduces over ``axis`` (all axes when None), computes in float32 or wider and is jittable. An array of
zeros, or of equal entries where a variance is needed, gives NaN: the quantity is not defined.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Axis = int | tuple[int, ...] | None


def kurtosis(x: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    r"""Fourth standardised moment: how heavy the tails are.

    .. math::

        \kappa = \frac{\mathbb{E}[(x - \mu)^4]}{\mathbb{E}[(x - \mu)^2]^2}

    3 for a Gaussian (no excess is subtracted), 1.8 for a uniform and 6 for a Laplace distribution; at least 1. On
    ``n`` Gaussian samples its standard error is about :math:`\sqrt{24 / n}`.

    Args:
        x: values.
        axis: what to reduce over, all axes when None.

    Example:
        >>> print(kurtosis(jnp.asarray([-1.0, 1.0, -1.0, 1.0])))
        1.0
    """
    x = _widened(x)
    squares = jnp.square(x - x.mean(axis, keepdims=True))
    # Relative to the variance, fourth powers neither overflow nor vanish.
    return jnp.square(squares / squares.mean(axis, keepdims=True)).mean(axis)


def linf_rms_ratio(x: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    r"""Largest magnitude over root mean square, the crest factor: what a shared integer scale pays for outliers.

    .. math::

        \frac{\lVert x \rVert_\infty}{\lVert x \rVert_2 / \sqrt n} \in [1, \sqrt n]

    Args:
        x: values.
        axis: what to reduce over, all axes when None.

    Example:
        >>> print(linf_rms_ratio(jnp.asarray([2.0, 0.0, 0.0, 0.0])))
        2.0
    """
    magnitude = jnp.abs(_widened(x))
    peak = magnitude.max(axis, keepdims=True)
    # Relative to the peak, squares neither overflow nor vanish.
    return 1 / jnp.sqrt(jnp.square(magnitude / peak).mean(axis))


def l2_norm(x: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    r"""Euclidean norm :math:`\sqrt{\sum_i x_i^2}`, over several axes the Frobenius norm.

    Args:
        x: values.
        axis: what to reduce over, all axes when None.

    Example:
        >>> print(l2_norm(jnp.asarray([[3.0], [4.0]])))
        5.0
    """
    return jnp.sqrt(jnp.square(_widened(x)).sum(axis))


def sparsity(x: Float[Array, "..."], axis: Axis = None, *, threshold: float = 0.0) -> Float[Array, "..."]:
    r"""Fraction of entries that are negligible: :math:`|x_i| \le \tau \cdot \mathrm{RMS}(x)`.

    The threshold is relative, so that the fraction does not change when the array is scaled.

    Args:
        x: values.
        axis: what to reduce over, all axes when None.
        threshold: :math:`\tau`, in units of the root mean square; 0 counts exact zeros.

    Raises:
        ValueError: when the threshold is negative.

    Example:
        >>> print(sparsity(jnp.asarray([0.0, 0.0, 1.0, 2.0])))
        0.5
    """
    if threshold < 0:
        raise ValueError(f"A magnitude is never below a threshold of {threshold}: use 0 or more.")
    x = _widened(x)
    rms = jnp.sqrt(jnp.square(x).mean(axis, keepdims=True))
    return (jnp.abs(x) <= threshold * rms).mean(axis, dtype=x.dtype)


def gini(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    r"""Gini index of the magnitudes: 0 when all are equal, :math:`1 - 1/n` when one entry holds everything.

    .. math::

        G = \frac{\sum_{i=1}^{n} (2i - n - 1)\, |x|_{(i)}}{n \sum_i |x_i|},
        \qquad |x|_{(1)} \le \dots \le |x|_{(n)}

    It is the measure of sparsity that keeps all of Hurley and Rickard's axioms, among them indifference to scale
    and to repetition of the data. 1/2 for a Laplace, :math:`\sqrt2 - 1` for a Gaussian distribution.

    Args:
        x: values.
        axis: the axis to reduce over, all entries when None.

    Example:
        >>> print(gini(jnp.asarray([0.0, 0.0, 0.0, 1.0])))
        0.75

    References:
        Hurley & Rickard, Comparing measures of sparsity, IEEE Trans. Information Theory 55, 2009.
    """
    magnitude = jnp.abs(_widened(x))
    magnitude = magnitude.ravel() if axis is None else jnp.moveaxis(magnitude, axis, -1)
    magnitude = jnp.sort(magnitude, axis=-1)
    n = magnitude.shape[-1]
    weights = (2 * jnp.arange(1, n + 1, dtype=magnitude.dtype) - (n + 1)) / n
    # The mean is taken out first: sums of many small terms stay accurate in float32.
    return (magnitude / magnitude.mean(-1, keepdims=True)) @ weights / n


def _widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(np.promote_types(x.dtype, jnp.float32))
