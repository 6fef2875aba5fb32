"""``occ bench``: every quantizer in every coordinate system on one model and one text, at equal bytes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import Bench, Distance, Outcome, make_grid, measure_distances
from ..bench.distance import sampled_matrices
from ..bench.grid import COORDINATES, QUANTIZERS, RATES, WIDTHS, Entry
from ..bench.methods import QuantizerName
from ..bench.records import Records
from ..calibration import Statistics, calibration_windows
from ..checkpoints import Checkpoint, load_checkpoint
from ..checkpoints.named import sha256_of
from ..compression import CalibrationTokens
from ..compression.network import prepare_network
from ..compression.settings import STATES
from ..coordinates import CoordinateName
from ..errors import OccError
from ..evaluation import Windows, cut_lines, cut_windows, read_file, usual_window
from ..figures import bench_figure
from ..results import EqualBytes, Row, at_equal_bytes, over_draws
from ..stored_coordinates import describe
from ..text import python_text
from .compress import CalibrationText, ModelSource
from .terminal import Terminal

CALIBRATION_SHARE = 0.6
"""Share of the lines of a text that calibration reads, from the front; evaluation has the rest."""

_DISTANCES = 3  # part of their keys: raise it when a distance gets another field or another meaning


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Make every file of a grid of coordinates, quantizers and rates, evaluate it, and compare at equal bytes.

    What is finished is kept in OUT: run the same command again to go on after an interrupt, or with more methods.
    """

    model: ModelSource
    """A directory, a hub id, a .gguf file, or a name of `occ models`."""
    text: Path | None = None
    """A text file: the first 60 % of its lines calibrate, the rest evaluates. By default the Python documentation."""
    out: Path = Path("bench")
    """Directory for rows.json, results.json and bench.svg."""
    methods: tuple[QuantizerName, ...] = QUANTIZERS
    """Quantizers: integers with shared scales, or entropy-coded; `rtn` has no feedback."""
    coordinates: tuple[CoordinateName, ...] = COORDINATES
    """Coordinates; `klt-inputs` stores the eigenbasis of every layer's inputs and counts it."""
    transforms: tuple[Path, ...] = ()
    """With `learned` among the coordinates: files that `occ learn` wrote for this model."""
    seeds: int = 1
    """How many times to draw random coordinates."""
    rates: tuple[float, ...] = RATES
    """Bits per linear weight of the entropy-coded files, side information included but the bases of `klt-inputs`."""
    widths: tuple[int, ...] = WIDTHS
    """Widths of the integers, in bits; scales come on top."""
    window: int | None = None
    """Tokens per evaluation window; by default 2048, or what the model was trained on if that is less."""
    max_windows: int = 12
    """Windows to evaluate on."""
    calibration_windows: int = 32
    """Windows to calibrate on."""
    calibration_window: int = 1024
    """Tokens per calibration window."""
    fisher_windows: int = 16
    """Calibration windows on which the sensitivity of the outputs is measured, which takes twice as long a window."""
    statistics: Path | None = None
    """A file of `occ calibrate --text-share 0.6` for the same model, text and windows; written, if it is not there."""
    keep: bool = False
    """Leave the compressed models in OUT/files."""
    distances: bool = False
    """Measure instead how far every layer ends from its rate-distortion limit; writes distances.json."""
    states: tuple[int, ...] = (1, 8, 256)
    """With --distances: states of the trellis, 1 is scalar."""
    layers: int = 1
    """With --distances: take every so many-th block."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Calibrate, then run the grid or measure the distances."""
        terminal = Terminal(json_only=self.json)
        grid = make_grid(
            coordinates=self.coordinates,
            quantizers=self.methods,
            widths=self.widths,
            rates=self.rates,
            seeds=self.seeds,
            transforms=self.transforms,
        )
        self._check()
        learned_on = {file: describe(file).get("text_digest") for file in self.transforms}
        checkpoint = load_checkpoint(self.model)
        calibration, evaluation = self._texts()
        windows = cut_windows(
            evaluation,
            checkpoint.tokenizer,
            window=self.window or usual_window(checkpoint.config),
            max_windows=self.max_windows,
            source=f"{self._source} (the part for evaluation)",
        )
        tokens = self._tokens(checkpoint, calibration)
        statistics = self._statistics(checkpoint, tokens, terminal)
        for file, text in learned_on.items():
            if text != statistics.fingerprint.text:
                terminal.note(
                    f"{file} was not learned on the windows that this bench calibrates on: make sure that it has not "
                    f"seen the text for evaluation (occ learn --text-share {CALIBRATION_SHARE})"
                )
        if self.distances:
            self._measure_distances(checkpoint, statistics, terminal)
            return
        bench = Bench(checkpoint, statistics, windows, self.out, tokens=tokens, keep=self.keep, track=terminal.track)
        self._run_grid(bench, grid, windows, checkpoint, terminal)

    @property
    def _source(self) -> str:
        return "the Python documentation" if self.text is None else str(self.text)

    def _check(self) -> None:
        for states in self.states:
            if states not in STATES:
                raise OccError(f"--states {states} is not a trellis: choose among {', '.join(map(str, STATES))}")
        if self.calibration_windows < 1:
            raise OccError(f"--calibration-windows {self.calibration_windows} says nothing: choose 1 or more")
        if self.layers < 1:
            raise OccError(f"--layers {self.layers}: choose 1 for all blocks, 5 for every fifth")

    def _texts(self) -> tuple[str, str]:
        """Text for calibration and text for evaluation, which share no line."""
        if self.text is None:
            return python_text("calibration"), python_text("heldout")
        calibration, evaluation = cut_lines(read_file(self.text), CALIBRATION_SHARE)
        if not calibration or not evaluation:
            raise OccError(f"{self.text} has too few lines to calibrate on some and evaluate on others")
        return calibration, evaluation

    def _tokens(self, checkpoint: Checkpoint, text: str) -> CalibrationTokens:
        windows = calibration_windows(
            checkpoint.tokenizer,
            text=text,
            window=min(self.calibration_window, checkpoint.config.max_position),
            max_windows=self.calibration_windows,
            source=f"{self._source} (the part for calibration)",
        )
        return CalibrationTokens(calibration=windows, finishing=windows)

    def _statistics(self, checkpoint: Checkpoint, tokens: CalibrationTokens, terminal: Terminal) -> Statistics:
        calibration = CalibrationText(fisher_windows=self.fisher_windows, statistics=self.statistics)
        return calibration.collect(checkpoint, terminal, tokens, seed=0)

    def _run_grid(
        self, bench: Bench, grid: Sequence[Entry], windows: Windows, checkpoint: Checkpoint, terminal: Terminal
    ) -> None:
        perplexity = bench.reference_perplexity
        outcome = bench.run(grid, on_failure=terminal.note)
        curves = [drawn.row for drawn in over_draws(outcome.rows)]
        equal = at_equal_bytes(curves)
        results = {
            "model": checkpoint.name,
            "text": self._source,
            "calibration_windows": self.calibration_windows,
            "windows": len(windows.tokens),
            "window": windows.tokens.shape[1],
            "reference_perplexity": perplexity,
            "rows": [dataclasses.asdict(row) for row in outcome.rows],
            "at_equal_bytes": dataclasses.asdict(equal),
            "failures": outcome.failures,
        }
        _write_json(self.out / "results.json", results)
        bench_figure(curves, self.out / "bench.svg", model=checkpoint.name)
        _show(terminal, results, outcome, equal)
        terminal.note(f"results.json and bench.svg are in {self.out}")
        terminal.result(results)

    def _measure_distances(self, checkpoint: Checkpoint, statistics: Statistics, terminal: Terminal) -> None:
        records = Records(self.out / "distances-kept.json")
        places = [
            (coordinates, file)
            for coordinates in self.coordinates
            for file in (self.transforms if coordinates == "learned" else (None,))
        ]
        summary = []
        for coordinates, file in places:
            choice = {"coordinates": coordinates, "transforms": file}
            network = prepare_network(checkpoint.config, checkpoint.weights, statistics, **choice)
            names = sampled_matrices(network, self.layers)
            for states in self.states:
                for rate in self.rates:
                    place = coordinates if file is None else sha256_of(file)
                    key = f"{statistics.fingerprint.digest} {place} {states} {rate:g} {self.layers} {_DISTANCES}"
                    if (kept := records.get(key)) is None:
                        found = _distances(network, names, states, rate, terminal)
                        kept = {"layers": [dataclasses.asdict(distance) for distance in found]}
                        records.add(key, kept)
                    summary.append({"coordinates": coordinates, "states": states, "rate": rate, **kept})
        results = {"model": checkpoint.name, "distances": [_quartiles(**entry) | entry for entry in summary]}
        _write_json(self.out / "distances.json", results)
        rows = [tuple(entry[key] for key in _SHOWN.values()) for entry in results["distances"]]
        terminal.table(f"{checkpoint.name}: bits per weight above the rate-distortion function", tuple(_SHOWN), rows)
        terminal.note(f"distances.json, with every layer, is in {self.out}")
        terminal.result(results)


