"""A checkpoint in, a smaller directory out."""

from .maker import CalibrationTokens
from .pipeline import Compressed, compress
from .settings import Settings
from .sizes import Sizes, measure_sizes
from .survey import Survey, survey

__all__ = ["CalibrationTokens", "Compressed", "Settings", "Sizes", "Survey", "compress", "measure_sizes", "survey"]
