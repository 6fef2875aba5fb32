r"""Divergence of a network's predictions from another's, with a gradient that costs one more product with the head.

With :math:`z = h W^\top` the logits of one position and :math:`p` the other network's probabilities,

.. math::

    D_{KL}(p \,\|\, q) = \sum_v p_v \log \frac{p_v}{q_v}, \qquad q = \operatorname{softmax}(z), \qquad
    \frac{\partial D_{KL}}{\partial h} = (q - p)\, W

so the gradient in the hidden states is taken while the logits of a few positions exist, and nothing as large as the
vocabulary is kept or computed again on the way back.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

POSITIONS = 256
"""Positions whose logits exist at a time."""


@jax.custom_vjp
def mean_divergence(
    states: Float[Array, "length own_width"],
    own_head: Float[Array, "vocab own_width"],
    hidden: Float[Array, "length width"],
    head: Float[Array, "vocab width"],
) -> Float[Array, ""]:
    """Mean divergence of the predictions at some positions from the original's, nats per token.

    Differentiable in ``states``; everything else is a constant, whose gradient is zero.

    Args:
        states: final hidden states.
        own_head: output matrix.
        hidden: the original's final hidden states.
        head: its output matrix.
    """

    divergences = jax.lax.map(lambda rows: _compare(rows, own_head, head)[0], (states, hidden), batch_size=POSITIONS)
    return jnp.mean(divergences)


def _with_gradient(states: Array, own_head: Array, hidden: Array, head: Array) -> tuple[Array, Array]:
    def of_position(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        divergence, surplus = _compare(rows, own_head, head)
        return divergence, jnp.matmul(surplus, own_head, precision="highest")

    divergences, gradient = jax.lax.map(of_position, (states, hidden), batch_size=POSITIONS)
    return jnp.mean(divergences), gradient / len(states)


def _backward(gradient: Array, cotangent: Array) -> tuple[Array, None, None, None]:
    return cotangent * gradient, None, None, None


def _compare(rows: tuple[Array, Array], own_head: Array, head: Array) -> tuple[Array, Array]:
    """Divergence at one position, and by how much each probability is too large."""
    ours, theirs = (jnp.matmul(w, x, precision="highest") for x, w in zip(rows, (own_head, head), strict=True))
    own_total, total = jax.nn.logsumexp(ours), jax.nn.logsumexp(theirs)
    p = jnp.exp(theirs - total)
    return jnp.sum(p * (theirs - ours)) + own_total - total, jnp.exp(ours - own_total) - p


mean_divergence.defvjp(_with_gradient, _backward)
