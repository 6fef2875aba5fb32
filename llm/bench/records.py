"""Finished measurements on disk, written whole after each one: an interrupted bench goes on where it stopped."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        self._records: dict[str, dict[str, Any]] = {}
        if file.exists():
            try:
                self._records = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise OccError(f"{file}: is damaged ({error}); move it away or choose another --out") from error
            if not isinstance(self._records, dict) or not all(isinstance(r, dict) for r in self._records.values()):
                raise OccError(f"{file}: is not a file of the bench; move it away or choose another --out")

    def get(self, key: str) -> dict[str, Any] | None:
        """A finished measurement, or ``None``."""
        return self._records.get(key)

    def add(self, key: str, fields: Mapping[str, Any]) -> None:
        """Keep a measurement; what is on disk is always a whole file."""
        self._records[key] = dict(fields)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_suffix(".part")
        aside.write_text(json.dumps(self._records, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self._file)
