"""Run a grid: make each file, open it like anybody else would, and hold it against the original on one text."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ..calibration import Statistics
from ..calibration.fingerprint import text_digest
from ..checkpoints import Checkpoint
from ..compression import CalibrationTokens
from ..compression.network import prepare_network
from ..errors import OccError
from ..evaluation import Reference, Windows, evaluate
from ..model import LanguageModel
from ..parallel import Track, untracked
from ..results import Row
from ..roles import is_linear
from .grid import Entry
from .measure import measured_row
from .methods import Surveys, make_file
from .records import Records

RECORDS = "rows.json"
"""File of finished rows in the directory of a bench."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the entries of a grid.

    Attributes:
        rows: measured, in the order of the grid.
        failures: name of an entry that no file could be made for -> the reason.
    """

    rows: tuple[Row, ...]
    failures: dict[str, str]


class Bench:
    """One model on one text; keeps the reference's states between the rows.

    Args:
        checkpoint: the model.
        statistics: of the folded network in original coordinates.
        windows: evaluation text, which ``statistics`` have not seen.
        out: directory of the bench.
        tokens: calibration text for what runs it through the network again.
        keep: leave the compressed models in ``out``.
        track: shows progress.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        windows: Windows,
        out: Path,
        *,
        tokens: CalibrationTokens | None = None,
        keep: bool = False,
        track: Track = untracked,
    ):
        self._checkpoint = checkpoint
        self._statistics = statistics
        self._windows = windows
        self._out = out
        self._tokens = tokens
        self._keep = keep
        self._track = track
        self.records = Records(out / RECORDS)
        self.circumstances = statistics.fingerprint.digest, text_digest(windows.tokens)

    def run(self, grid: Sequence[Entry], *, on_failure: Callable[[str], None] = lambda message: None) -> Outcome:
        """Measure every entry that has not been measured yet.

        Args:
            grid: the entries.
            on_failure: told when no file can be made for an entry; the others go on.

        Raises:
            OccError: no entry could be measured.
        """
        with Surveys() as surveys:
            return self._run(grid, surveys, on_failure)

    def _run(self, grid: Sequence[Entry], surveys: Surveys, on_failure: Callable[[str], None]) -> Outcome:
        rows, failures = [], {}
        for number, entry in enumerate(grid, 1):
            key = entry.key(*self.circumstances)
            fields = self.records.get(key)
            if fields is None:
                try:
                    row = self._measure(entry, surveys, f"{entry.name} ({number} of {len(grid)})")
                except OccError as error:
                    failures[entry.name] = str(error)
                    on_failure(f"{entry.name}: {error}")
                    continue
                fields = dataclasses.asdict(row)
                self.records.add(key, fields)
            # A file of transforms may have another name by now.
            rows.append(Row.from_json({**fields, "coordinates": entry.method.place}))
        if not rows:
            raise OccError(next(iter(failures.values())))
        return Outcome(rows=tuple(rows), failures=failures)

    @cached_property
    def reference_perplexity(self) -> float:
        """Of the original on the same windows."""
        key = f"original {' '.join(self.circumstances)}"
        if (found := self.records.get(key)) is None:
            original = evaluate(
                self._reference.model,
                self._windows,
                reference=self._reference,
                progress=lambda rows: self._track(rows, "original"),
            )
            self.records.add(key, {"perplexity": original.perplexity})
            return original.perplexity
        return found["perplexity"]

    @cached_property
    def _reference(self) -> Reference:
        return Reference(LanguageModel.from_weights(self._checkpoint.config, self._checkpoint.weights))

    @cached_property
    def input_bases_bits(self) -> float:
        """Bits per linear weight of the stored bases of ``klt-inputs``: the same for all quantizers and rates."""
        checkpoint = self._checkpoint
        network = prepare_network(checkpoint.config, checkpoint.weights, self._statistics, coordinates="klt-inputs")
        linear = [name for name in network.matrices if is_linear(name)]
        bits = sum(network.transform_bits(name) for name in self._track(linear, "bases of inputs"))
        return bits / sum(self._checkpoint.weights[name].size for name in linear)

    def _measure(self, entry: Entry, surveys: Surveys, label: str) -> Row:
        def track(steps: Iterable, what: str) -> Iterable:
            return self._track(steps, f"{label}: {what}")

        place = self._out / "files" / entry.name
        if place.exists():  # of an earlier run: made, and not measured or kept
            shutil.rmtree(place)
        method = entry.method
        stored = self.input_bases_bits if method.coordinates == "klt-inputs" and not method.is_integer else 0.0
        try:
            sizes, seconds = make_file(
                method,
                entry.rate,
                self._checkpoint,
                place,
                self._statistics,
                tokens=self._tokens,
                surveys=surveys,
                transform_bits=stored,
                track=track,
            )
            return measured_row(
                place,
                self._windows,
                self._reference,
                coordinates=method.place,
                quantizer=method.label,
                feedback=method.feedback,
                sizes=sizes,
                seconds=seconds,
                track=track,
            )
        finally:
            if not self._keep:
                shutil.rmtree(place, ignore_errors=True)
                with contextlib.suppress(OSError):  # files of other entries were kept
                    place.parent.rmdir()
