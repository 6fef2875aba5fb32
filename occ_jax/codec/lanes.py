"""How the rows of a matrix fall into the lanes of the entropy coder."""

import dataclasses

import numpy as np
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """How the rows of a matrix fall into lanes: ``rows_per_lane`` rows each, the last lane perhaps fewer.

    Example:
        >>> lanes = Lanes(rows=10, cols=3, rows_per_lane=4)
        >>> lanes.count, lanes.steps, lanes.lengths()
        (3, 12, array([12, 12,  6], dtype=int32))
    """

    rows: int
    cols: int
    rows_per_lane: int

    @property
    def count(self) -> int:
        """Number of lanes; none for a matrix without elements."""
        return -(-self.rows // self.rows_per_lane) if self.cols else 0

    @property
    def steps(self) -> int:
        """Symbols of a full lane."""
        return self.rows_per_lane * self.cols

    def lengths(self) -> Int32[np.ndarray, " lanes"]:
        """Symbols of each lane."""
        lengths = np.full(self.count, self.steps, np.int32)
        if self.count:
            lengths[-1] = (self.rows - (self.count - 1) * self.rows_per_lane) * self.cols
        return lengths

    def split(self, x: np.ndarray, first: int, last: int) -> np.ndarray:
        """Rows of lanes ``first`` to ``last`` as an array ``(lanes, steps)``, zeros behind the last row."""
        part = x[first * self.rows_per_lane : last * self.rows_per_lane]
        missing = (last - first) * self.rows_per_lane - len(part)
        return np.pad(part, ((0, missing), (0, 0))).reshape(last - first, self.steps)
