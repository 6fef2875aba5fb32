r"""Interleaved rANS that encodes and decodes under ``jit``, exactly, on every platform.

A lane is a state :math:`x \in [2^{16}, 2^{32})` and a list of 16-bit words. Coding a symbol of frequency
:math:`f` and cumulative frequency :math:`c` (precision :math:`p`) is, in the encoder and backwards in the decoder,

.. math::

    x \leftarrow \lfloor x / f \rfloor 2^p + c + (x \bmod f)
    \qquad
    x \leftarrow f \lfloor x / 2^p \rfloor + (x \bmod 2^p) - c

where the encoder first moves 16 bits of the state to the words if :math:`x \ge f 2^{32 - p}`, and the decoder
takes 16 bits back as soon as :math:`x < 2^{16}`. One word per symbol is enough as :math:`p \le 16`. The encoder
visits the symbols from last to first, so the decoder meets them from first to last.

Lanes are independent and advance together: the lane axis is the vector axis, ``lax.scan`` runs over steps.
All arithmetic is on unsigned 32-bit integers, so a stream means the same integers on every machine.

References:
    Duda, Asymmetric numeral systems, 2013, arXiv:1311.2540.
    Giesen, Interleaved entropy coders, 2014, arXiv:1402.3392.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from occ_jax.entropy.streams import INITIAL_STATE, Streams
from occ_jax.entropy.tables import FreqTable, as_stack


def _take(values: Array, index: Array) -> Array:
    # Clipping keeps a corrupted stream inside the array: wrong integers, never foreign memory.
    return values.at[index].get(mode="clip")


def _encode_lut(tables: FreqTable) -> UInt32[Array, " entries"]:
    """``(freq - 1) << 16 | cumulative`` of every symbol; values not in the table point to the escape."""
    freq = tables.freq
    entry = (freq - 1) << 16 | (jnp.cumsum(freq, axis=-1, dtype=jnp.uint32) - freq)
    return jnp.where(freq == 0, entry[:, -1:], entry).reshape(-1)


def _symbol_entries(q: Int32[Array, "..."], table: Int32[Array, "..."], tables: FreqTable) -> UInt32[Array, "..."]:
    num_symbols = tables.num_symbols
    # Modulo 2**32, so that a far value never wraps into the table.
    symbol = q.astype(jnp.uint32) - _take(tables.offset, table).astype(jnp.uint32)
    symbol = jnp.minimum(symbol, num_symbols - 1)
    return _take(_encode_lut(tables), table * num_symbols + symbol.astype(jnp.int32))


@partial(jax.jit, static_argnames="max_escapes")
def _encode(q, tables, contexts, lengths, max_escapes):
    lanes, steps = q.shape
    precision = tables.precision
    tables = as_stack(tables)
    active = jnp.arange(steps)[None, :] < lengths[:, None]
    entry = _symbol_entries(q, contexts, tables)
    freq, cumulative = (entry >> 16) + 1, entry & 0xFFFF
    escaped = active & (freq + cumulative == 1 << precision)
    freq, cumulative = jnp.where(active, freq, 1 << precision), jnp.where(active, cumulative, 0)

    def push(x, symbol):
        freq, cumulative = symbol
        emit = (x >> (32 - precision)) >= freq
        word = x.astype(jnp.uint16)
        x = jnp.where(emit, x >> 16, x)
        x = ((x // freq) << precision) + x % freq + cumulative
        return x, (word, emit)

    start = jnp.full(lanes, INITIAL_STATE, jnp.uint32)
    states, (words, emitted) = lax.scan(push, start, (freq.T, cumulative.T), reverse=True)
    words, emitted = words.T, emitted.T
    counts = emitted.sum(1, dtype=jnp.int32)
    starts = steps * jnp.arange(lanes, dtype=jnp.int32)
    position = starts[:, None] + jnp.cumsum(emitted, axis=1, dtype=jnp.int32) - 1
    position = jnp.where(emitted, position, lanes * steps)
    flat = jnp.zeros(lanes * steps, jnp.uint16)
    flat = flat.at[position.reshape(-1)].set(words.reshape(-1), mode="drop", unique_indices=True)
    escape_counts = escaped.sum(1, dtype=jnp.int32)
    (escape_index,) = jnp.nonzero(escaped.reshape(-1), size=max_escapes, fill_value=0)
    return Streams(
        words=flat,
        starts=starts,
        counts=counts,
        states=states,
        lengths=lengths,
        escapes=q.reshape(-1)[escape_index],
        escape_starts=jnp.cumsum(escape_counts, dtype=jnp.int32) - escape_counts,
        escape_counts=escape_counts,
    )


def encode(
    q: Int[Array, "lanes steps"],
    tables: FreqTable,
    contexts: Int[Array, "lanes steps"] | None = None,
    lengths: Int[Array, " lanes"] | None = None,
    *,
    max_escapes: int | None = None,
) -> Streams:
    """Encode every row of ``q`` as a lane of its own.

    Args:
        q: integers to encode; any int32, a value outside its table becomes an escape.
        tables: one table, or a stack of them.
        contexts: number of the table of each symbol; all 0 when left out.
        lengths: number of symbols of each lane, the rest of its row is ignored; all steps when left out.
        max_escapes: room for escaped values; all of ``q`` when left out. Too little is reported by
            :func:`~occ_jax.entropy.streams.compact`.

    Returns:
        Streams with padded words; :func:`~occ_jax.entropy.streams.compact` or
        :func:`~occ_jax.entropy.streams.pack` removes the padding.
    """
    q = q.astype(jnp.int32)
    contexts = jnp.zeros(q.shape, jnp.int32) if contexts is None else contexts.astype(jnp.int32)
    lengths = jnp.full(q.shape[0], q.shape[1], jnp.int32) if lengths is None else lengths.astype(jnp.int32)
    return _encode(q, tables, contexts, lengths, q.size if max_escapes is None else max_escapes)


def _slot_symbols(tables: FreqTable) -> Int32[Array, "tables slots"]:
    ends = jnp.cumsum(tables.freq, axis=-1, dtype=jnp.uint32)
    slots = jnp.arange(1 << tables.precision, dtype=jnp.uint32)
    return jax.vmap(lambda row: jnp.searchsorted(row, slots, side="right"))(ends).astype(jnp.int32)


def decode_lanes(
    streams: Streams,
    tables: FreqTable,
    carry: Any,
    context_fn: Callable[[Any, Any], Int32[Array, " lanes"]],
    update_fn: Callable[[Any, Any, Int32[Array, " lanes"]], Any],
    xs: Any,
    *,
    num_steps: int,
) -> tuple[Int32[Array, "steps lanes"], Any, Bool[Array, " lanes"]]:
    """Decode with contexts that may depend on what has been decoded; also say which lanes ended as they must."""
    precision, num_symbols = tables.precision, tables.num_symbols
    tables = as_stack(tables)
    symbols = _slot_symbols(tables).reshape(-1)
    freq, offset = tables.freq.reshape(-1), tables.offset
    cumulative = (jnp.cumsum(tables.freq, axis=-1, dtype=jnp.uint32) - tables.freq).reshape(-1)
    streams = jax.tree.map(jnp.asarray, streams)
    words = jnp.append(streams.words, jnp.zeros(1, jnp.uint16)).astype(jnp.uint32)
    escapes = jnp.append(streams.escapes, jnp.zeros(1, jnp.int32))

    def pop(state, step):
        x, word, escape, carry = state
        t, row = step
        table = context_fn(carry, row)
        active = t < streams.lengths
        slot = x & ((1 << precision) - 1)
        symbol = _take(symbols, (table << precision) + slot.astype(jnp.int32))
        index = table * num_symbols + symbol
        popped = _take(freq, index) * (x >> precision) + slot - _take(cumulative, index)
        refill = popped < INITIAL_STATE
        popped = jnp.where(refill, popped << 16 | _take(words, word), popped)
        escaped = active & (symbol == num_symbols - 1)
        value = jnp.where(escaped, _take(escapes, escape), _take(offset, table) + symbol)
        value = jnp.where(active, value, 0)
        state = (
            jnp.where(active, popped, x),
            word + (active & refill).astype(jnp.int32),
            escape + escaped.astype(jnp.int32),
            update_fn(carry, row, value),
        )
        return state, value

    start = (streams.states, streams.starts, streams.escape_starts, carry)
    (x, word, escape, carry), q = lax.scan(pop, start, (jnp.arange(num_steps), xs), length=num_steps)
    intact = (x == INITIAL_STATE) & (word == streams.starts + streams.counts)
    intact &= escape == streams.escape_starts + streams.escape_counts
    return q, carry, intact


def _require_intact(intact: Bool[Array, " lanes"]) -> None:
    if not isinstance(intact, Tracer) and not intact.all():
        broken = int((~intact).sum())
        raise ValueError(
            f"{broken} of {intact.size} lanes do not end as they were begun: "
            "the streams are corrupted or these are not the tables and contexts that they were encoded with"
        )


def decode_adaptive(
    streams: Streams,
    tables: FreqTable,
    carry: Any,
    context_fn: Callable[[Any, Array], Int32[Array, " lanes"]],
    update_fn: Callable[[Any, Array, Int32[Array, " lanes"]], Any],
    *,
    num_steps: int,
) -> tuple[Int32[Array, "lanes num_steps"], Any]:
    """Decode lanes whose tables depend on what they decoded before.

    At step ``t`` the tables are ``context_fn(carry, t)``; the decoded values go into
    ``carry = update_fn(carry, t, values)``. Lanes past their length decode to 0.

    Raises:
        ValueError: a lane did not end in the initial state with all its words read (outside ``jit`` only).
    """
    steps = jnp.arange(num_steps)
    q, carry, intact = decode_lanes(streams, tables, carry, context_fn, update_fn, steps, num_steps=num_steps)
    _require_intact(intact)
    return q.T, carry


@partial(jax.jit, static_argnames="num_steps")
def _decode(streams, tables, contexts, num_steps):
    lanes = streams.states.shape[0]
    zero = jnp.zeros(lanes, jnp.int32)
    xs = None if contexts is None else contexts.T.astype(jnp.int32)
    q, _, intact = decode_lanes(
        streams,
        tables,
        None,
        lambda _, row: zero if row is None else row,
        lambda carry, *_: carry,
        xs,
        num_steps=num_steps,
    )
    return q.T, intact


def decode(
    streams: Streams,
    tables: FreqTable,
    *,
    num_steps: int,
    contexts: Int[Array, "lanes num_steps"] | None = None,
) -> Int32[Array, "lanes num_steps"]:
    """Inverse of :func:`encode`, given the same tables and contexts. Lanes past their length decode to 0.

    Raises:
        ValueError: a lane did not end in the initial state with all its words read (outside ``jit`` only).
    """
    q, intact = _decode(streams, tables, contexts, num_steps)
    _require_intact(intact)
    return q


def ideal_bits(
    q: Int[Array, "lanes steps"], tables: FreqTable, contexts: Int[Array, "lanes steps"] | None = None
) -> Float[Array, ""]:
    """Code length of ``q`` under the tables, without any overhead of lanes and without escaped values, in bits."""
    contexts = jnp.zeros(q.shape, jnp.int32) if contexts is None else contexts.astype(jnp.int32)
    entry = _symbol_entries(q.astype(jnp.int32), contexts, as_stack(tables))
    freq = (entry >> 16) + 1
    return jnp.sum(tables.precision - jnp.log2(freq.astype(jnp.float32)))
