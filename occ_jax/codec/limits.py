"""What the spec of a transform may ask of a reader: parameters that are all alike take no bytes, so the bytes at hand
bound nothing. Writers keep to the same limits.
"""

from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 8
"""Deepest nesting of combinators."""

MAX_LINKS = 64
"""Most links of a chain, blocks of a block diagonal, and factors of a Kronecker product."""

MAX_BUTTERFLY = (1 << 16, 8)
"""Largest size of a butterfly and most sweeps."""

MAX_HADAMARD_SIZE = 1 << 20
"""Longest Hadamard transform."""

MAX_ENTRIES = 1 << 28
"""Most entries of all vectors and matrices that one transform is made of."""

_MATRICES = ("rotation", "klt")
_COMBINATORS = ("chain", "inverse", "along_axis", "blockwise", "block_diagonal", "kronecker")


def num_entries(spec: Any, depth: int = 0) -> int:
    """Entries of the vectors and matrices that a spec announces; of what is nested too deeply nothing is counted.

    Example:
        >>> num_entries({"name": "chain", "of": [{"name": "rotation", "size": 8}, {"name": "scaling", "size": 8}]})
        72
    """
    if isinstance(spec, list):
        return sum(num_entries(part, depth) for part in spec)
    if depth > MAX_DEPTH or not isinstance(spec, Mapping):
        return 0
    if spec.get("name") in _COMBINATORS:
        return num_entries(spec.get("of"), depth + 1)
    size, sweeps = (value if type(value := spec.get(name)) is int else 1 for name in ("size", "sweeps"))
    return size * (size if spec.get("name") in _MATRICES else sweeps)


def leaves_axis(spec: Any) -> bool:
    """Whether a spec contains ``along_axis``, which would reach out of the axis that it is for."""
    if isinstance(spec, list):
        return any(leaves_axis(part) for part in spec)
    return isinstance(spec, Mapping) and (spec.get("name") == "along_axis" or leaves_axis(spec.get("of")))
