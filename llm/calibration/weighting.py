r"""Second moment and Fisher information of layers whose inputs and gradients depend on each other, token by token.

For the outputs :math:`y` of all layers that read one input :math:`x`, :math:`F_i = \mathbb{E}[d_i^2\, x x^\top]` with
the gradients :math:`d` is brought near to :math:`g_i H` (:mod:`occ_jax.quantization.product_form`), beginning with
:math:`g_i = \mathbb{E}[d_i^2]`:

.. math::

    H_1 = \mathbb{E}[s\, x x^\top], \quad
    G = \mathbb{E}[\ell\, d d^\top], \quad
    H = \mathbb{E}[s'\, x x^\top], \qquad
    s = \operatorname{mean}_i \frac{d_i^2}{\mathbb{E}[d_i^2]}, \quad
    \ell = \tfrac1n\, x^\top H_1^{-1} x, \quad
    s' = \operatorname{mean}_i \frac{d_i^2}{G_{ii}}

A second time around changes rows by a tenth of what the first one does.

References:
    Kim et al., GuidedQuant: large language model quantization via exploiting end loss guidance, arXiv:2505.07004
    (second moments whose tokens are weighted by gradients).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.product_form import token_leverages, token_weights

from .moments import CompensatedSum, gram, positive, zero_sum

LARGEST_WEIGHT = 20.0
"""What a token counts at most, in units of the mean: one token must not outweigh a window."""

LEAST_WEIGHT = 1e-6
"""So that a moment stays one where no output matters at all."""


class Tokens(NamedTuple):
    """What some tokens bring to the layers that read one input.

    Attributes:
        inputs: of the layers.
        gradients: of their outputs, by kind of layer.
    """

    inputs: Float[Array, "windows length n"]
    gradients: Mapping[str, Float[Array, "windows length rows"]]


def weighted_moments(batches: Sequence[Tokens]) -> tuple[CompensatedSum, dict[str, CompensatedSum]]:
    """Sums over tokens of the weighted second moment, and of the weighted Fisher matrix of every kind of layer.

    Args:
        batches: at least one.
    """
    inputs = batches[0].inputs
    count = sum(batch.inputs.size // inputs.shape[-1] for batch in batches)
    shapes = {kind: (d.shape[-1],) * 2 for kind, d in batches[0].gradients.items()}
    power = {kind: zero_sum(shape[:1], inputs.dtype) for kind, shape in shapes.items()}
    for batch in batches:
        power = _add_power(power, batch.gradients)
    moment = _moment(batches, {kind: jnp.asarray(total.mean(count)) for kind, total in power.items()})
    upper = jnp.asarray(_inverse_root(moment.mean(count)), inputs.dtype)
    fisher = {kind: zero_sum(shape, inputs.dtype) for kind, shape in shapes.items()}
    for batch in batches:
        fisher = _add_fisher(fisher, batch, upper)
    rows = {kind: jnp.asarray(np.diagonal(total.mean(count))) for kind, total in fisher.items()}
    return _moment(batches, rows), fisher


def _moment(batches: Sequence[Tokens], rows: Mapping[str, Float[Array, " rows"]]) -> CompensatedSum:
    inputs = batches[0].inputs
    total = zero_sum((inputs.shape[-1],) * 2, inputs.dtype)
    for batch in batches:
        total = _add_moment(total, batch, rows)
    return total


def _inverse_root(moment: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    if not np.isfinite(moment).all():  # said where the sums are finished
        return np.full_like(moment, np.nan)
    return prepare_hessian((moment + moment.T) / 2).upper


@functools.partial(jax.jit, donate_argnums=0)
def _add_power(sums: Mapping[str, CompensatedSum], gradients: Mapping[str, Array]) -> dict[str, CompensatedSum]:
    return {kind: sums[kind].add(jnp.sum(jnp.square(_flat(d)), axis=0)) for kind, d in gradients.items()}


@functools.partial(jax.jit, donate_argnums=0)
def _add_moment(total: CompensatedSum, tokens: Tokens, rows: Mapping[str, Array]) -> CompensatedSum:
    gradients = jnp.concatenate([_flat(d) for d in tokens.gradients.values()], axis=1)
    # Rows that hardly matter do not decide which tokens do, and of none that matter no token does.
    power = jnp.concatenate([positive(rows[kind]) for kind in tokens.gradients])
    power = jnp.maximum(power, jnp.finfo(power.dtype).tiny)
    weights = jnp.maximum(token_weights(gradients, power, LARGEST_WEIGHT), LEAST_WEIGHT)
    return total.add(gram(_flat(tokens.inputs) * jnp.sqrt(weights)[:, None]))


@functools.partial(jax.jit, donate_argnums=0)
def _add_fisher(sums: Mapping[str, CompensatedSum], tokens: Tokens, upper: Array) -> dict[str, CompensatedSum]:
    root = jnp.sqrt(token_leverages(_flat(tokens.inputs), upper))[:, None]
    return {kind: sums[kind].add(gram(_flat(d) * root)) for kind, d in tokens.gradients.items()}


def _flat(x: Float[Array, "windows length n"]) -> Float[Array, "tokens n"]:
    return x.reshape(-1, x.shape[-1])
