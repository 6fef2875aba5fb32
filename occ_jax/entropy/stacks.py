"""Stacks of frequency tables: several tables in one array, made and widened on the host.

Arrays of JAX would compile a slice or a conversion for every width of a table. Even to make one of an array of NumPy
compiles a copy for every new shape, unless its type is named.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer

from occ_jax.entropy.tables import FreqTable, cost_bits, normalize_counts


def stack(tables: Sequence[FreqTable]) -> FreqTable:
    """One stack of single tables of equal precision; shorter ones get zero frequencies before their escape.

    Example:
        >>> from occ_jax.entropy import from_counts
        >>> stack([from_counts(np.ones(3, int), 0, 4), from_counts(np.ones(1, int), 5, 4)]).freq
        Array([[ 5,  5,  5,  1],
               [15,  0,  0,  1]], dtype=uint32)
    """
    if not tables:
        raise ValueError("stack needs at least one table")
    precisions = {table.precision for table in tables}
    if len(precisions) > 1:
        raise ValueError(f"tables of one stack need one precision, got {sorted(precisions)}")
    offsets = np.array([np.asarray(table.offset) for table in tables], np.int32)
    return _stacked([np.asarray(table.freq) for table in tables], offsets, precisions.pop())


def stack_from_counts(
    counts: Sequence[Integer[np.ndarray, " _"]], offsets: Sequence[int], precision: int = 12
) -> FreqTable:
    """:func:`from_counts` of several tables as one :func:`stack`, made on the host.

    Example:
        >>> stack_from_counts([np.ones(3, int), np.ones(1, int)], [0, 5], precision=4).freq
        Array([[ 5,  5,  5,  1],
               [15,  0,  0,  1]], dtype=uint32)
    """
    freqs = [normalize_counts(np.append(np.asarray(row, np.int64), 0), 1 << precision) for row in counts]
    return _stacked(freqs, np.asarray(offsets, np.int32), precision)


def _stacked(
    freqs: Sequence[Integer[np.ndarray, " _"]], offsets: Int32[np.ndarray, " tables"], precision: int
) -> FreqTable:
    wide = np.zeros((len(freqs), max(freq.size for freq in freqs)), np.uint32)
    for row, freq in zip(wide, freqs, strict=True):
        row[: freq.size - 1] = freq[:-1]
        row[-1] = freq[-1]
    return FreqTable(jnp.asarray(wide, jnp.uint32), jnp.asarray(offsets, jnp.int32), precision)


def widen(tables: FreqTable, num_symbols: int) -> FreqTable:
    """The same code with symbols of zero frequency before the escape, up to ``num_symbols`` in all: one shape for many.

    Example:
        >>> from occ_jax.entropy import from_counts
        >>> widen(from_counts(np.ones(1, int), 5, 4), 4).freq
        Array([15,  0,  0,  1], dtype=uint32)
    """
    freq = np.asarray(tables.freq)
    zeros = np.zeros((*freq.shape[:-1], num_symbols - freq.shape[-1]), freq.dtype)
    wide = np.concatenate([freq[..., :-1], zeros, freq[..., -1:]], axis=-1)
    return FreqTable(jnp.asarray(wide, jnp.uint32), tables.offset, tables.precision)


def host_cost_bits(tables: FreqTable) -> Float32[np.ndarray, "*tables symbols"]:
    """:func:`~occ_jax.entropy.tables.cost_bits` on the host, compiled for a few widths and not for every one.

    Example:
        >>> from occ_jax.entropy import from_counts
        >>> host_cost_bits(from_counts(np.array([7, 8]), 0, precision=4)).tolist()
        [1.1926450729370117, 1.0, 20.0]
    """
    width = 1 << (tables.num_symbols - 1).bit_length()
    bits = np.asarray(cost_bits(widen(tables, width)))
    return np.concatenate([bits[..., : tables.num_symbols - 1], bits[..., -1:]], axis=-1)
