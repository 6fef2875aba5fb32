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

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Int32

from occ_jax.entropy.rans_scan import Contexts, decode_lanes, is_escape, lookup_entries, push_entries, push_lanes
from occ_jax.entropy.streams import Streams
from occ_jax.entropy.tables import FreqTable

__all__ = ["decode", "decode_adaptive", "decode_lanes", "encode", "ideal_bits"]

MAX_GROUP_LANES = 8192
"""Lanes that one loop advances together on a CPU: their states and pointers stay in the cache."""

MIN_GROUP_SYMBOLS = 1 << 18
"""Symbols below which a second thread costs more than it brings."""


def _lane_groups(array: Array, num_steps: int) -> Iterator[slice]:
    """Slices of lanes for threads of their own: XLA:CPU runs the loop of one call on one core."""
    num_lanes = array.shape[0]
    num_groups = 1
    if not isinstance(array, Tracer) and {device.platform for device in array.devices()} == {"cpu"}:
        num_threads = min(os.cpu_count() or 1, max(1, num_lanes * num_steps // MIN_GROUP_SYMBOLS))
        num_groups = max(num_threads, -(-num_lanes // MAX_GROUP_LANES))
    size = max(1, -(-num_lanes // num_groups))
    return (slice(first, min(first + size, num_lanes)) for first in range(0, max(num_lanes, 1), size))


def _map_groups(run: Callable[[slice], Any], groups: Iterator[slice]) -> list[Any]:
    slices = list(groups)
    if len(slices) == 1:
        return [run(slices[0])]
    with ThreadPoolExecutor(min(len(slices), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda group: jax.block_until_ready(run(group)), slices))


_push_lanes = jax.jit(push_lanes)


@jax.jit
def _escape_mask(q, tables, contexts, lengths):
    escaped = is_escape(lookup_entries(q, contexts, tables, push_entries(tables)), tables.precision)
    return escaped & (jnp.arange(q.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None])


def _escaped_values(q, tables, contexts, lengths, counts, max_escapes):
    """The values that are not in their tables, lane by lane."""
    if isinstance(counts, Tracer):
        escaped = _escape_mask(q, tables, contexts, lengths).reshape(-1)
        (index,) = jnp.nonzero(escaped, size=q.size if max_escapes is None else max_escapes, fill_value=0)
        return q.reshape(-1)[index]
    if not np.asarray(counts).any():
        return jnp.zeros(max_escapes or 0, jnp.int32)
    values = np.asarray(q)[np.asarray(_escape_mask(q, tables, contexts, lengths))]
    size = values.size if max_escapes is None else max_escapes
    return jnp.asarray(np.pad(values[:size], (0, max(0, size - values.size))), jnp.int32)


def encode(
    q: Int[Array, "lanes steps"],
    tables: FreqTable,
    contexts: Contexts | None = None,
    lengths: Int[Array, " lanes"] | None = None,
    *,
    max_escapes: int | None = None,
) -> Streams:
    """Encode every row of ``q`` as a lane of its own.

    A lane costs its ideal code length, about 0.1 % of rounding at 12 bits of precision, and up to 64 bits. On a CPU,
    outside ``jit``, groups of lanes are encoded on several threads; the streams are the same.

    Args:
        q: integers to encode; any int32, a value outside its table becomes an escape.
        tables: one table, or a stack of them.
        contexts: number of the table of each symbol (any integer type); all 0 when left out.
        lengths: number of symbols of each lane, the rest of its row is ignored; all steps when left out.
        max_escapes: room for escaped values. When left out: as many as there are, under ``jit`` all of ``q``. Too
            little room is reported by :func:`~occ_jax.entropy.streams.compact`.

    Returns:
        Streams with padded words; :func:`~occ_jax.entropy.streams.compact` and
        :func:`~occ_jax.entropy.streams.pack` remove the padding.

    Raises:
        ValueError: ``q`` has 2**31 elements or more (encode fewer lanes at a time).

    Example:
        >>> from occ_jax.entropy import decode, from_samples, pack
        >>> q = jnp.array([[0, 1, 0, -1, 0, 70000], [0, 0, 0, 0, 1, 0]])
        >>> table = from_samples(q, precision=12, max_symbols=8)
        >>> streams = encode(q, table)
        >>> len(pack(streams)), streams.escapes.tolist()
        (17, [70000])
        >>> bool((decode(streams, table, num_steps=6) == q).all())
        True
    """
    if q.size >= 1 << 31:
        raise ValueError(f"{q.shape[0]} lanes of {q.shape[1]} symbols are 2**31 symbols or more: encode fewer lanes")
    q = jnp.asarray(q).astype(jnp.int32)
    lanes, steps = q.shape
    contexts = None if contexts is None else jnp.asarray(contexts)
    lengths = jnp.full(lanes, steps, jnp.int32) if lengths is None else jnp.asarray(lengths).astype(jnp.int32)

    def run(group):
        return _push_lanes(q[group], tables, None if contexts is None else contexts[group], lengths[group])

    parts = _map_groups(run, _lane_groups(q, steps))
    words, starts, counts, states, escape_counts = (jnp.concatenate(part) for part in zip(*parts))
    firsts = np.concatenate([[0], np.cumsum([part[0].shape[0] for part in parts])])[:-1]
    starts += jnp.asarray(np.repeat(firsts, [part[1].shape[0] for part in parts]), jnp.int32)
    return Streams(
        words=words,
        starts=starts,
        counts=counts,
        states=states,
        lengths=lengths,
        escapes=_escaped_values(q, tables, contexts, lengths, escape_counts, max_escapes),
        escape_starts=jnp.cumsum(escape_counts, dtype=jnp.int32) - escape_counts,
        escape_counts=escape_counts,
    )


def _require_intact(intact: Bool[Array, " lanes"]) -> None:
    if not isinstance(intact, Tracer) and not intact.all():
        raise ValueError(
            f"{int((~intact).sum())} of {intact.size} lanes do not end as they were begun: "
            "the streams are corrupted or these are not the tables and contexts that they were encoded with"
        )


def decode_adaptive(
    streams: Streams,
    tables: FreqTable,
    carry: Any,
    context_fn: Callable[[Any, Array], Array],
    update_fn: Callable[[Any, Array, Array], Any],
    *,
    num_steps: int,
) -> tuple[Int32[Array, "lanes {num_steps}"], Any]:
    """Decode lanes whose tables depend on what they decoded before.

    At step ``t`` the tables are ``context_fn(carry, t)``; the decoded values go into
    ``carry = update_fn(carry, t, values)``. Lanes past their length decode to 0. Call it under ``jit``, which
    compiles the two functions once; :func:`~occ_jax.entropy.rans_scan.decode_lanes` also says which lanes are intact.

    Raises:
        ValueError: a lane did not end in the initial state with all its words read (outside ``jit`` only).

    Example:
        The parity of the last value chooses the table of the next one.

        >>> from occ_jax.entropy import from_counts, stack
        >>> tables = stack([from_counts(np.array([9, 1]), 0), from_counts(np.array([1, 9]), 0)])
        >>> q = jnp.array([[0, 0, 0, 1, 1, 1, 0, 0]])
        >>> streams = encode(q, tables, contexts=jnp.array([[0, 0, 0, 0, 1, 1, 1, 0]]))
        >>> last = jnp.zeros(1, jnp.int32)
        >>> decode_adaptive(streams, tables, last, lambda last, t: last, lambda last, t, value: value, num_steps=8)
        (Array([[0, 0, 0, 1, 1, 1, 0, 0]], dtype=int32), Array([0], dtype=int32))
    """
    q, carry, intact = decode_lanes(
        streams,
        tables,
        carry,
        lambda carry, t, _: context_fn(carry, t),
        lambda carry, t, value: (update_fn(carry, t, value), value),
        num_steps=num_steps,
    )
    _require_intact(intact)
    return q, carry


@partial(jax.jit, static_argnames=("num_steps", "ragged", "dtype"))
def _decode(streams, tables, contexts, num_steps, ragged, dtype):
    q, _, intact = decode_lanes(
        streams,
        tables,
        None,
        lambda carry, t, column: jnp.uint32(0) if column is None else column,
        lambda carry, t, value: (carry, value),
        contexts,
        num_steps=num_steps,
        ragged=ragged,
        dtype=dtype,
    )
    return q, intact


@partial(jax.jit, static_argnames="dtype")
def _join_rows(parts: list[Array], dtype: Any) -> Array:
    return jnp.concatenate([part.astype(dtype) for part in parts])


def _value_dtype(streams: Streams, tables: FreqTable, dtype: Any) -> Any:
    """The narrowest integer type that holds all values of concrete tables, if it is narrower than ``dtype``."""
    if streams.escapes.size:
        return dtype
    offset = np.asarray(tables.offset, np.int64)
    for narrow in (jnp.int8, jnp.int16):
        info = jnp.iinfo(narrow)
        if info.min <= min(0, offset.min()) and offset.max() + tables.num_symbols - 1 <= info.max:
            return narrow if info.bits < jnp.iinfo(dtype).bits else dtype
    return dtype


def decode(
    streams: Streams,
    tables: FreqTable,
    *,
    num_steps: int,
    contexts: Contexts | None = None,
    dtype: Any = jnp.int32,
) -> Int[Array, "lanes {num_steps}"]:
    """Inverse of :func:`encode`, given the same tables and contexts. Lanes past their length decode to 0.

    On a CPU, outside ``jit``, groups of lanes are decoded on several threads.

    Args:
        streams: lanes.
        tables: the tables they were encoded with.
        num_steps: columns of the result, at least the longest lane's.
        contexts: number of the table of each symbol (any integer type; uint8 is fastest); all 0 when left out.
        dtype: integer type of the result; values that it cannot hold wrap around. int8 is the fastest.

    Raises:
        ValueError: a lane is longer than ``num_steps``, or does not end in the initial state with all its words read
            (outside ``jit`` only).
    """
    leaves = jax.tree.leaves((streams, tables, contexts))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return _decode(streams, tables, contexts, num_steps, True, dtype)[0]
    streams, tables, contexts = jax.tree.map(jnp.asarray, (streams, tables, contexts))
    lengths = np.asarray(streams.lengths)
    if lengths.size and lengths.max() > num_steps:
        raise ValueError(f"the longest lane has {lengths.max()} symbols, more than {num_steps} steps")
    ragged, narrow = bool((lengths != num_steps).any()), _value_dtype(streams, tables, dtype)

    def run(group):
        part = jax.tree.map(lambda x: x[group], streams)
        part = Streams(**{**vars(part), "words": streams.words, "escapes": streams.escapes})
        return _decode(part, tables, None if contexts is None else contexts[group], num_steps, ragged, narrow)

    parts, intact = zip(*_map_groups(run, _lane_groups(streams.states, num_steps)))
    _require_intact(jnp.concatenate(intact))
    return parts[0] if len(parts) == 1 and narrow == dtype else _join_rows(list(parts), dtype)


def ideal_bits(q: Int[Array, "lanes steps"], tables: FreqTable, contexts: Contexts | None = None) -> Float[Array, ""]:
    r"""Code length of ``q`` under the tables, :math:`\sum -\log_2 P`, and of its escaped values, in bits.

    What :func:`encode` would take with one infinitely precise lane. Escaped values are counted as the bytes of their
    varints; the words of the lanes come on top.
    """
    q = q.astype(jnp.int32)
    entry = lookup_entries(q, contexts, tables, push_entries(tables))
    bits = tables.precision - jnp.log2(((entry >> 16) + 1).astype(jnp.float32))
    zigzag = (q << 1) ^ (q >> 31)
    num_bytes = 1 + sum(((zigzag.astype(jnp.uint32) >> (7 * k)) != 0).astype(jnp.float32) for k in range(1, 5))
    return jnp.sum(bits + jnp.where(is_escape(entry, tables.precision), 8 * num_bytes, 0))
