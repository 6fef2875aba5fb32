"""Means over all matrices of a network, in one coordinate system."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def alike(rows: Iterable[Any], coordinates: str) -> list[Any]:
    """All matrices in one coordinate system; those that it leaves as they are have their original coordinates."""
    known: dict[str, Any] = {}
    for row in rows:
        if row.coordinates == coordinates or (row.coordinates == "identity" and row.matrix not in known):
            known[row.matrix] = row
    return list(known.values())


def weighted(rows: Iterable, coordinates: str, field: str) -> float:
    """Mean of a field over all matrices in one coordinate system, every weight counted once."""
    chosen = alike(rows, coordinates)
    return float(np.average([getattr(r, field) for r in chosen], weights=[r.num_weights for r in chosen]))
