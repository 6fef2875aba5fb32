r"""Numerical primitives with useful gradients: rounding, soft rounding, lower bounds, logarithms near their poles."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def straight_through_round(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Round to the nearest integer, ties to even; the gradient is that of the identity.

    Example:
        >>> jax.value_and_grad(straight_through_round)(1.7)
        (Array(2., dtype=float32, weak_type=True), Array(1., dtype=float32, weak_type=True))

    References:
        Bengio, Léonard & Courville, Estimating or propagating gradients through stochastic neurons, 2013, section 4.
    """
    return x + lax.stop_gradient(jnp.round(x) - x)


def soft_round(x: Float[Array, "*shape"], alpha: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    r"""A differentiable stand-in for rounding, from the identity (``alpha`` to 0) to hard rounding (to infinity).

    .. math::

        s_\alpha(x) = \lfloor x \rfloor + \frac12 + \frac{\tanh(\alpha r)}{2 \tanh(\alpha / 2)},
        \qquad r = x - \lfloor x \rfloor - \tfrac12

    Strictly increasing, and integers and half-integers are its fixed points.

    Args:
        x: values, in steps.
        alpha: sharpness, positive.

    Example:
        >>> soft_round(jnp.array([0.2, 0.5, 1.0]), 8.0).round(3)
        Array([0.008, 0.5  , 1.   ], dtype=float32)

    References:
        Agustsson & Theis, Universally quantized neural compression, NeurIPS 2020, equation 14.
    """
    alpha = jnp.asarray(alpha, x.dtype)
    center = jnp.floor(x) + 0.5
    return center + jnp.tanh(alpha * (x - center)) / (2 * jnp.tanh(alpha / 2))


def soft_round_inverse(y: Float[Array, "*shape"], alpha: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    r"""Inverse of :func:`soft_round`.

    .. math::

        s_\alpha^{-1}(y) = \lfloor y \rfloor + \tfrac12
        + \frac1\alpha \operatorname{artanh}\left(2 \tanh(\alpha / 2) (y - \lfloor y \rfloor - \tfrac12)\right)

    Example:
        >>> x = jnp.array([-0.3, 0.2, 0.9])
        >>> bool(jnp.allclose(soft_round_inverse(soft_round(x, 4.0), 4.0), x, atol=1e-5))
        True
    """
    alpha = jnp.asarray(alpha, y.dtype)
    center = jnp.floor(y) + 0.5
    # tanh(alpha / 2) rounds to 1 for a sharp alpha; the pole of artanh must stay outside.
    edge = 1 - jnp.finfo(y.dtype).eps
    return center + jnp.arctanh(jnp.clip(2 * jnp.tanh(alpha / 2) * (y - center), -edge, edge)) / alpha


@jax.custom_vjp
def lower_bound(x: Float[Array, "*shape"], bound: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    r"""``max(x, bound)`` with a gradient that can bring ``x`` back above the bound.

    The gradient of ``max`` vanishes below the bound, where a parameter would be stuck. Here the gradient :math:`g` with
    respect to the result is passed on to ``x`` wherever :math:`x \ge \text{bound}` or :math:`g < 0`, that is, where
    gradient descent moves ``x`` up. The bound gets no gradient.

    Example:
        >>> x = jnp.array(0.25)
        >>> float(jax.grad(lambda x: -lower_bound(x, 1.0))(x)), float(jax.grad(lambda x: lower_bound(x, 1.0))(x))
        (-1.0, 0.0)

    References:
        Ballé et al., Variational image compression with a scale hyperprior, ICLR 2018 (its reference code).
    """
    return jnp.maximum(x, jnp.asarray(bound, jnp.result_type(x)))


def _lower_bound_forward(x, bound):
    return lower_bound(x, bound), (x >= jnp.asarray(bound, jnp.result_type(x)), jnp.zeros_like(bound))


def _lower_bound_backward(residuals, gradient):
    is_inside, no_gradient = residuals
    return jnp.where(is_inside | (gradient < 0), gradient, jnp.zeros_like(gradient)), no_gradient


lower_bound.defvjp(_lower_bound_forward, _lower_bound_backward)


def safe_log(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r""":math:`\log \max(x, \varepsilon)` with :math:`\varepsilon` the smallest normal number: finite for ``x >= 0``.

    Value and gradient are finite everywhere; the gradient below the bound is zero.

    Example:
        >>> jax.grad(safe_log)(0.0)
        Array(0., dtype=float32, weak_type=True)
    """
    tiny = jnp.finfo(jnp.result_type(x)).tiny
    is_normal = x >= tiny
    return jnp.where(is_normal, jnp.log(jnp.where(is_normal, x, 1)), jnp.log(tiny))


def log1mexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r""":math:`\log(1 - e^{-x})` for ``x > 0``, accurate for small and for large ``x``.

    Example:
        >>> float(log1mexp(jnp.float32(1e-10))), float(log1mexp(jnp.float32(100.0)))
        (-23.025850296020508, -0.0)

    References:
        Mächler, Accurately computing log(1 - exp(-|a|)), 2012, equation 7.
    """
    small = x < jnp.log(2.0)
    near = jnp.where(small, x, 1)
    far = jnp.where(small, 1, x)
    return jnp.where(small, safe_log(-jnp.expm1(-near)), jnp.log1p(-jnp.exp(-far)))
