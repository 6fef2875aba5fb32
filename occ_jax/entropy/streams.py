r"""Coded streams: what the rANS encoder leaves, what a file holds, what the decoder starts from."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt16, UInt32

from occ_jax._pytree import pytree_dataclass
from occ_jax.entropy.varint import ByteReader, unzigzag, write_varint, write_varints, zigzag

INITIAL_STATE = 1 << 16
"""State in which every lane's encoder starts and its decoder must end."""


@pytree_dataclass
class Streams:
    """Lanes of rANS words, each decodable on its own, and the values behind their escape symbols.

    Lane ``i`` reads the words ``words[starts[i] : starts[i] + counts[i]]`` from front to back, starting from
    ``states[i]``. Words between the lanes are padding: an encoder under ``jit`` leaves some, :func:`compact`
    removes them. Escaped values are laid out in the same way.

    Attributes:
        words: 16-bit words of all lanes.
        starts: index of each lane's first word.
        counts: number of each lane's words.
        states: state in which each lane's decoder starts, at least ``2**16``.
        lengths: number of symbols in each lane.
        escapes: values behind the escape symbols of all lanes, in the order of their symbols.
        escape_starts: index of each lane's first escaped value.
        escape_counts: number of each lane's escaped values.
    """

    words: UInt16[Array, " words"]
    starts: Int32[Array, " lanes"]
    counts: Int32[Array, " lanes"]
    states: UInt32[Array, " lanes"]
    lengths: Int32[Array, " lanes"]
    escapes: Int32[Array, " escapes"]
    escape_starts: Int32[Array, " lanes"]
    escape_counts: Int32[Array, " lanes"]

    @property
    def num_lanes(self) -> int:
        """Number of independent lanes."""
        return self.states.shape[0]


def _gather_segments(values: Array, starts: Array, counts: Array, lanes: slice) -> np.ndarray:
    """The segments ``values[start : start + count]`` of some lanes, one after the other, on the host."""
    host_starts, host_counts = np.asarray(starts, np.int64)[lanes], np.asarray(counts, np.int64)[lanes]
    shift = np.repeat(host_starts - _dense_starts(host_counts), host_counts)
    return np.asarray(values)[np.arange(shift.size) + shift]


def _dense_starts(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts, dtype=np.int64) - counts


def _dense_streams(
    words: np.ndarray,
    counts: np.ndarray,
    states: np.ndarray,
    lengths: np.ndarray,
    escapes: np.ndarray,
    escape_counts: np.ndarray,
) -> Streams:
    return Streams(
        words=jnp.asarray(words, jnp.uint16),
        starts=jnp.asarray(_dense_starts(counts), jnp.int32),
        counts=jnp.asarray(counts, jnp.int32),
        states=jnp.asarray(states, jnp.uint32),
        lengths=jnp.asarray(lengths, jnp.int32),
        escapes=jnp.asarray(escapes, jnp.int32),
        escape_starts=jnp.asarray(_dense_starts(escape_counts), jnp.int32),
        escape_counts=jnp.asarray(escape_counts, jnp.int32),
    )


def compact(streams: Streams, lanes: slice = slice(None)) -> Streams:
    """The same streams, or some lanes of them, without padding between the lanes; on the host, not under ``jit``.

    Raises:
        ValueError: more values were escaped than :func:`~occ_jax.entropy.rans.encode` had room for.
    """
    num_escapes = int(np.asarray(streams.escape_counts, np.int64).sum())
    if num_escapes > streams.escapes.size:
        raise ValueError(
            f"{num_escapes} values were escaped and there was room for {streams.escapes.size}: "
            "give encode a larger max_escapes"
        )
    return _dense_streams(
        words=_gather_segments(streams.words, streams.starts, streams.counts, lanes),
        counts=np.asarray(streams.counts)[lanes],
        states=np.asarray(streams.states)[lanes],
        lengths=np.asarray(streams.lengths)[lanes],
        escapes=_gather_segments(streams.escapes, streams.escape_starts, streams.escape_counts, lanes),
        escape_counts=np.asarray(streams.escape_counts)[lanes],
    )


def concatenate(streams: Sequence[Streams]) -> Streams:
    """All lanes of several streams as one, so that one call decodes them; on the host, compacts first."""
    parts = [compact(part) for part in streams]
    return _dense_streams(
        *(
            np.concatenate([np.asarray(getattr(part, name)) for part in parts])
            for name in ("words", "counts", "states", "lengths", "escapes", "escape_counts")
        )
    )


def pack(streams: Streams) -> bytes:
    """Serialise streams; the number of lanes and their lengths are for the caller to keep.

    In order: the number of words that the shortest lane has (varint); for each lane, how many it has more (varint);
    the states, four bytes each, little endian; the words of all lanes, two bytes each, little endian; a varint that is
    zero without escapes and otherwise followed by each lane's number of escapes (varints) and by the escaped values
    (zigzag varints), where the first varint is the number of all of them.
    """
    host = compact(streams)
    if host.num_lanes == 0:
        return b""
    counts = np.asarray(host.counts)
    parts = [
        write_varint(int(counts.min())),
        write_varints(counts - counts.min()),
        np.asarray(host.states).astype("<u4").tobytes(),
        np.asarray(host.words).astype("<u2").tobytes(),
        write_varint(host.escapes.size),
    ]
    if host.escapes.size:
        parts += [write_varints(np.asarray(host.escape_counts)), write_varints(zigzag(np.asarray(host.escapes)))]
    return b"".join(parts)


def unpack(data: bytes | memoryview, lengths: Int32[np.ndarray, " lanes"]) -> Streams:
    """Read what :func:`pack` wrote, given the number of symbols in each lane.

    Allocates in proportion to ``len(data) + len(lengths)``, whatever the bytes say.

    Raises:
        ValueError: the bytes cannot be the streams of lanes of these lengths.
    """
    lengths = np.asarray(lengths, np.int32)
    num_lanes = lengths.size
    reader = ByteReader(data, "coded streams")
    base = reader.varint() if num_lanes else 0
    counts = base + reader.varints(num_lanes)
    if (counts > lengths).any():
        raise reader.fail("a lane has more words than symbols")
    states = reader.take(4 * num_lanes).view("<u4").astype(np.uint32)
    if (states < INITIAL_STATE).any():
        raise reader.fail("a lane starts from a state below 2**16")
    words = reader.take(2 * int(counts.sum())).view("<u2").astype(np.uint16)
    num_escapes = reader.varint() if num_lanes else 0
    escape_counts = reader.varints(num_lanes) if num_escapes else np.zeros(num_lanes, np.int64)
    if (escape_counts > lengths).any() or escape_counts.sum() != num_escapes:
        raise reader.fail(f"{num_escapes} escapes do not match those of the lanes")
    escapes = unzigzag(reader.varints(num_escapes)).astype(np.int32)
    reader.finish()
    return _dense_streams(words, counts, states, lengths, escapes, escape_counts)
