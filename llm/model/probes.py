r"""Gradients of layer outputs, read off through probes.

A probe is an extra input that joins the output of a linear layer. Added zeros (the default of
:func:`occ_llm.model.forward_pass.observe`) have the gradient :math:`\partial L / \partial y` of every token. Where
only its square is wanted, as for the diagonal Fisher information, :func:`attach_squared` sums it over tokens inside
the backward pass and the per-token gradients of the network never exist together. A factor for each output, as
:func:`attach_factor` joins it, is a factor for a row of the layer's matrix, and no gradient of the matrix is formed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config import ModelConfig


def output_sizes(config: ModelConfig) -> Mapping[str, int]:
    """Outputs of each linear layer of a block."""
    heads = config.num_heads + 2 * config.num_kv_heads
    return {
        "qkv": heads * config.head_dim,
        "o": config.hidden_size,
        "gate_up": 2 * config.intermediate_size,
        "down": config.hidden_size,
    }


def zero_probes(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype) -> dict[str, Array]:
    """Probes for addition: one value for every layer, token and output."""
    return {n: jnp.zeros((config.num_layers, batch, length, d), dtype) for n, d in output_sizes(config).items()}


def zero_squared_probes(config: ModelConfig, dtype: jnp.dtype) -> dict[str, Array]:
    """Probes for :func:`attach_squared`: one value for every layer and output."""
    return {n: jnp.zeros((config.num_layers, d), dtype) for n, d in output_sizes(config).items()}


@jax.custom_vjp
def attach_squared(y: Float[Array, "... d_out"], probe: Float[Array, " d_out"]) -> Float[Array, "... d_out"]:
    r"""``y`` unchanged; in the backward pass the probe receives :math:`\sum_t (\partial L / \partial y_{ti})^2`.

    This is no gradient of anything: it is a sum of squares carried where a gradient would be, so use it in a backward
    pass of its own and never divide the loss (a mean over N tokens scales the squares by 1/N^2).

    Example:
        >>> def loss(probe):
        ...     return jnp.sum(jnp.asarray([[1.0, 2.0], [3.0, 4.0]]) * attach_squared(jnp.ones((2, 2)), probe))
        >>> print(jax.grad(loss)(jnp.zeros(2)))
        [10. 20.]
    """
    return y


def _attach_squared_forward(y: Array, probe: Array) -> tuple[Array, None]:
    return y, None


def _attach_squared_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    return gradient, jnp.sum(gradient * gradient, axis=tuple(range(gradient.ndim - 1)))


attach_squared.defvjp(_attach_squared_forward, _attach_squared_backward)


@jax.custom_vjp
def attach_factor(y: Float[Array, "... d_out"], logarithm: Float[Array, " d_out"]) -> Float[Array, "... d_out"]:
    """``y * exp(logarithm)``; the backward pass reads the product, which what follows keeps anyway, and not ``y`` too.

    Example:
        >>> y, loss = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), lambda s, y: jnp.sum(attach_factor(y, s))
        >>> print(jax.grad(loss)(jnp.zeros(2), y))
        [4. 6.]
    """
    return _attach_factor_forward(y, logarithm)[0]


def _attach_factor_forward(y: Array, logarithm: Array) -> tuple[Array, tuple[Array, Array]]:
    factor = jnp.exp(logarithm).reshape((1,) * (y.ndim - 1) + (-1,))
    product = y * factor
    return product, (product, factor)


def _attach_factor_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    product, factor = kept
    of_logarithm = jnp.einsum("ti,ti->i", *(x.reshape(-1, factor.size) for x in (gradient, product)))
    return gradient * factor, of_logarithm


attach_factor.defvjp(_attach_factor_forward, _attach_factor_backward)
