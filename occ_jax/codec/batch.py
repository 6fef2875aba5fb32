"""Decode many tensors together: the lanes of all of them advance in one compiled loop."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt8

from occ_jax.codec.buckets import flat_bucket, lane_bucket, step_bucket, symbol_bucket
from occ_jax.codec.errors import damaged
from occ_jax.codec.host import decode_on_host, is_small
from occ_jax.codec.lanes import Lanes
from occ_jax.codec.lattice import read_lattice
from occ_jax.codec.levels import Levels
from occ_jax.codec.tensor import CodedTensor, require_codebook
from occ_jax.entropy.rans import decode_lanes
from occ_jax.entropy.stacks import widen
from occ_jax.entropy.streams import INITIAL_STATE, Streams
from occ_jax.entropy.tables import FreqTable
from occ_jax.quantization.codebook import Codebook
from occ_jax.quantization.ungerboeck import next_states, num_parities, step_state

MAX_CALL_SYMBOLS = 1 << 25
"""Most symbols that one compiled call decodes, but for rounding up to buckets: the bound on its memory."""

MIN_THREAD_SYMBOLS = 1 << 21
"""Symbols below which a second thread costs more than it brings."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Job:
    """A parsed tensor and the array that its indices go to."""

    coded: CodedTensor
    levels: Levels
    lanes: Lanes
    streams: Streams
    q: Int32[np.ndarray, "rows cols"]


def decode_lattices(coded: Sequence[CodedTensor]) -> list[tuple[Int32[np.ndarray, "rows cols"], Levels]]:
    """Indices and levels of many checked lattice tensors, in few compiled calls.

    Tensors are grouped by codebook, row length and lane length (rounded up to a bucket); each group is cut into calls
    of at most :data:`MAX_CALL_SYMBOLS` symbols, all of one shape.

    Raises:
        FormatError: a tensor's streams are damaged.
    """
    jobs = []
    for tensor in coded:
        levels, lanes, streams = read_lattice(tensor)
        q = np.empty((lanes.rows, lanes.cols), np.int32)
        jobs.append(_Job(coded=tensor, levels=levels, lanes=lanes, streams=_on_host(streams), q=q))
    groups: dict[tuple[int, int, int], list[_Job]] = {}
    for job in jobs:
        if job.lanes.count:
            key = id(job.coded.codebook), job.lanes.cols, step_bucket(job.lanes.steps)
            groups.setdefault(key, []).append(job)
    calls = [call for (_, _, num_steps), group in groups.items() for call in _calls(group, num_steps)]
    _map_threads(lambda call: _decode_pieces(*call), calls, sum(job.q.size for job in jobs))
    return [(job.q, job.levels) for job in jobs]


def _on_host(streams: Streams) -> Streams:
    return jax.tree.map(np.asarray, streams)


def _map_threads(run: Callable[[Any], None], calls: Sequence[Any], num_symbols: int) -> None:
    """Run calls on as many threads as there are cores: XLA:CPU keeps the loop of one call on one core."""
    if len(calls) < 2 or num_symbols < MIN_THREAD_SYMBOLS:
        for call in calls:
            run(call)
        return
    with ThreadPoolExecutor(min(len(calls), os.cpu_count() or 1)) as pool:
        list(pool.map(run, calls))


_Piece = tuple[_Job, int, int]


