r"""From trellis indices to rANS streams and back: the decoder walks the trellis.

A lane of the entropy coder holds whole consecutive rows, and the trellis starts in state 0 at the head of every row.
The symbol :math:`k = \lfloor q / 2 \rfloor` of a weight is coded with the table of its scale class and of the parity
of the state; knowing the state, the decoder has :math:`q = 2 k + p` and, with the subset bit :math:`k \bmod 2`, the
next state. With one state all this falls away: :math:`k = q`, one table for each class.
"""

import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Int, Int32

from occ_jax.entropy.rans import decode_adaptive, encode
from occ_jax.entropy.streams import Streams
from occ_jax.entropy.tables import FreqTable
from occ_jax.quantization.codebook import symbol, table_index
from occ_jax.quantization.scales import scale_classes
from occ_jax.quantization.ungerboeck import check_num_states, num_parities, step_state

LANE_SYMBOLS = 1 << 14
"""Symbols that a lane should have: enough to make its few bytes of overhead 0.004 bit each."""


def rows_per_lane(num_columns: int, lane_symbols: int = LANE_SYMBOLS) -> int:
    """Rows that make a lane of about ``lane_symbols``; at least one.

    Example:
        >>> rows_per_lane(576), rows_per_lane(100_000)
        (28, 1)
    """
    return max(1, round(lane_symbols / max(num_columns, 1)))


def symbols_and_contexts(
    q: Int[Array, "rows columns"], classes: Int[Array, "rows columns"], num_states: int
) -> tuple[Int32[Array, "rows columns"], Int32[Array, "rows columns"]]:
    """What the entropy coder gets for each index: its symbol and the number of its table.

    Args:
        q: indices, row by row a path of the trellis.
        classes: scale class of each.
        num_states: states of the trellis.
    """
    check_num_states(num_states)
    q, classes = jnp.asarray(q, jnp.int32), jnp.asarray(classes, jnp.int32)
    return symbol(q, num_states), table_index(q, classes, num_states)


def states_along(q: Int[Array, "rows columns"], num_states: int) -> Int32[Array, "rows columns"]:
    """State of the trellis in which each index was chosen, if the subset bits of ``q`` are followed."""
    check_num_states(num_states)

    def advance(state, bit):
        return step_state(state, bit, num_states), state

    bits = (jnp.asarray(q, jnp.int32).T >> 1) & 1
    return lax.scan(advance, jnp.zeros(q.shape[0], jnp.int32), bits)[1].T


def is_path(q: Int[Array, "rows columns"], num_states: int) -> bool:
    """Whether every row is a path of the trellis: each index has the parity of its state."""
    return num_states == 1 or bool(jnp.all((q & 1) == (states_along(q, num_states) & 1)))


def indices_from_symbols(k: Int[Array, "rows columns"], num_states: int) -> Int32[Array, "rows columns"]:
    """Indices whose symbols are ``k``: inverse of the symbols of :func:`symbols_and_contexts`."""
    k = jnp.asarray(k, jnp.int32)
    return k if num_states == 1 else 2 * k + (states_along(2 * k, num_states) & 1)


def to_lanes(x: Int[Array, "rows columns"], rows: int) -> Int32[Array, "lanes steps"]:
    """Put ``rows`` consecutive rows in a lane, the last lane filled up with zeros."""
    padded = jnp.pad(jnp.asarray(x, jnp.int32), ((0, -x.shape[0] % rows), (0, 0)))
    return padded.reshape(-1, rows * x.shape[1])


def lane_lengths(num_rows: int, num_columns: int, rows: int) -> Int32[Array, " lanes"]:
    """Symbols in each lane of :func:`to_lanes`."""
    first = jnp.arange(-(-num_rows // rows), dtype=jnp.int32) * rows
    return jnp.minimum(rows, num_rows - first) * num_columns


def encode_indices(
    q: Int[Array, "rows columns"],
    classes: Int[Array, "rows columns"],
    tables: FreqTable,
    *,
    num_states: int,
    rows: int | None = None,
    max_escapes: int | None = None,
) -> Streams:
    """Entropy-code rows of trellis indices.

    Args:
        q: indices, each row a path.
        classes: scale class of each.
        tables: one table for each class and parity.
        num_states: states of the trellis.
        rows: rows in a lane, :func:`rows_per_lane` when left out.
        max_escapes: see :func:`~occ_jax.entropy.rans.encode`.

    Raises:
        ValueError: a row is not a path, so a decoder could not follow it (outside ``jit`` only).
    """
    rows = rows_per_lane(q.shape[1]) if rows is None else rows
    if not isinstance(q, Tracer) and not is_path(q, num_states):
        raise ValueError(f"the indices are not paths of the {num_states}-state trellis: was another one searched?")
    k, contexts = symbols_and_contexts(q, classes, num_states)
    lengths = lane_lengths(q.shape[0], q.shape[1], rows)
    return encode(to_lanes(k, rows), tables, to_lanes(contexts, rows), lengths, max_escapes=max_escapes)


def decode_indices(
    streams: Streams,
    tables: FreqTable,
    row_level: Int[Array, " rows"],
    column_level: Int[Array, " columns"],
    *,
    num_states: int,
    rows: int | None = None,
    class_shift: int = 0,
) -> Int32[Array, "rows columns"]:
    """Inverse of :func:`encode_indices` for classes that are sums of row and column levels.

    Args:
        streams: the lanes.
        tables: one table for each class and parity.
        row_level: see :func:`~occ_jax.quantization.scales.scale_classes`.
        column_level: likewise, in the order in which the columns were coded.
        num_states: states of the trellis.
        rows: rows in a lane, :func:`rows_per_lane` when left out.
        class_shift: ``shift`` of :func:`~occ_jax.quantization.scales.scale_classes`.

    Raises:
        ValueError: the streams are not intact (outside ``jit`` only).
    """
    check_num_states(num_states)
    num_rows, num_columns = row_level.shape[0], column_level.shape[0]
    rows = rows_per_lane(num_columns) if rows is None else rows
    parities = num_parities(num_states)
    num_classes = tables.freq.shape[0] // parities
    lanes = -(-num_rows // rows)
    levels = to_lanes(jnp.asarray(row_level)[:, None], rows)
    column_level = jnp.asarray(column_level, jnp.int32)

    def context(state, t):
        level = jnp.take(levels, t // num_columns, axis=1, mode="clip")
        classes = scale_classes(level, column_level[t % num_columns][None], num_classes, shift=class_shift)[:, 0]
        return parities * classes + (state & (parities - 1))

    def update(state, t, k):
        return jnp.where((t + 1) % num_columns == 0, 0, step_state(state, k & 1, num_states))

    start = jnp.zeros(lanes, jnp.int32)
    k, _ = decode_adaptive(streams, tables, start, context, update, num_steps=rows * num_columns)
    return indices_from_symbols(k.reshape(-1, num_columns)[:num_rows], num_states)
