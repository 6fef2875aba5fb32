"""Decode many tensors together: the lanes of all of them advance in one compiled loop."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt8

from occ_jax.codec.buckets import bucket
from occ_jax.codec.errors import damaged
from occ_jax.codec.lanes import Lanes
from occ_jax.codec.lattice import read_lattice
from occ_jax.codec.levels import Levels
from occ_jax.codec.tensor import CodedTensor, require_codebook
from occ_jax.entropy.rans import decode_lanes
from occ_jax.entropy.streams import INITIAL_STATE, Streams
from occ_jax.entropy.tables import FreqTable
from occ_jax.quantization.codebook import Codebook
from occ_jax.quantization.ungerboeck import step_state

MAX_CALL_SYMBOLS = 1 << 26
"""Most symbols that one compiled call decodes (one row more, at most): the bound on its memory."""


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

    Tensors are grouped by codebook and by the length of their lanes (rounded up to a bucket); each group is cut into
    calls of at most :data:`MAX_CALL_SYMBOLS` symbols, all of one shape.

    Raises:
        FormatError: a tensor's streams are damaged.
    """
    jobs = []
    for tensor in coded:
        levels, lanes, streams = read_lattice(tensor)
        q = np.empty((lanes.rows, lanes.cols), np.int32)
        jobs.append(_Job(coded=tensor, levels=levels, lanes=lanes, streams=_on_host(streams), q=q))
    groups: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        if job.lanes.count:
            groups.setdefault((id(job.coded.codebook), bucket(job.lanes.steps)), []).append(job)
    for (_, num_steps), group in groups.items():
        _decode_group(group, num_steps)
    return [(job.q, job.levels) for job in jobs]


def _on_host(streams: Streams) -> Streams:
    return jax.tree.map(np.asarray, streams)


def _decode_group(group: Sequence[_Job], num_steps: int) -> None:
    codebook = require_codebook(group[0].coded)
    total = sum(job.lanes.count for job in group)
    num_calls = -(-total * num_steps // MAX_CALL_SYMBOLS)
    num_lanes = bucket(-(-total // num_calls))
    for call in _cut(group, num_lanes):
        streams = _fill(_join(call), num_lanes)
        classes = None if codebook.num_classes == 1 else _call_classes(call, codebook, num_lanes, num_steps)
        cols = np.repeat([job.lanes.cols for job, _, _ in call], [last - first for _, first, last in call])
        cols = np.pad(cols.astype(np.int32), (0, num_lanes - len(cols)), constant_values=1)
        q, intact = _decode_call(
            streams, codebook.tables, classes, jnp.asarray(cols), num_states=codebook.num_states, num_steps=num_steps
        )
        _deliver(call, np.asarray(q), np.asarray(intact))


_Piece = tuple[_Job, int, int]


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


def _join(call: Sequence[_Piece]) -> dict[str, np.ndarray]:
    """The streams of some lanes of several tensors, as flat arrays."""
    parts: dict[str, list[np.ndarray]] = {}
    for job, first, last in call:
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
        return np.pad(joined[name], (0, bucket(len(joined[name]), mantissa_bits=0) - len(joined[name])))

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


def _call_classes(call: Sequence[_Piece], codebook: Codebook, num_lanes: int, num_steps: int) -> UInt8[Array, "l s"]:
    classes = np.zeros((num_lanes, num_steps), np.uint8)
    lane = 0
    for job, first, last in call:
        rows = slice(first * job.lanes.rows_per_lane, last * job.lanes.rows_per_lane)
        part = job.lanes.split(job.levels.classes(codebook.num_classes, rows), 0, last - first)
        classes[lane : lane + len(part), : part.shape[1]] = part
        lane += len(part)
    return jnp.asarray(classes)


def _deliver(call: Sequence[_Piece], q: Int32[np.ndarray, "lanes steps"], intact: Bool[np.ndarray, " lanes"]) -> None:
    lane = 0
    for job, first, last in call:
        count = last - first
        if not intact[lane : lane + count].all():
            raise damaged(job.coded.place, "its lanes do not end in the state in which they were begun")
        target = job.q[first * job.lanes.rows_per_lane : last * job.lanes.rows_per_lane]
        target[:] = q[lane : lane + count, : job.lanes.steps].reshape(-1, job.lanes.cols)[: len(target)]
        lane += count


@partial(jax.jit, static_argnames=("num_states", "num_steps"))
def _decode_call(
    streams: Streams,
    tables: FreqTable,
    classes: UInt8[Array, "lanes steps"] | None,
    cols: Int32[Array, " lanes"],
    *,
    num_states: int,
    num_steps: int,
) -> tuple[Int32[Array, "lanes steps"], Bool[Array, " lanes"]]:
    """Indices of all lanes. The state of the trellis starts over with every row, that is every ``cols`` symbols."""
    start = jnp.zeros_like(cols), jnp.zeros_like(cols)

    def advance(carry, k):
        state, col = carry
        state = step_state(state, k & 1, num_states)
        end_of_row = col + 1 == cols
        return jnp.where(end_of_row, 0, state), jnp.where(end_of_row, 0, col + 1)

    def context(carry, row):
        scale_class = jnp.zeros_like(cols) if row is None else row.astype(jnp.int32)
        return scale_class if num_states == 1 else 2 * scale_class + (carry[0] & 1)

    k, _, intact = decode_lanes(
        streams,
        tables,
        None if num_states == 1 else start,
        context,
        lambda carry, _, value: carry if num_states == 1 else advance(carry, value),
        None if classes is None else classes.T,
        num_steps=num_steps,
    )
    if num_states == 1:
        return k.T, intact
    _, q = lax.scan(lambda carry, k: (advance(carry, k), 2 * k + (carry[0] & 1)), start, k)
    return q.T, intact
