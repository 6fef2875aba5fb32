"""A checkpoint in, a smaller directory out."""

from .pipeline import Compressed, compress
from .settings import Settings
from .sizes import Sizes, measure_sizes

__all__ = ["Compressed", "Settings", "Sizes", "compress", "measure_sizes"]
