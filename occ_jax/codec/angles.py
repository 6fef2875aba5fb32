"""Angles as integer fractions of a half turn."""

import numpy as np
from jaxtyping import Float, Float32

from occ_jax.codec.levels import read_levels, write_levels
from occ_jax.entropy.varint import ByteReader

_LARGEST_EXPONENT = 14


def write_angles(angles: Float[np.ndarray, " n"], bits: int) -> tuple[int, bytes]:
    """The exponent of a grid of ``2**-exponent`` half turns and the angles on it.

    Args:
        angles: in radians.
        bits: resolution, two less than the exponent.
    """
    exponent = min(bits + 2, _LARGEST_EXPONENT)
    turns = angles.astype(np.float64) / np.pi
    # The odd end of (-1, 1] half turns is the even one: angles are periodic.
    levels = np.rint(np.ldexp(turns - 2 * np.round(turns / 2), exponent)).astype(np.int32)
    return exponent, write_levels(levels)


def read_angles(data: ByteReader, count: int, exponent: int) -> Float32[np.ndarray, " n"]:
    """The angles that :func:`write_angles` wrote, in radians."""
    return np.ldexp(read_levels(data, count) * np.pi, -exponent).astype(np.float32)
