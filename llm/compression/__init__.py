"""A checkpoint in, a smaller directory out."""

from .maker import CalibrationTokens
from .pipeline import Compressed, compress
from .settings import Settings
from .sizes import Sizes, measure_sizes

__all__ = ["CalibrationTokens", "Compressed", "Settings", "Sizes", "compress", "measure_sizes"]
