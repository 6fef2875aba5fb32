"""Coordinates: invertible transforms of the last axis, and the combinators that compose them."""

from .base import (
    AlongAxis,
    Blockwise,
    Chain,
    Identity,
    Inverse,
    Transform,
    along_axis,
    blockwise,
    chain,
    identity,
    inverse,
)
from .frequency import DCT, RealFFT
from .hadamard import Hadamard, hadamard, hartley_matrix, random_hadamard, sylvester_matrix
from .klt import KLT, klt
from .kronecker import kronecker_apply
from .rotation import Rotation, apply_matrix, random_rotation

__all__ = [
    "DCT",
    "KLT",
    "AlongAxis",
    "Blockwise",
    "Chain",
    "Hadamard",
    "Identity",
    "Inverse",
    "RealFFT",
    "Rotation",
    "Transform",
    "along_axis",
    "apply_matrix",
    "blockwise",
    "chain",
    "hadamard",
    "hartley_matrix",
    "identity",
    "inverse",
    "klt",
    "kronecker_apply",
    "random_hadamard",
    "random_rotation",
    "sylvester_matrix",
]
