"""What a reconstruction lost."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Axis = int | tuple[int, ...] | None


def mse(x: Float[Array, "*shape"], x_hat: Float[Array, "*shape"], axis: Axis = None) -> Float[Array, "..."]:
    r"""Mean squared error :math:`\frac1n \sum_i (x_i - \hat x_i)^2`, in float32 or wider.

    Args:
        x: original.
        x_hat: reconstruction.
        axis: what to reduce over, all axes when None.

    Example:
        >>> print(mse(jnp.asarray([1.0, 2.0]), jnp.asarray([1.0, 4.0])))
        2.0
    """
    return jnp.square(_difference(x, x_hat)).mean(axis)


def sqnr_db(x: Float[Array, "*shape"], x_hat: Float[Array, "*shape"], axis: Axis = None) -> Float[Array, "..."]:
    r"""Signal to quantization noise ratio in decibels.

    .. math::

        10 \log_{10} \frac{\sum_i x_i^2}{\sum_i (x_i - \hat x_i)^2}

    One more bit for each entry is worth 6.02 dB. Infinite when nothing was lost.

    Args:
        x: original.
        x_hat: reconstruction.
        axis: what to reduce over, all axes when None.

    Example:
        >>> print(sqnr_db(jnp.asarray([10.0, 0.0]), jnp.asarray([9.0, 0.0])))
        20.0
    """
    error = _difference(x, x_hat)
    signal = jnp.square(x.astype(error.dtype)).sum(axis)
    return 10 * (jnp.log10(signal) - jnp.log10(jnp.square(error).sum(axis)))


def hessian_weighted_error(
    w: Float[Array, "d_out d_in"],
    w_hat: Float[Array, "d_out d_in"],
    hessian: Float[Array, "d_in d_in"],
    *,
    row_weights: Float[Array, " d_out"] | Float[Array, "d_out d_out"] | None = None,
) -> Float[Array, ""]:
    r"""Expected squared error of a linear layer's outputs.

    .. math::

        D = \operatorname{tr}(G E H E^\top) = \sum_i g_i\, e_i H e_i^\top = \mathbb{E}\,\bigl\lVert
        \operatorname{diag}(g)^{1/2} E\, x \bigr\rVert^2, \qquad H = \mathbb{E}[x x^\top]

    with :math:`E = W - \hat W` of rows :math:`e_i`, the last two if :math:`G` is diagonal. With :math:`G` the Fisher
    information of the outputs, ``D / 2`` is to second order the increase of the model's Kullback-Leibler divergence, in
    nats.

    Args:
        w: weight.
        w_hat: reconstruction.
        hessian: :math:`H`, second moment of the layer's inputs.
        row_weights: :math:`G`, or its diagonal :math:`g`; ones when None.

    Returns:
        The sum over rows, not a mean, in float32 or wider.

    Example:
        >>> print(hessian_weighted_error(jnp.eye(2), jnp.zeros((2, 2)), jnp.diag(jnp.asarray([3.0, 1.0]))))
        4.0

    References:
        Nagel et al., Up or down? Adaptive rounding, 2020, arXiv:2004.10568, section 3.
    """
    error = _difference(w, w_hat)
    products = jnp.matmul(error, hessian.astype(error.dtype), precision="highest")
    if row_weights is not None and row_weights.ndim == 2:
        return (jnp.matmul(row_weights.astype(error.dtype), products, precision="highest") * error).sum()
    rows = (products * error).sum(-1)
    return rows.sum() if row_weights is None else (rows * row_weights.astype(error.dtype)).sum()


def _difference(x: Float[Array, "*shape"], x_hat: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    dtype = np.promote_types(np.promote_types(x.dtype, x_hat.dtype), jnp.float32)
    return x.astype(dtype) - x_hat.astype(dtype)
