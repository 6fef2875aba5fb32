"""How far a calibration has come, in a directory: whoever goes on from there ends with the same statistics."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import SafetensorError, safe_open

from occ_jax.codec.container import write_whole

from ..scratch import Clock
from .spool import Entry, Spool, end_of
from .storage import StatisticsWriter

STATISTICS = "statistics.safetensors"
"""What is being collected, in the same directory."""

_POSITION, _SPOOL, _KEY = "position.safetensors", "spool.bin", "occ_position"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Position:
    """A calibration between two steps.

    Attributes:
        steps: that are finished.
        stream: the residual stream of every batch, or the gradient at it on the way back.
        entries: of the spool, see :attr:`~occ_llm.calibration.spool.Spool.entries`.
        written: statistics that are finished.
    """

    steps: int = 0
    stream: Sequence[np.ndarray] = ()
    entries: Sequence[Entry] = ()
    written: Sequence[str] = ()


def read_position(directory: Path) -> Position:
    """Where an earlier calibration has left the directory; the beginning, if that cannot be read."""
    broken = (OSError, SafetensorError, ValueError, KeyError, TypeError)
    with contextlib.suppress(*broken), safe_open(directory / _POSITION, "np") as file:
        about = json.loads((file.metadata() or {})[_KEY])
        found = Position(
            steps=int(about["steps"]),
            stream=[file.get_tensor(name) for name in sorted(file.keys())],
            entries=[(int(start), tuple(shape), str(dtype)) for start, shape, dtype in about["entries"]],
            written=[str(name) for name in about["written"]],
        )
        spooled = (directory / _SPOOL).stat().st_size if found.entries else 0
        if (directory / STATISTICS).is_file() and spooled >= end_of(found.entries):
            return found
    return Position()


@final
class Journal:
    """Keeps the last position of a calibration, should it be interrupted.

    Args:
        directory: for this calibration alone; without one nothing is kept.
        begun: where it goes on.
        writer: of the statistics in this directory.
    """

    def __init__(
        self,
        directory: Path | None = None,
        begun: Position | None = None,
        writer: StatisticsWriter | None = None,
    ):
        self._directory, self._writer = directory, writer
        self._clock = Clock()
        self.begun = begun or Position()

    def spool(self) -> Spool:
        """Where inputs of blocks wait, with those that wait already."""
        if self._directory is None:
            return Spool()
        return Spool(file=self._directory / _SPOOL, entries=self.begun.entries)

    def save(self, steps: int, stream: Sequence[Any], spool: Spool | None = None) -> None:
        """Keep a position, if the last one is old enough.

        Args:
            steps: that are finished.
            stream: at this point.
            spool: at this point, if there is one.
        """
        if self._directory is None or self._writer is None or not self._clock.strikes():
            return
        blobs = {f"{i:06d}": np.asarray(x) for i, x in enumerate(stream)}
        self._writer.flush()
        entries: Sequence[Entry] = ()
        if spool is not None:
            spool.flush()
            entries = spool.entries
        about = {"steps": steps, "written": self._writer.written, "entries": entries}
        write_whole(self._directory / _POSITION, blobs, {_KEY: json.dumps(about)})
