"""Finished measurements on disk, written whole after each one: an interrupted bench goes on where it stopped.

Several processes may measure into one file, each a part of a grid.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import OccError


class Records:
    """A JSON object of measurements by the key of everything that determines them.

    Args:
        file: where they are kept; made with the first measurement.

    Raises:
        OccError: the file is there and is no such object.
    """

    def __init__(self, file: Path):
        self._file = file
        self._records = self._read()

    def get(self, key: str) -> dict[str, Any] | None:
        """A finished measurement, or ``None``."""
        return self._records.get(key)

    def add(self, key: str, fields: Mapping[str, Any]) -> None:
        """Keep a measurement, beside what others have kept; what is on disk is always a whole file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_name(f".{self._file.name}.lock")):
            self._records = {**self._read(), **self._records, key: dict(fields)}
            aside = self._file.with_suffix(".part")
            aside.write_text(json.dumps(self._records, indent=1) + "\n", encoding="utf-8")
            os.replace(aside, self._file)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        try:
            records = json.loads(self._file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OccError(f"{self._file}: is damaged ({error}); move it away or choose another --out") from error
        if not isinstance(records, dict) or not all(isinstance(r, dict) for r in records.values()):
            raise OccError(f"{self._file}: is not a file of the bench; move it away or choose another --out")
        return records
