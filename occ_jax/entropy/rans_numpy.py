r"""The byte format of :func:`~occ_jax.entropy.streams.pack`, read and written in plain Python.

A second reading of the format, one symbol at a time on unbounded integers: the reference that the jitted coder is
tested against, byte for byte, and the shortest description of what a decoder does. About a million times slower.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from occ_jax.entropy.tables import FreqTable

_LOW = 1 << 16


class _Table:
    """One table as Python integers."""

    def __init__(self, freq: list[int], offset: int, precision: int):
        self.freq = freq
        self.start = [sum(self.freq[:s]) for s in range(len(self.freq))]
        self.offset, self.precision, self.escape = offset, precision, len(self.freq) - 1

    def symbol_of_value(self, value: int) -> int:
        s = value - self.offset
        return s if 0 <= s < self.escape and self.freq[s] else self.escape

    def symbol_of_slot(self, slot: int) -> int:
        return next(s for s, (first, f) in enumerate(zip(self.start, self.freq)) if first <= slot < first + f)


def _read_tables(tables: FreqTable) -> list[_Table]:
    freq = np.asarray(tables.freq).reshape(-1, tables.num_symbols)
    offset = np.asarray(tables.offset).reshape(-1)
    return [_Table(row.tolist(), int(first), tables.precision) for row, first in zip(freq, offset)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def encode_lane(values: Sequence[int], tables: Sequence[_Table]) -> tuple[int, list[int], list[int]]:
    """State, words and escaped values of one lane; ``tables`` holds one table for each value."""
    x, words, escapes = _LOW, [], []
    for value, table in zip(reversed(values), reversed(tables)):
        s = table.symbol_of_value(value)
        if s == table.escape:
            escapes.append(value)
        if x >= table.freq[s] << (32 - table.precision):
            words.append(x % _LOW)
            x //= _LOW
        x = (x // table.freq[s] << table.precision) + table.start[s] + x % table.freq[s]
    return x, words[::-1], escapes[::-1]


def encode(
    q: Int[np.ndarray, "lanes steps"],
    tables: FreqTable,
    contexts: Int[np.ndarray, "lanes steps"] | None = None,
    lengths: Int[np.ndarray, " lanes"] | None = None,
) -> bytes:
    """What ``pack(encode(...))`` of the jitted coder gives, bit for bit.

    Example:
        >>> from occ_jax.entropy import from_counts
        >>> encode(np.array([[0, 1, 1, 0]]), from_counts(np.array([3, 1]), 0, precision=4)).hex(" ")
        '00 00 c7 d9 21 00 00'
    """
    lanes, steps = q.shape
    if lanes == 0:
        return b""
    table = _read_tables(tables)
    contexts = np.zeros(q.shape, int) if contexts is None else contexts
    lengths = np.full(lanes, steps) if lengths is None else lengths
    coded = [
        encode_lane([int(v) for v in row[:n]], [table[c] for c in ctx[:n]]) for row, ctx, n in zip(q, contexts, lengths)
    ]
    shortest = min(len(words) for _, words, _ in coded)
    out = _varint(shortest) + b"".join(_varint(len(words) - shortest) for _, words, _ in coded)
    out += b"".join(x.to_bytes(4, "little") for x, _, _ in coded)
    out += b"".join(word.to_bytes(2, "little") for _, words, _ in coded for word in words)
    num_escapes = sum(len(escapes) for _, _, escapes in coded)
    out += _varint(num_escapes)
    if num_escapes:
        out += b"".join(_varint(len(escapes)) for _, _, escapes in coded)
        out += b"".join(_varint(2 * v if v >= 0 else -2 * v - 1) for _, _, escapes in coded for v in escapes)
    return out


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def integer(self, num_bytes: int) -> int:
        self.at += num_bytes
        return int.from_bytes(self.data[self.at - num_bytes : self.at], "little")


def decode(
    data: bytes,
    tables: FreqTable,
    lengths: Int[np.ndarray, " lanes"],
    contexts: Int[np.ndarray, "lanes steps"] | None = None,
) -> list[Int32[np.ndarray, " length"]]:
    """The values of every lane.

    Raises:
        ValueError: a lane does not end in the initial state with all its words read.
    """
    table, reader = _read_tables(tables), _Reader(data)
    if not len(lengths):
        return []
    shortest = reader.varint()
    counts = [shortest + reader.varint() for _ in lengths]
    states = [reader.integer(4) for _ in lengths]
    words = [[reader.integer(2) for _ in range(count)] for count in counts]
    num_escapes = reader.varint()
    escape_counts = [reader.varint() if num_escapes else 0 for _ in lengths]
    zigzag = [[reader.varint() for _ in range(count)] for count in escape_counts]
    lanes = []
    for lane, (length, x) in enumerate(zip(lengths.tolist(), states)):
        pending, escaped, values = iter(words[lane]), iter(zigzag[lane]), []
        for t in range(length):
            now = table[0 if contexts is None else int(contexts[lane, t])]
            slot = x % (1 << now.precision)
            s = now.symbol_of_slot(slot)
            x = now.freq[s] * (x >> now.precision) + slot - now.start[s]
            if x < _LOW:
                x = x * _LOW + next(pending)
            code = next(escaped) if s == now.escape else 0
            values.append((code >> 1) ^ -(code & 1) if s == now.escape else now.offset + s)
        if x != _LOW or next(pending, None) is not None or next(escaped, None) is not None:
            raise ValueError(f"lane {lane} does not end as it was begun")
        lanes.append(np.array(values, np.int32))
    return lanes
