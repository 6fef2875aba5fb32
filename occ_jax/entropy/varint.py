r"""LEB128 variable-length integers, the only integer encoding of this library's byte formats.

An unsigned integer is cut into groups of seven bits, least significant first; every byte but the last has
its top bit set. Signed integers are first mapped to unsigned ones by zigzag,

.. math::

    0, -1, 1, -2, 2, \ldots \mapsto 0, 1, 2, 3, 4, \ldots

so that small magnitudes are short. Readers never trust a length: they check it against the bytes at hand.
"""

import numpy as np
from jaxtyping import Int, Integer, UInt8

MAX_VARINT_BYTES = 5
"""Longest varint of the formats here: every number fits 32 bits."""


def write_varints(values: Integer[np.ndarray, " n"]) -> bytes:
    """Encode integers of ``[0, 2**32)``, one LEB128 varint after the other.

    Example:
        >>> write_varints(np.array([0, 127, 128, 300])).hex()
        '007f8001ac02'
    """
    values = np.asarray(values, np.int64)
    if values.size and (values.min() < 0 or values.max() >= 1 << 32):
        raise ValueError(f"a varint holds integers of [0, 2**32), got {values.min()} to {values.max()}")
    shifts = 7 * np.arange(MAX_VARINT_BYTES)
    groups = (values[:, None] >> shifts) & 0x7F
    num_groups = 1 + (values[:, None] >> shifts[1:] != 0).sum(1)
    position = np.arange(MAX_VARINT_BYTES)
    groups |= np.where(position < num_groups[:, None] - 1, 0x80, 0)
    return groups[position < num_groups[:, None]].astype(np.uint8).tobytes()


def write_varint(value: int) -> bytes:
    """Encode one integer of ``[0, 2**32)``."""
    return write_varints(np.array([value]))


def num_varint_bytes(values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Bytes that each integer of ``[0, 2**32)`` takes."""
    values = np.asarray(values, np.int64)[..., None]
    return 1 + (values >> (7 * np.arange(1, MAX_VARINT_BYTES)) != 0).sum(-1)


def zigzag(values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Map int32 values to ``[0, 2**32)``, small magnitudes first.

    Example:
        >>> zigzag(np.array([0, -1, 1, -2, 2])), int(zigzag(np.array(-(2**31))))
        (array([0, 1, 2, 3, 4]), 4294967295)
    """
    values = np.asarray(values, np.int64)
    return np.asarray((values << 1) ^ (values >> 63))


def unzigzag(values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Inverse of :func:`zigzag`."""
    values = np.asarray(values, np.int64)
    return np.asarray((values >> 1) ^ -(values & 1))


class ByteReader:
    """Read a byte string from front to back; every read past the end is a ``ValueError`` that names ``what``.

    Example:
        >>> reader = ByteReader(bytes([172, 2, 7]), "example")
        >>> reader.varint(), reader.varint(), reader.remaining
        (300, 7, 0)
    """

    def __init__(self, data: bytes | memoryview | UInt8[np.ndarray, " n"], what: str):
        self._bytes = np.frombuffer(data, np.uint8)
        self._position = 0
        self._what = what

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return self._bytes.size - self._position

    def fail(self, reason: str) -> ValueError:
        """The error to raise when these bytes cannot be right."""
        return ValueError(f"malformed {self._what}: {reason}")

    def take(self, count: int) -> UInt8[np.ndarray, " count"]:
        """The next ``count`` bytes."""
        if not 0 <= count <= self.remaining:
            raise self.fail(f"{count} bytes are announced and {self.remaining} are left")
        self._position += count
        return self._bytes[self._position - count : self._position]

    def varint(self) -> int:
        """The next varint."""
        return int(self.varints(1)[0])

    def varints(self, count: int) -> Int[np.ndarray, " count"]:
        """The next ``count`` varints."""
        if not 0 <= count <= self.remaining:
            raise self.fail(f"{count} integers are announced and {self.remaining} bytes are left")
        window = self._bytes[self._position : self._position + count * MAX_VARINT_BYTES]
        ends = np.flatnonzero(window < 0x80)[:count]
        if ends.size < count:
            raise self.fail(f"of {count} integers one is longer than 32 bits or cut short")
        lengths = np.diff(ends, prepend=-1)
        if count and lengths.max() > MAX_VARINT_BYTES:
            raise self.fail("an integer is longer than 32 bits")
        values = np.zeros(count, np.int64)
        starts = ends - lengths + 1
        for group in range(MAX_VARINT_BYTES):
            index = np.minimum(starts + group, ends)
            values |= np.where(group < lengths, (window[index] & 0x7F).astype(np.int64) << (7 * group), 0)
        if count and values.max() >= 1 << 32:
            raise self.fail("an integer is longer than 32 bits")
        self._position += int(lengths.sum())
        return values

    def varints_to_end(self) -> Int[np.ndarray, " count"]:
        """All varints that are left."""
        return self.varints(int((self._bytes[self._position :] < 0x80).sum()))

    def finish(self) -> None:
        """Raise unless every byte has been read."""
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes are left over")
