"""Every quantizer in every coordinate system, in one harness: real files, one text, one table at equal bytes."""

from .distance import Distance, measure_distances
from .grid import Entry, make_grid
from .methods import Method, make_file
from .run import Bench, Outcome

__all__ = ["Bench", "Distance", "Entry", "Method", "Outcome", "make_file", "make_grid", "measure_distances"]
