"""All parts of an analysis, one after the other, as one record of numbers."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from ..parallel import Track, untracked
from ..roles import LINEAR_KINDS
from .divergence import Trial
from .frequency import Order, OrderWorth, measure_order, worth_of_order
from .outliers import Outliers, Price, measure_outliers, measure_prices
from .regimes import Histogram, Regime, measure_regimes
from .sensitivity import DIRECTIONS, Injection, Spectrum, measure_injections, measure_spectra
from .structure import Depth, Rank, measure_structure
from .subject import COORDINATES, Subject


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What was analysed.

    Attributes:
        model: its name.
        layers: blocks that were looked at.
        num_layers: blocks of the model.
        text: what calibration and the trials read.
        calibration_tokens: read to measure sensitivity.
        trial_windows, trial_window: windows on which divergences are measured, and their tokens.
        learned: file of learned transforms.
    """

    model: str
    layers: tuple[int, ...]
    num_layers: int
    text: str
    calibration_tokens: int
    trial_windows: int
    trial_window: int
    learned: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """Every number that was measured; see the module of each part.

    Attributes:
        facts: what was analysed.
        systems: coordinate systems.
        regimes, histograms: :mod:`~occ_llm.analysis.regimes`.
        outliers, prices: :mod:`~occ_llm.analysis.outliers`.
        spectra, injections: :mod:`~occ_llm.analysis.sensitivity`.
        ranks, depths: :mod:`~occ_llm.analysis.structure`.
        orders, worth: :mod:`~occ_llm.analysis.frequency`.
        seconds: wall time of each part.
        cpu_seconds: processor time of all of them, all cores together.
    """

    facts: Facts
    systems: tuple[str, ...]
    regimes: list[Regime]
    histograms: list[Histogram]
    outliers: list[Outliers]
    prices: list[Price]
    spectra: list[Spectrum]
    injections: list[Injection]
    ranks: list[Rank]
    depths: list[Depth]
    orders: list[Order]
    worth: list[OrderWorth]
    seconds: Mapping[str, float]
    cpu_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Fields for a JSON file; what is not finite becomes null."""
        return finite(dataclasses.asdict(self))


def analyze(
    subject: Subject,
    tokens: Int[np.ndarray, "windows length"],
    facts: Facts,
    *,
    track: Track = untracked,
) -> Analysis:
    """Measure everything.

    Args:
        subject: the network and its statistics.
        tokens: windows on which divergences are measured; calibration has not seen them.
        facts: what to say about the run.
        track: shows progress.

    Raises:
        ValueError: a matrix or a second moment is not finite.
    """
    clock = _Clock()
    regimes, histograms = measure_regimes(subject, subject.matrices, track=track)
    clock.stop("regimes")
    outliers = measure_outliers(subject, subject.matrices, track=track)
    trial = Trial(subject, tokens)
    # A learned transform of some layers only would be compared with others on fewer matrices: the trials leave it out.
    priced = [name for name in subject.systems if name in COORDINATES or _covers_everything(subject)]
    prices = list(measure_prices(subject, trial, track(priced, "price of outliers")))
    clock.stop("outliers")
    injections = list(measure_injections(subject, trial, track(DIRECTIONS, "injected errors")))
    del trial
    names = track([str(layer) for layer in subject.layers], "spectra")
    spectra = list(measure_spectra(subject, (int(layer) for layer in names)))
    clock.stop("sensitivity")
    ranks, depths = measure_structure(subject, LINEAR_KINDS, track=track)
    clock.stop("structure")
    orders = measure_order(subject, subject.matrices, track=track)
    clock.stop("frequency")
    return Analysis(
        facts=facts,
        systems=subject.systems,
        regimes=regimes,
        histograms=histograms,
        outliers=outliers,
        prices=prices,
        spectra=spectra,
        injections=injections,
        ranks=ranks,
        depths=depths,
        orders=orders,
        worth=worth_of_order(orders),
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def _covers_everything(subject: Subject) -> bool:
    return all(subject.learned_transform(name) is not None for name in subject.matrices)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._cpu = time.process_time()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu


def finite(value: Any) -> Any:
    """The same value with null in place of what JSON has no number for.

    Example:
        >>> finite({"a": [1.0, float("nan")], "b": (2,)})
        {'a': [1.0, None], 'b': [2]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
