"""What a network needs to know about text before it is compressed: second moments, Fisher information, token counts."""

from .cache import load_or_calibrate
from .collect import calibrate, check_windows
from .fingerprint import Fingerprint, fingerprint
from .head import draw, head_gradient, label_bits
from .moments import CompensatedSum, gram, zero_sum
from .moved import conjugate, moved_diagonal, rotate_statistics, sandwich, space_of
from .sequential import QuantizedPrefix
from .statistics import Statistics, statistic_shapes
from .storage import load_statistics, save_statistics
from .text import calibration_windows, spread

__all__ = [
    "CompensatedSum",
    "Fingerprint",
    "QuantizedPrefix",
    "Statistics",
    "calibrate",
    "calibration_windows",
    "check_windows",
    "conjugate",
    "draw",
    "fingerprint",
    "gram",
    "head_gradient",
    "label_bits",
    "load_or_calibrate",
    "load_statistics",
    "moved_diagonal",
    "rotate_statistics",
    "sandwich",
    "save_statistics",
    "space_of",
    "spread",
    "statistic_shapes",
    "zero_sum",
]
