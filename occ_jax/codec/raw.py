"""The codec of small vectors: plain floats, as norm gains and biases are kept."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float32

from occ_jax.codec.errors import damaged
from occ_jax.codec.tensor import CodedTensor, check_size, shorten

SECTIONS = ("values",)
"""Sections of this codec, in file order."""

_DTYPES = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def encode_raw(x: np.ndarray | jax.Array, dtype: str = "float32") -> CodedTensor:
    """Store floats as they are, rounded to ``dtype``.

    Args:
        x: any shape, finite.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.

    Raises:
        ValueError: for another dtype, or a value that is not finite (in ``dtype``).

    Example:
        >>> coded = encode_raw(np.array([1.0, -2.5], np.float32), "bfloat16")
        >>> coded.num_bytes, decode_raw(coded)
        (4, array([ 1. , -2.5], dtype=float32))
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}: raw values are stored as {', '.join(_DTYPES)}")
    x = np.asarray(x)
    with np.errstate(over="ignore"):
        values = x.astype(_DTYPES[dtype])
    if not np.isfinite(values.astype(np.float32)).all():
        worst = x[~np.isfinite(values.astype(np.float32))].flat[0]
        raise ValueError(f"a weight is {worst}, which {dtype} cannot hold: only finite values can be stored")
    return CodedTensor(
        spec={"codec": "raw", "dtype": dtype}, shape=tuple(x.shape), sections={"values": values.tobytes()}
    )


def check_raw(spec: Mapping[str, Any], shape: tuple[int, ...], sizes: Mapping[str, int], place: str) -> None:
    """Refuse a raw tensor whose spec, shape and section contradict each other."""
    dtype = spec.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise damaged(place, f"the spec says dtype = {shorten(dtype)}, expected one of {', '.join(_DTYPES)}")
    check_size(sizes, "values", math.prod(shape) * _DTYPES[dtype].itemsize, place)


def decode_raw(coded: CodedTensor) -> Float32[np.ndarray, "..."]:
    """The stored values in float32."""
    values = np.frombuffer(coded.sections["values"], _DTYPES[coded.spec["dtype"]])
    return values.astype(np.float32).reshape(coded.shape)
