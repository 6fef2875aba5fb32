"""Which methods at which rates: the rows of the table, in the order in which they are made."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ..checkpoints.named import sha256_of
from ..coordinates import CoordinateName
from ..errors import OccError
from ..stored_coordinates import require_file
from .methods import Method, QuantizerName

COORDINATES: tuple[CoordinateName, ...] = ("identity", "hadamard", "klt", "klt-inputs")
RANDOM: frozenset[CoordinateName] = frozenset({"hadamard", "random"})
"""Coordinates that a seed decides."""

QUANTIZERS: tuple[QuantizerName, ...] = tuple(
    name for name in get_args(QuantizerName) if not {"corrected", "sequential"} & {*name.split("-")}
)
"""Quantizers of a grid that nobody has chosen; the others are variants that are slower and are asked for by name."""

WIDTHS = (2, 3, 4)
RATES = (2.0, 2.5, 3.0, 3.5)

# Part of every key: to be raised when the same entry would make another file.
_INTEGERS_PROCEDURE = 1
_CODED_PROCEDURE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the bench.

    Attributes:
        method: how it is made.
        rate: width of the integers, or bits per weight of the linear layers beside stored transforms.
    """

    method: Method
    rate: float

    @property
    def name(self) -> str:
        """Short and unique, fit for a directory."""
        method = self.method
        learned = "" if method.transforms is None else f"-{method.transforms.stem}"
        seed = f"-{method.seed}" if method.seed else ""
        return f"{method.coordinates}{learned}{seed}-{method.quantizer}-{self.rate:g}"

    def key(self, *circumstances: str) -> str:
        """A digest of everything that determines the row: the entry, and digests of model, texts and windows."""
        fields = dataclasses.asdict(self)
        method = fields["method"]
        method |= {"transforms": None if method["transforms"] is None else sha256_of(method["transforms"])}
        # Defaults of fields that came later stay out, so that older rows keep their keys.
        fields["method"] = {
            name: value for name, value in method.items() if value or name not in ("seed", "transforms")
        }
        procedure = _INTEGERS_PROCEDURE if self.method.is_integer else _CODED_PROCEDURE
        parts = [procedure, fields, *circumstances]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def make_grid(
    *,
    coordinates: Sequence[CoordinateName] = COORDINATES,
    quantizers: Sequence[QuantizerName] = QUANTIZERS,
    widths: Sequence[int] = WIDTHS,
    rates: Sequence[float] = RATES,
    seeds: int = 1,
    transforms: Sequence[Path] = (),
) -> tuple[Entry, ...]:
    """Every quantizer in all coordinates at every rate; repetitions count once.

    Args:
        coordinates: their names.
        quantizers: their names.
        widths: of integers.
        rates: of what is entropy-coded.
        seeds: how many times to draw random coordinates.
        transforms: files of ``learned`` coordinates.

    Raises:
        OccError: there is no such width or rate, nothing to do, or learned coordinates without their file or with
            two of one name.

    Example:
        >>> [entry.name for entry in make_grid(coordinates=["klt"], quantizers=["scalar"], rates=[2.0, 3.0])]
        ['klt-scalar-2', 'klt-scalar-3']
    """
    for width in widths:
        if not 2 <= width <= 8:
            raise OccError(f"--widths {width} is no width of integers: choose 2 to 8")
    for rate in rates:
        if not 0 < rate <= 16:
            raise OccError(f"--rates {rate} is not a rate: choose numbers above 0, up to 16")
    require_file("--coordinates", learned="learned" in coordinates, given=bool(transforms))
    stems = [file.stem for file in dict.fromkeys(transforms)]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise OccError(f"--transforms: several files are called {repeated[0]}, as their curves would be; rename them")
    if seeds < 1:
        raise OccError(f"--seeds {seeds} draws nothing: choose 1 or more")
    entries = []
    for place in coordinates:
        drawn = range(seeds if place in RANDOM else 1)
        variants = [(0, file) for file in transforms] if place == "learned" else [(seed, None) for seed in drawn]
        for (seed, file), quantizer in itertools.product(variants, quantizers):
            method = Method(coordinates=place, quantizer=quantizer, seed=seed, transforms=file)
            for rate in widths if method.is_integer else rates:
                entries.append(Entry(method=method, rate=float(rate)))
    if not entries:
        raise OccError("nothing to compare: choose at least one quantizer, one basis and one rate")
    return tuple(dict.fromkeys(entries))
