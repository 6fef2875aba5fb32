"""The entropy coder on the host, in NumPy, for few symbols: compiling a loop takes longer than running this one.

The same streams as :mod:`occ_jax.entropy.rans`, lanes side by side as there; one pass of the loop costs some twenty
array operations, so it pays for a few thousand steps and no more.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int32, Integer

from occ_jax.entropy.streams import INITIAL_STATE, Streams
from occ_jax.entropy.tables import FreqTable

MAX_STEPS = 1 << 12
"""Most steps for which the host is the better place."""

MAX_SYMBOLS = 1 << 16
"""Most symbols for which the host is the better place."""

_MAX_SLOTS = 1 << 20


def is_small(num_lanes: int, num_steps: int, tables: FreqTable) -> bool:
    """Whether so few symbols are coded faster here than a loop for them is compiled."""
    slots = (tables.freq.size // tables.num_symbols) << tables.precision
    return num_steps <= MAX_STEPS and num_lanes * num_steps <= MAX_SYMBOLS and slots <= _MAX_SLOTS


class _Tables:
    """A stack of tables as host arrays."""

    def __init__(self, tables: FreqTable):
        self.freq = np.asarray(tables.freq, np.int64).reshape(-1, tables.num_symbols)
        self.first = np.cumsum(self.freq, axis=1) - self.freq
        self.offset = np.asarray(tables.offset, np.int64).reshape(-1)
        self.escape = tables.num_symbols - 1
        self.precision = tables.precision


def encode_on_host(
    q: Int[np.ndarray, "lanes steps"],
    tables: FreqTable,
    contexts: Integer[np.ndarray, "lanes steps"],
    lengths: Integer[np.ndarray, " lanes"],
) -> Streams:
    """What :func:`occ_jax.entropy.rans.encode` gives, without padding."""
    t = _Tables(tables)
    symbol = q.astype(np.int64) - t.offset[contexts]
    inside = (symbol >= 0) & (symbol < t.escape)
    symbol = np.where(inside, symbol, t.escape)
    symbol = np.where(t.freq[contexts, symbol] > 0, symbol, t.escape)
    active = np.arange(q.shape[1])[None, :] < lengths[:, None]
    freq, first = t.freq[contexts, symbol], t.first[contexts, symbol]
    x = np.full(len(q), INITIAL_STATE, np.int64)
    words, emitted = np.zeros(q.shape, np.uint16), np.zeros(q.shape, bool)
    for step in reversed(range(q.shape[1])):
        f = freq[:, step]
        emit = active[:, step] & (x >= f << (32 - t.precision))
        words[:, step], emitted[:, step] = x & 0xFFFF, emit
        y = np.where(emit, x >> 16, x)
        x = np.where(active[:, step], (y // f << t.precision) + first[:, step] + y % f, x)
    escaped = active & (symbol == t.escape)
    counts, escape_counts = emitted.sum(1), escaped.sum(1)
    return Streams(
        words=jnp.asarray(words[emitted], jnp.uint16),
        starts=jnp.asarray(np.cumsum(counts) - counts, jnp.int32),
        counts=jnp.asarray(counts, jnp.int32),
        states=jnp.asarray(x, jnp.uint32),
        lengths=jnp.asarray(lengths, jnp.int32),
        escapes=jnp.asarray(q[escaped], jnp.int32),
        escape_starts=jnp.asarray(np.cumsum(escape_counts) - escape_counts, jnp.int32),
        escape_counts=jnp.asarray(escape_counts, jnp.int32),
    )


def decode_on_host(
    streams: Streams,
    tables: FreqTable,
    context: Callable[[int], Integer[np.ndarray, " lanes"]],
    update: Callable[[int, Int[np.ndarray, " lanes"]], Int[np.ndarray, " lanes"]],
    *,
    num_steps: int,
) -> tuple[Int32[np.ndarray, "lanes steps"], Bool[np.ndarray, " lanes"]]:
    """What :func:`occ_jax.entropy.rans_scan.decode_lanes` gives, for ``context(t)`` and ``output = update(t, values)``.

    A stream that is damaged decodes to wrong numbers and is not intact; it reads nothing but its own words.
    """
    t = _Tables(tables)
    lut = np.stack([np.repeat(np.arange(len(freq)), freq) for freq in t.freq])
    lengths, x = np.asarray(streams.lengths), np.asarray(streams.states).astype(np.int64)
    words = np.append(np.asarray(streams.words).astype(np.int64), 0)
    escapes = np.append(np.asarray(streams.escapes).astype(np.int64), 0)
    word, escape = (np.asarray(start).astype(np.int64) for start in (streams.starts, streams.escape_starts))
    q = np.zeros((len(x), num_steps), np.int32)
    for step in range(num_steps):
        table, active = context(step), step < lengths
        slot = x & ((1 << t.precision) - 1)
        symbol = lut[table, slot]
        popped = t.freq[table, symbol] * (x >> t.precision) + slot - t.first[table, symbol]
        refill = popped < INITIAL_STATE
        popped = np.where(refill, popped << 16 | words[np.minimum(word, len(words) - 1)], popped)
        escaped = active & (symbol == t.escape)
        value = np.where(escaped, escapes[np.minimum(escape, len(escapes) - 1)], t.offset[table] + symbol)
        x = np.where(active, popped, x)
        word, escape = word + (active & refill), escape + escaped
        q[:, step] = update(step, np.where(active, value, 0).astype(np.int32))
    intact = (x == INITIAL_STATE) & (word == np.asarray(streams.starts) + np.asarray(streams.counts))
    intact &= escape == np.asarray(streams.escape_starts) + np.asarray(streams.escape_counts)
    return q, intact
