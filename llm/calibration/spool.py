"""A stack of arrays that overflows to disk: where the inputs of all blocks wait for the way back."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

Entry = tuple[int, tuple[int, ...], str]
"""Where an array begins, its shape and its type."""

IN_MEMORY_BYTES = 256 * 2**20
"""Up to here the stack stays in memory."""


def end_of(entries: Sequence[Entry]) -> int:
    """Where the last of some arrays ends.

    Example:
        >>> end_of([(0, (2, 3), "<f4"), (24, (5,), "<i8")])
        64
    """
    if not entries:
        return 0
    start, shape, dtype = entries[-1]
    return start + math.prod(shape) * np.dtype(dtype).itemsize


@final
class Spool:
    """Last in, first out; arrays beyond some size in all go to a temporary file without a name.

    The forward pass pushes the input of every block, the backward pass pops them: memory does not grow with
    the depth of the network.

    Args:
        in_memory_bytes: the size, :data:`IN_MEMORY_BYTES` by default.
        file: keep all arrays in this file, which stays, so that another spool can go on from :attr:`entries`.
        entries: what the file holds; nothing by default.

    Example:
        >>> with Spool() as spool:
        ...     spool.push(np.arange(3)), spool.push(np.ones((1, 2)))
        ...     print(spool.pop(), spool.pop())
        (None, None)
        [[1. 1.]] [0 1 2]
    """

    def __init__(
        self, in_memory_bytes: int = IN_MEMORY_BYTES, *, file: Path | None = None, entries: Sequence[Entry] = ()
    ):
        if file is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=in_memory_bytes)  # noqa: SIM115
        else:
            self._file = open(file, "r+b" if entries else "w+b")  # noqa: SIM115
        self._entries = list(entries)
        self._file.seek(end_of(entries))

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Where in the file the arrays lie, with their shapes and types."""
        return tuple(self._entries)

    def flush(self) -> None:
        """What was pushed is on the disk, should the process or the machine end here."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def push(self, array: np.ndarray) -> None:
        """Put an array on top."""
        self._entries.append((self._file.tell(), array.shape, array.dtype.str))
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def pop(self) -> np.ndarray:
        """Take the top array off."""
        start, shape, dtype = self._entries.pop()
        array = np.empty(shape, dtype)
        self._file.seek(start)
        got = self._file.readinto(array.reshape(-1).view(np.uint8).data)
        self._file.seek(start)
        if got != array.nbytes:
            raise OSError(f"a temporary file was cut off after {got} of {array.nbytes} bytes")
        return array
