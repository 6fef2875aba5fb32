r"""What the data themselves say about their rate: counts and empirical entropies of integer indices."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

MAX_DENSE_RANGE = 1 << 22
"""Range of values up to which they are counted with one bin for each value."""


def value_counts(q: Integer[np.ndarray, "..."] | Int[Array, "..."]) -> tuple[np.ndarray, np.ndarray]:
    """The different values of ``q`` in increasing order and how often each occurs.

    Example:
        >>> value_counts(np.array([3, -1, 3]))
        (array([-1,  3]), array([1, 2]))
    """
    flat = np.asarray(q).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    low, high = int(flat.min()), int(flat.max())
    if high - low >= MAX_DENSE_RANGE:
        values, counts = np.unique(flat.astype(np.int64), return_counts=True)
        return values, counts
    counts = np.bincount(flat.astype(np.int64) - low, minlength=high - low + 1)
    values = np.flatnonzero(counts)
    return values + low, counts[values]


def histogram(q: Int[Array, "..."], offset: int, num_values: int) -> Int32[Array, " num_values"]:
    """How often each of ``offset, offset + 1, ...`` occurs in ``q``; other values are not counted. Jittable.

    Example:
        >>> histogram(jnp.array([0, 1, 1, 7]), offset=0, num_values=3)
        Array([1, 2, 0], dtype=int32)
    """
    index = q.reshape(-1).astype(jnp.int32) - offset
    index = jnp.where((index >= 0) & (index < num_values), index, num_values)
    return jnp.zeros(num_values + 1, jnp.int32).at[index].add(1)[:-1]


def entropy_bits(counts: Integer[np.ndarray, " n"]) -> float:
    r"""Entropy of the distribution of ``counts``, :math:`-\sum_s p_s \log_2 p_s`, in bits per symbol.

    Example:
        >>> entropy_bits(np.array([2, 1, 1, 0]))
        1.5
    """
    counts = np.asarray(counts, np.float64)
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0


def empirical_entropy_bits(
    q: Integer[np.ndarray, "..."] | Int[Array, "..."],
    contexts: Integer[np.ndarray, "..."] | Int[Array, "..."] | None = None,
) -> float:
    r"""Empirical entropy of indices, given their contexts if there are any, in bits per symbol.

    .. math::

        \hat H(Q \mid C) = \sum_c \frac{N_c}{N} \hat H(Q \mid C = c)

    The least that an order-0 coder with one ideal table per context can reach, its tables not counted: that is
    about :math:`\tfrac12 \log_2 N_c` bits for every entry of a table, which makes many contexts look better than
    they are.

    Example:
        >>> empirical_entropy_bits(np.array([0, 0, 1, 1])), empirical_entropy_bits(np.arange(4) // 2, np.arange(4) // 2)
        (1.0, 0.0)

    References:
        Cover & Thomas, Elements of Information Theory, 2006, section 2.2.
    """
    q = np.asarray(q).reshape(-1)
    if contexts is None:
        return entropy_bits(value_counts(q)[1])
    contexts = np.asarray(contexts).reshape(-1)
    if contexts.shape != q.shape:
        raise ValueError(f"{q.size} indices need as many contexts, got {contexts.size}")
    order = np.argsort(contexts, kind="stable")
    groups = np.split(q[order], np.flatnonzero(np.diff(contexts[order])) + 1)
    return sum(group.size * entropy_bits(value_counts(group)[1]) for group in groups) / max(q.size, 1)
