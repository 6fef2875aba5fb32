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
from .butterfly import Butterfly, butterfly, num_pairs
from .dual import dual
from .frequency import DCT, RealFFT
from .hadamard import Hadamard, hadamard, hartley_matrix, random_hadamard, sylvester_matrix
from .klt import KLT, klt
from .kronecker import Kronecker, kronecker, kronecker_apply
from .planes import PlaneRotation
from .rotation import Rotation, apply_matrix, forward_rows, random_rotation
from .scaling import Scaling
from .stacked import BlockDiagonal, block_diagonal

__all__ = [
    "DCT",
    "KLT",
    "AlongAxis",
    "BlockDiagonal",
    "Blockwise",
    "Butterfly",
    "Chain",
    "Hadamard",
    "Identity",
    "Inverse",
    "Kronecker",
    "PlaneRotation",
    "RealFFT",
    "Rotation",
    "Scaling",
    "Transform",
    "along_axis",
    "apply_matrix",
    "block_diagonal",
    "blockwise",
    "butterfly",
    "chain",
    "dual",
    "forward_rows",
    "hadamard",
    "hartley_matrix",
    "identity",
    "inverse",
    "klt",
    "kronecker",
    "kronecker_apply",
    "num_pairs",
    "random_hadamard",
    "random_rotation",
    "sylvester_matrix",
]
