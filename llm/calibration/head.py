r"""The end of the network: labels drawn from the model's own predictions, and the gradient that they send back.

The Fisher information of a network is the second moment of gradients whose labels come from the *model*, not from the
text. One label per position is drawn, :math:`v_t \sim p_t`; its gradient at the logits is :math:`p_t - 1_{v_t}`. For
the logits themselves no draw is needed: :math:`\mathbb{E}[(p_v - 1_v)^2] = p_v (1 - p_v)`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

_POSITIONS = 256  # logits of so many positions exist at a time
_GROUP = 256  # tokens per group in the two-stage search of a label


class HeadGradient(NamedTuple):
    """What drawing one label per position gives.

    Attributes:
        hidden: gradient of the negative log-likelihood of the labels at the inputs of the head.
        logit_fisher: sum over positions of ``p_v (1 - p_v)``.
        labels: the labels.
    """

    hidden: Float[Array, "positions width"]
    logit_fisher: Float[Array, " vocab"]
    labels: Int[Array, " positions"]


@functools.partial(jax.jit, static_argnames=("count", "length"))
def label_bits(key: Array, first: int | Int[Array, ""], *, count: int, length: int) -> UInt32[Array, "windows length"]:
    """Random bits for the labels of some windows, the same for a window whatever batch it comes in.

    Args:
        key: of the whole calibration.
        first: number of the first window.
        count: how many windows.
        length: positions in a window.
    """
    keys = jax.vmap(lambda window: jax.random.fold_in(key, window))(first + jnp.arange(count))
    return jax.vmap(lambda k: jax.random.bits(k, (length,), jnp.uint32))(keys)


def head_gradient(
    hidden: Float[Array, "positions width"], head: Float[Array, "vocab width"], bits: UInt32[Array, " positions"]
) -> HeadGradient:
    """Draw labels from ``softmax(hidden @ head.T)`` and differentiate their negative log-likelihood.

    Args:
        hidden: inputs of the head.
        head: output matrix.
        bits: the randomness, 32 bits for each label.
    """
    count = hidden.shape[0]
    size = min(_POSITIONS, count)
    pad = -count % size
    present = jnp.arange(count + pad) < count
    chunks = jax.tree.map(
        lambda rows: rows.reshape(-1, size, *rows.shape[1:]),
        (jnp.pad(hidden, ((0, pad), (0, 0))), jnp.pad(bits, (0, pad)), present),
    )

    def step(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        x, chunk_bits, valid = chunk
        p = jax.nn.softmax(jnp.matmul(x, head.T), axis=-1)
        labels = draw(p, chunk_bits)
        gradient = jnp.matmul(p, head) - head[labels]
        variance = jnp.matmul(valid.astype(p.dtype), p * (1 - p))  # a product: sums down columns are slow on CPUs
        return total + variance, (gradient, labels)

    zero = jnp.zeros(head.shape[0], hidden.dtype)
    with jax.default_matmul_precision("highest"):
        logit_fisher, (gradient, labels) = jax.lax.scan(step, zero, chunks)
    return HeadGradient(gradient.reshape(-1, hidden.shape[1])[:count], logit_fisher, labels.reshape(-1)[:count])


def draw(p: Float[Array, "positions vocab"], bits: UInt32[Array, " positions"]) -> Int[Array, " positions"]:
    """One label per row of probabilities, by inversion of the distribution function.

    The search goes first over groups of tokens and then inside one group, so that no cumulative sum over the
    vocabulary is formed.

    Example:
        >>> print(draw(jnp.array([[0.25, 0.75], [0.25, 0.75]]), jnp.array([2**29, 2**31], jnp.uint32)))
        [0 1]
    """
    vocab = p.shape[1]
    groups = jnp.pad(p, ((0, 0), (0, -vocab % _GROUP))).reshape(p.shape[0], -1, _GROUP)
    mass = jnp.cumsum(groups.sum(-1), axis=-1)
    unit = bits.astype(p.dtype) * jnp.asarray(2.0**-32, p.dtype)
    target = unit * mass[:, -1]
    group = _first_above(mass, target)
    before = jnp.where(group > 0, _take(mass, jnp.maximum(group - 1, 0)), 0)
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    token = _first_above(jnp.cumsum(inside, axis=-1), target - before)
    return jnp.minimum(group * _GROUP + token, vocab - 1)


def _first_above(cumulative: Float[Array, "rows n"], target: Float[Array, " rows"]) -> Int[Array, " rows"]:
    """Index of the first entry greater than the target, the last one if rounding leaves none."""
    return jnp.minimum(jnp.sum(cumulative <= target[:, None], axis=-1), cumulative.shape[1] - 1)


def _take(rows: Float[Array, "rows n"], index: Int[Array, " rows"]) -> Float[Array, " rows"]:
    return jnp.take_along_axis(rows, index[:, None], axis=1)[:, 0]