_SHOWN = {
    "coordinates": "coordinates",
    "states": "states",
    "bits/weight": "bits_per_weight",
    "lower quartile": "lower_quartile",
    "median": "median",
    "upper quartile": "upper_quartile",
    "of i.i.d.": "iid_median",
    "of feedback": "feedback_median",
}


def _distances(network, names, states: int, rate: float, terminal: Terminal) -> list[Distance]:
    try:
        return measure_distances(network, names, states=states, rate=rate, track=terminal.track)
    except ValueError as error:
        raise error if isinstance(error, OccError) else OccError(str(error)) from error


def _quartiles(*, layers: list[dict[str, Any]], **_: Any) -> dict[str, float]:
    """Quartiles over layers, in bits per weight."""
    distance = [layer["distance_bits"] for layer in layers]
    low, middle, high = (float(x) for x in np.percentile(distance, (25, 50, 75)))
    return {
        "bits_per_weight": float(np.median([layer["bits_per_weight"] for layer in layers])),
        "lower_quartile": low,
        "median": middle,
        "upper_quartile": high,
        "iid_median": float(np.median([layer["iid_distance_bits"] for layer in layers])),
        "feedback_median": float(np.median([layer["feedback_distance_bits"] for layer in layers])),
    }


def _show(terminal: Terminal, results: dict[str, Any], outcome: Outcome, equal: EqualBytes) -> None:
    columns = ("coordinates", "quantizer", "feedback", "bits/weight", "file bytes", "perplexity", "KL", "± se", "s")
    terminal.table(
        f"{results['model']}: perplexity {results['reference_perplexity']:.2f} before compression",
        columns,
        [_cells(row) for row in outcome.rows],
    )
    terminal.table(
        f"KL divergence at equal bytes, at the sizes of {equal.anchor}",
        ("curve", *(f"{size / 1e6:.3g} MB" for size in equal.file_bytes)),
        [(name, *kl) for name, kl in equal.kl.items()],
    )


def _cells(row: Row) -> tuple[Any, ...]:
    size = row.linear_bits_per_weight, row.file_bytes
    quality = row.perplexity, row.kl_mean, row.kl_se, row.seconds
    return row.coordinates, row.quantizer, "yes" if row.feedback else "no", *size, *quality


def _write_json(file: Path, fields: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
