r"""The rANS recurrences as one ``lax.scan`` over steps, lanes being the vector axis.

How the loops are written was measured on XLA:CPU, where a scan step is a handful of kernels over the lanes
(16 M symbols of two bits, million symbols per second and core, 2048 lanes):

* Steps in blocks of 64: the block is decoded steps-major into a buffer that fits the cache, then turned into rows.
  That costs nothing beside decoding to ``[steps, lanes]`` (240 against 250); a transposition afterwards halves it (90).
* One gather of a 32-bit word with frequency, bias and symbol where they fit (276), otherwise a gather of the symbol
  and a second one of its frequency and start (190).
* Lanes that have ended read from an *idle* table of one symbol with probability one, which leaves the state alone.
* Gathers from large arrays go through a row written in place (:func:`_in_place`): otherwise XLA splits each of those
  small kernels over the cores, at more cost for waiting than there is work (160 on both cores against 300 on one).
* Unrolled steps recompute shared values (60 to 240), and one stream shared by all lanes needs a prefix sum per step.

The encoder writes its words by a scatter at the lanes' own pointers, whether the lane emits or not: where it does
not, the pointer stays and the next word replaces what was written.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, Shaped, UInt, UInt16, UInt32

from occ_jax._pytree import pytree_dataclass, replace, static_field
from occ_jax.entropy.streams import INITIAL_STATE, Streams
from occ_jax.entropy.tables import FreqTable, as_stack

Contexts = Int[Array, "lanes steps"] | UInt[Array, "lanes steps"]

BLOCK_STEPS = 64
"""Steps that are decoded or encoded between two transpositions."""


def take(values: Shaped[Array, " n"], index: Int[Array, "*shape"] | UInt[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """``values[index]``, the index clipped: a corrupted stream gives wrong integers, never foreign memory."""
    return values.at[index].get(mode="clip")


def _in_place(buffer: Shaped[Array, "2 lanes"], row: Shaped[Array, " lanes"]) -> Array:
    """``buffer`` with ``row`` as its first row; XLA:CPU runs an in-place update, and what feeds it, on one thread."""
    return lax.dynamic_update_slice(buffer, row[None], (jnp.int32(0), jnp.int32(0)))


def _with_idle(tables: FreqTable) -> tuple[UInt32[Array, "tables symbols"], Int32[Array, " tables"]]:
    """Frequencies and offsets of a stack of at least two symbols, followed by the idle table."""
    tables = as_stack(tables)
    # The escape stays the last symbol, and the idle table's only symbol is the first: it must not be the escape.
    freq = jnp.pad(tables.freq, ((0, 1), (max(0, 2 - tables.num_symbols), 0)))
    freq = freq.at[-1, 0].set(1 << tables.precision)
    return freq, jnp.pad(tables.offset, (0, 1))


@pytree_dataclass
class PopLookup:
    """What a decoder looks up: a word per table and slot, and if that cannot hold all, a word per table and symbol.

    Attributes:
        slots: ``freq - 1``, ``slot - cumulative`` and symbol packed in 32 bits, or the symbol alone.
        symbols: ``(freq - 1) << 16 | cumulative`` of every symbol, or empty.
        offset: value of symbol 0 of every table; the idle table's is 0.
        precision: bits of the frequencies.
        num_symbols: symbols of every table.
    """

    slots: UInt[Array, " slots"]
    symbols: UInt32[Array, " entries"]
    offset: Int32[Array, " tables"]
    precision: int = static_field()
    num_symbols: int = static_field()

    @property
    def symbol_bits(self) -> int:
        """Bits that a symbol takes in a packed word."""
        return (self.num_symbols - 1).bit_length()

    @property
    def is_packed(self) -> bool:
        """Whether one word per slot holds everything."""
        return 2 * self.precision + self.symbol_bits <= 32

    @property
    def idle(self) -> int:
        """Number of the idle table."""
        return self.offset.shape[0] - 1


def pop_lookup(tables: FreqTable) -> PopLookup:
    """Lookup of a table or a stack of tables for the decoder."""
    freq, offset = _with_idle(tables)
    precision, num_symbols = tables.precision, freq.shape[1]
    ends = jnp.cumsum(freq, axis=-1, dtype=jnp.uint32)
    slots = jnp.arange(1 << precision, dtype=jnp.uint32)
    # The symbol of a slot is the number of symbols that end at or before it.
    step = jnp.zeros((freq.shape[0], (1 << precision) + 1), jnp.uint32)
    step = step.at[jnp.arange(freq.shape[0], dtype=jnp.int32)[:, None], ends.astype(jnp.int32)].add(1)
    symbol = jnp.cumsum(step[:, :-1], axis=-1, dtype=jnp.uint32)
    symbol = jnp.minimum(symbol, num_symbols - 1)
    entries = (freq - 1) << 16 | (ends - freq)
    narrow = jnp.uint8 if num_symbols <= 1 << 8 else jnp.uint16 if num_symbols <= 1 << 16 else jnp.uint32
    lookup = PopLookup(symbol.astype(narrow).reshape(-1), entries.reshape(-1), offset, precision, num_symbols)
    if not lookup.is_packed:
        return lookup
    entry = jnp.take_along_axis(entries, symbol.astype(jnp.int32), axis=1)
    packed = (entry >> 16) << precision | (slots[None, :] - (entry & 0xFFFF))
    packed = packed << lookup.symbol_bits | symbol
    return replace(lookup, slots=packed.reshape(-1), symbols=jnp.zeros(0, jnp.uint32))


def decode_lanes(
    streams: Streams,
    tables: FreqTable,
    carry: Any,
    context_fn: Callable[[Any, Array, Array | None], Array],
    update_fn: Callable[[Any, Array, Array], tuple[Any, Array]],
    contexts: Contexts | None = None,
    *,
    num_steps: int,
    ragged: bool = True,
    dtype: Any = jnp.int32,
) -> tuple[Int[Array, "lanes num_steps"], Any, Bool[Array, " lanes"]]:
    """Decode all lanes with tables, and outputs, that may depend on what has been decoded; for use under ``jit``.

    At step ``t`` the tables are ``context_fn(carry, t, contexts[:, t])`` and then, of the decoded int32 ``values``,
    ``carry, output = update_fn(carry, t, values)``. A lane that has ended gives the value 0.

    Args:
        streams: lanes.
        tables: one table or a stack of them.
        carry: any pytree.
        context_fn: number of each lane's table.
        update_fn: the next carry and what to keep of the values.
        contexts: handed on to ``context_fn``, column by column (None without them).
        num_steps: steps to run, at least the longest lane's.
        ragged: whether a lane may be shorter than ``num_steps``; False saves a comparison per symbol.
        dtype: integer type of the outputs. Narrow ones are faster to write.

    Returns:
        The outputs, the last carry, and for each lane whether it ended as an encoder begins.
    """
    lookup = pop_lookup(tables)
    lanes = streams.num_lanes
    words = jnp.append(streams.words, jnp.zeros(1, jnp.uint16))
    escapes = jnp.append(streams.escapes, jnp.zeros(1, jnp.int32))
    mask = jnp.uint32((1 << lookup.precision) - 1)

    def pop(state, step):
        x, word, escape, slot_row, word_row, carry = state
        t, column = step
        table = context_fn(carry, t, column).astype(jnp.uint32)
        if ragged:
            table = jnp.where(t < streams.lengths, table, jnp.uint32(lookup.idle))
        slot = x & mask
        slot_row = _in_place(slot_row, take(lookup.slots, table << lookup.precision | slot))
        word_row = _in_place(word_row, take(words, word))
        if lookup.is_packed:
            entry = slot_row[0]
            symbol = entry & jnp.uint32((1 << lookup.symbol_bits) - 1)
            bias = (entry >> lookup.symbol_bits) & mask
            freq = (entry >> (lookup.precision + lookup.symbol_bits)) + 1
        else:
            symbol = slot_row[0].astype(jnp.uint32)
            entry = take(lookup.symbols, table * lookup.num_symbols + symbol)
            bias = slot - (entry & 0xFFFF)
            freq = (entry >> 16) + 1
        x = freq * (x >> lookup.precision) + bias
        refill = x < INITIAL_STATE
        x = jnp.where(refill, x << 16 | word_row[0].astype(jnp.uint32), x)
        value = take(lookup.offset, table) + symbol.astype(jnp.int32)
        escaped = symbol == lookup.num_symbols - 1
        if streams.escapes.size:
            value = jnp.where(escaped, take(escapes, escape), value)
        escape = escape + escaped.astype(jnp.int32)
        carry, output = update_fn(carry, t, value)
        return (x, word + refill.astype(jnp.uint32), escape, slot_row, word_row, carry), output.astype(dtype)

    def pop_block(first, state, q, size):
        columns = None if contexts is None else lax.dynamic_slice_in_dim(contexts, first, size, axis=1).T
        state, block = lax.scan(pop, state, (first + jnp.arange(size, dtype=jnp.int32), columns))
        return state, lax.dynamic_update_slice(q, block.T, (jnp.int32(0), first))

    state = (
        streams.states,
        streams.starts.astype(jnp.uint32),
        streams.escape_starts,
        jnp.zeros((2, lanes), lookup.slots.dtype),
        jnp.zeros((2, lanes), jnp.uint16),
        carry,
    )
    state, q = _for_blocks(pop_block, state, jnp.zeros((lanes, num_steps), dtype), num_steps)
    x, word, escape, _, _, carry = state
    intact = (x == INITIAL_STATE) & (word == (streams.starts + streams.counts).astype(jnp.uint32))
    intact &= escape == streams.escape_starts + streams.escape_counts
    return q, carry, intact


def _for_blocks(run: Callable, state: Any, buffer: Array, num_steps: int, *, reverse: bool = False) -> Any:
    """``state, buffer = run(first, state, buffer, size)`` for all blocks of steps, the short one being the last."""
    num_blocks, rest = divmod(num_steps, BLOCK_STEPS)

    def whole(state, buffer):
        def step(carry, first):
            return run(first, *carry, BLOCK_STEPS), None

        firsts = BLOCK_STEPS * jnp.arange(num_blocks, dtype=jnp.int32)
        return lax.scan(step, (state, buffer), firsts, reverse=reverse)[0]

    def short(state, buffer):
        return run(jnp.int32(num_blocks * BLOCK_STEPS), state, buffer, rest) if rest else (state, buffer)

    parts = [whole, short] if num_blocks else [short]
    for part in reversed(parts) if reverse else parts:
        state, buffer = part(state, buffer)
    return state, buffer


def push_entries(tables: FreqTable) -> UInt32[Array, "tables symbols"]:
    """``(freq - 1) << 16 | cumulative`` of every symbol for the encoder; values not in a table get the escape's."""
    freq = as_stack(tables).freq
    entry = (freq - 1) << 16 | (jnp.cumsum(freq, axis=-1, dtype=jnp.uint32) - freq)
    return jnp.where(freq == 0, entry[:, -1:], entry)