def _calls(group: Sequence[_Job], num_steps: int) -> Iterator[tuple[list[_Piece], int, int]]:
    """Lanes of a group cut into calls ``(pieces, lanes, steps)`` of one shape."""
    total = sum(job.lanes.count for job in group)
    num_calls = -(-total * num_steps // MAX_CALL_SYMBOLS)
    if total * num_steps >= MIN_THREAD_SYMBOLS:
        num_calls = max(num_calls, os.cpu_count() or 1)
    num_lanes = lane_bucket(-(-total // num_calls))
    return ((pieces, num_lanes, num_steps) for pieces in _cut(group, num_lanes))


def _decode_pieces(pieces: Sequence[_Piece], num_lanes: int, num_steps: int) -> None:
    job = pieces[0][0]
    codebook, lanes = require_codebook(job.coded), sum(last - first for _, first, last in pieces)
    if is_small(lanes, num_steps, codebook.tables):
        streams, contexts = _fill(_join(pieces), lanes), _contexts(pieces, codebook, lanes, num_steps)
        q, intact = _decode_small(streams, codebook, contexts, job.lanes.cols, num_steps)
    else:
        streams, contexts = _fill(_join(pieces), num_lanes), _contexts(pieces, codebook, num_lanes, num_steps)
        q, intact = _decode_call(
            streams,
            widen(codebook.tables, symbol_bucket(codebook.tables.num_symbols)),
            None if contexts is None else jnp.asarray(contexts),
            jnp.int32(job.lanes.cols),
            num_states=codebook.num_states,
            num_steps=num_steps,
            dtype="int32" if streams.escapes.size else _narrow_dtype(codebook),
        )
    _deliver(pieces, np.asarray(q), np.asarray(intact))


def _decode_small(
    streams: Streams, codebook: Codebook, contexts: UInt8[np.ndarray, "lanes steps"] | None, cols: int, num_steps: int
) -> tuple[Int32[np.ndarray, "lanes steps"], Bool[np.ndarray, " lanes"]]:
    """As :func:`_decode_call`, on the host."""
    state, zero = np.zeros(streams.num_lanes, np.int64), np.zeros(streams.num_lanes, np.int64)
    following, num_states = next_states(codebook.num_states), codebook.num_states

    def table(t: int) -> np.ndarray:
        scale_class = zero if contexts is None else contexts[:, t].astype(np.int64)
        return scale_class if num_states == 1 else 2 * scale_class + (state & 1)

    def update(t: int, k: np.ndarray) -> np.ndarray:
        q = k if num_states == 1 else 2 * k + (state & 1).astype(np.int32)
        state[:] = 0 if (t + 1) % cols == 0 else following[state, k & 1]
        return q

    return decode_on_host(streams, codebook.tables, table, update, num_steps=num_steps)


def _narrow_dtype(codebook: Codebook) -> str:
    """The smallest integer type of all indices that are no escapes: narrow results are faster to write."""
    offset = np.asarray(codebook.tables.offset, np.int64)
    reach = num_parities(codebook.num_states) * (np.abs(offset).max() + codebook.tables.num_symbols)
    return "int8" if reach < 1 << 7 else "int16" if reach < 1 << 15 else "int32"


def _cut(group: Sequence[_Job], num_lanes: int) -> Iterator[list[_Piece]]:
    """Runs of ``num_lanes`` lanes, as pieces ``(job, first lane, last lane)``."""
    call, room = [], num_lanes
    for job in group:
        first = 0
        while first < job.lanes.count:
            last = min(job.lanes.count, first + room)
            call.append((job, first, last))
            room -= last - first
            first = last
            if not room:
                yield call
                call, room = [], num_lanes
    if call:
        yield call


def _join(pieces: Sequence[_Piece]) -> dict[str, np.ndarray]:
    """The streams of some lanes of several tensors, as flat arrays."""
    parts: dict[str, list[np.ndarray]] = {}
    for job, first, last in pieces:
        s = job.streams
        for name in ("counts", "states", "lengths", "escape_counts"):
            parts.setdefault(name, []).append(getattr(s, name)[first:last])
        for name, starts, counts in (("words", s.starts, s.counts), ("escapes", s.escape_starts, s.escape_counts)):
            stop = starts[last - 1] + counts[last - 1]
            parts.setdefault(name, []).append(getattr(s, name)[starts[first] : stop])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _fill(joined: dict[str, np.ndarray], num_lanes: int) -> Streams:
    """Round every size up, so that the same compiled call serves again."""

    def lanes(name: str, value: int = 0) -> np.ndarray:
        return np.pad(joined[name], (0, num_lanes - len(joined[name])), constant_values=value)

    def flat(name: str) -> np.ndarray:
        size = len(joined[name])
        return np.pad(joined[name], (0, flat_bucket(size) - size))

    counts, escape_counts = lanes("counts"), lanes("escape_counts")
    return Streams(
        words=jnp.asarray(flat("words")),
        starts=jnp.asarray(np.cumsum(counts, dtype=np.int64) - counts, jnp.int32),
        counts=jnp.asarray(counts),
        states=jnp.asarray(lanes("states", INITIAL_STATE)),
        lengths=jnp.asarray(lanes("lengths")),
        escapes=jnp.asarray(flat("escapes")),
        escape_starts=jnp.asarray(np.cumsum(escape_counts, dtype=np.int64) - escape_counts, jnp.int32),
        escape_counts=jnp.asarray(escape_counts),
    )


def _contexts(
    pieces: Sequence[_Piece], codebook: Codebook, num_lanes: int, num_steps: int
) -> UInt8[np.ndarray, "lanes steps"] | None:
    """Scale class of every symbol; nothing when there is but one."""
    if codebook.num_classes == 1:
        return None
    contexts = np.zeros((num_lanes, num_steps), np.uint8)
    lane = 0
    for job, first, last in pieces:
        rows = slice(first * job.lanes.rows_per_lane, last * job.lanes.rows_per_lane)
        part = job.lanes.split(job.levels.classes(codebook.num_classes, rows), 0, last - first)
        contexts[lane : lane + len(part), : part.shape[1]] = part
        lane += len(part)
    return contexts


def _deliver(pieces: Sequence[_Piece], q: Int[np.ndarray, "lanes steps"], intact: Bool[np.ndarray, " lanes"]) -> None:
    lane = 0
    for job, first, last in pieces:
        count = last - first
        if not intact[lane : lane + count].all():
            raise damaged(job.coded.place, "its lanes do not end in the state in which they were begun")
        target = job.q[first * job.lanes.rows_per_lane : last * job.lanes.rows_per_lane]
        target[:] = q[lane : lane + count, : job.lanes.steps].reshape(-1, job.lanes.cols)[: len(target)]
        lane += count


@partial(jax.jit, static_argnames=("num_states", "num_steps", "dtype"))
def _decode_call(
    streams: Streams,
    tables: FreqTable,
    contexts: UInt8[Array, "lanes steps"] | None,
    cols: Int32[Array, ""],
    *,
    num_states: int,
    num_steps: int,
    dtype: str,
) -> tuple[Int[Array, "lanes steps"], Bool[Array, " lanes"]]:
    """Indices of all lanes; the state of the trellis starts over with every row."""
    zero = jnp.zeros(streams.num_lanes, jnp.int32)

    def table(state, _, column):
        scale_class = zero if column is None else column.astype(jnp.int32)
        return scale_class if num_states == 1 else 2 * scale_class + (state & 1)

    def update(state, t, k):
        if num_states == 1:
            return state, k
        following = jnp.where((t + 1) % cols == 0, 0, step_state(state, k & 1, num_states))
        return following, 2 * k + (state & 1)

    q, _, intact = decode_lanes(
        streams, tables, zero, table, update, contexts, num_steps=num_steps, dtype=jnp.dtype(dtype)
    )
    return q, intact