def lookup_entries(
    q: Int32[Array, "*shape"], contexts: Contexts | None, tables: FreqTable, entries: UInt32[Array, "tables symbols"]
) -> UInt32[Array, "*shape"]:
    """The entry of every value in the table of its context, or in the first table."""
    last = entries.shape[1] - 1
    offset = tables.offset.reshape(-1).astype(jnp.uint32)
    # Differences are modulo 2**32: a far value never wraps into the table.
    if contexts is None:
        symbol = jnp.minimum(q.astype(jnp.uint32) - offset[0], jnp.uint32(last))
        return take(entries[0], symbol)
    table = contexts.astype(jnp.uint32)
    symbol = jnp.minimum(q.astype(jnp.uint32) - take(offset, table), jnp.uint32(last))
    return take(entries.reshape(-1), table * entries.shape[1] + symbol)


def is_escape(entry: UInt32[Array, "*shape"], precision: int) -> Bool[Array, "*shape"]:
    """Whether an entry is the escape's: the last slots belong to the last symbol."""
    return (entry >> 16) + 1 + (entry & 0xFFFF) == 1 << precision


def push_lanes(
    q: Int32[Array, "lanes steps"],
    tables: FreqTable,
    contexts: Contexts | None,
    lengths: Int32[Array, " lanes"],
) -> tuple[UInt16[Array, " words"], Array, Array, Array, Array]:
    """Encode all lanes; return words, starts, counts, states and numbers of escapes.

    A lane's words end where its ``steps`` words of room end, as the encoder writes them from last to first.
    """
    lanes, num_steps = q.shape
    precision = tables.precision
    entries = push_entries(tables)
    idle = jnp.uint32(((1 << precision) - 1) << 16)

    def push(state, entry):
        x, word, words = state
        freq, cumulative = (entry >> 16) + 1, entry & 0xFFFF
        emit = (x >> (32 - precision)) >= freq
        words = words.at[word].set(x.astype(jnp.uint16), mode="promise_in_bounds", unique_indices=True)
        x = jnp.where(emit, x >> 16, x)
        quotient = x // freq
        x = (quotient << precision) + (x - quotient * freq) + cumulative
        return (x, word - emit.astype(jnp.int32), words), None

    def push_block(first, state, words, size):
        x, word, num_escapes = state
        # Looked up lane by lane and transposed in the cache: rows of a large array are far apart.
        row_contexts = None if contexts is None else lax.dynamic_slice_in_dim(contexts, first, size, axis=1)
        entry = lookup_entries(lax.dynamic_slice_in_dim(q, first, size, axis=1), row_contexts, tables, entries)
        active = first + jnp.arange(size, dtype=jnp.int32)[None, :] < lengths[:, None]
        num_escapes += (active & is_escape(entry, precision)).sum(1, dtype=jnp.int32)
        (x, word, words), _ = lax.scan(push, (x, word, words), jnp.where(active, entry, idle).T, reverse=True)
        return (x, word, num_escapes), words

    ends = num_steps * (1 + jnp.arange(lanes, dtype=jnp.int32))
    state = (jnp.full(lanes, INITIAL_STATE, jnp.uint32), ends - 1, jnp.zeros(lanes, jnp.int32))
    words = jnp.zeros(lanes * num_steps, jnp.uint16)
    (x, word, num_escapes), words = _for_blocks(push_block, state, words, num_steps, reverse=True)
    return words, word + 1, ends - 1 - word, x, num_escapes
