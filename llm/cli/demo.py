"""``occ demo``: the main job end to end, in minutes: three rates, three coordinate systems, one table."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..bench.measure import measured_row
from ..calibration import Statistics
from ..checkpoints import Checkpoint, load_checkpoint
from ..compression import Settings, compress, survey
from ..coordinates import CoordinateName
from ..errors import OccError
from ..evaluation import Reference, Windows, cut_windows, evaluate, usual_window
from ..figures import rate_distortion_figure
from ..model import LanguageModel
from ..results import Row
from ..text import python_text
from .compress import CalibrationText
from .terminal import Terminal

MODEL, OFFLINE_MODEL = "smollm2-135m-q4_1", "tiny"
COORDINATES: tuple[CoordinateName, ...] = ("identity", "hadamard", "klt")
RATES = (4.0, 3.5, 3.0)

_BEGUN = "unfinished"
"""File in the directory of a demo that was not finished: what lies beside it may be made again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Compress a model at three rates in original, Hadamard and KLT coordinates, and compare the files."""

    out: Path = Path("demo")
    """Directory for the files, the results and the figure."""
    model: str | None = None
    """Model to compress; by default SmolLM2-135M, or without a network the bundled `tiny`."""
    window: int | None = None
    """Tokens per evaluation window; by default 2048, or what the model was trained on if that is less."""
    max_windows: int = 2
    """Windows to evaluate on."""
    force: bool = False
    """Replace the files of an earlier demo."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Run the demo and write ``results.json`` and ``rate_distortion.svg``."""
        terminal = Terminal(json_only=self.json)
        begun = self.out / _BEGUN
        again = self.force or begun.exists()
        if (self.out / "results.json").exists() and not again:
            raise OccError(f"{self.out}: holds a demo already; choose another --out, or pass --force to replace it")
        checkpoint = _open(self.model, terminal)
        window = self.window or usual_window(checkpoint.config)
        windows = cut_windows(python_text("heldout"), checkpoint.tokenizer, window=window, max_windows=self.max_windows)
        calibration = CalibrationText(calibration_windows=8, calibration_window=min(1024, window), fisher_windows=4)
        tokens = calibration.tokens(checkpoint)
        statistics = calibration.collect(checkpoint, terminal, tokens, seed=0)
        reference = Reference(LanguageModel.from_weights(checkpoint.config, checkpoint.weights))
        original = evaluate(
            reference.model, windows, reference=reference, progress=lambda rows: terminal.track(rows, "original")
        )
        self.out.mkdir(parents=True, exist_ok=True)
        begun.touch()
        rows = [
            row
            for coordinates in COORDINATES
            for row in self._curve(
                coordinates, checkpoint, statistics, windows, reference, calibration, terminal, again=again
            )
        ]
        facts = {
            "model": checkpoint.name,
            "text": "held-out part of the Python documentation",
            "calibration": calibration.described(checkpoint.config),
            "windows": len(windows.tokens),
            "window": window,
            "reference_perplexity": original.perplexity,
        }
        self._report(terminal, facts, rows)
        begun.unlink()

    def _curve(
        self,
        coordinates: CoordinateName,
        checkpoint: Checkpoint,
        statistics: Statistics,
        windows: Windows,
        reference: Reference,
        calibration: CalibrationText,
        terminal: Terminal,
        *,
        again: bool,
    ) -> Iterator[Row]:
        """Files of all rates in one system of coordinates, each evaluated; one survey serves them all."""
        track = functools.partial(_labelled, terminal, coordinates)
        with survey(checkpoint, statistics, _settings(1.0, coordinates), track=track) as surveyed:
            near = None
            for bits in RATES:
                place = self.out / f"{coordinates}-{bits:g}"
                settings = _settings(bits, coordinates)
                track = functools.partial(_labelled, terminal, f"{coordinates} {bits:g} bits")
                made = compress(
                    checkpoint,
                    place,
                    statistics,
                    settings,
                    surveyed=surveyed,
                    near=near,
                    force=again,
                    text=calibration.described(checkpoint.config),
                    track=track,
                )
                near = made.allocation
                yield measured_row(
                    place,
                    windows,
                    reference,
                    coordinates=coordinates,
                    quantizer=settings.quantizer,
                    feedback=settings.feedback,
                    sizes=made.sizes,
                    seconds=made.seconds,
                    track=track,
                )

    def _report(self, terminal: Terminal, facts: dict[str, Any], rows: list[Row]) -> None:
        results = facts | {"rows": [dataclasses.asdict(row) for row in rows]}
        (self.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        rate_distortion_figure(rows, self.out / "rate_distortion.svg", model=facts["model"])
        columns = ("coordinates", "bits/weight", "file bytes", "perplexity", "KL", "± se", "seconds")
        cells = [
            (r.coordinates, r.linear_bits_per_weight, r.file_bytes, r.perplexity, r.kl_mean, r.kl_se, r.seconds)
            for r in rows
        ]
        title = f"{facts['model']}: perplexity {facts['reference_perplexity']:.2f} before compression"
        terminal.table(title, columns, cells)
        terminal.note(f"files, results.json and rate_distortion.svg are in {self.out}")
        terminal.result(results)


def _open(source: str | None, terminal: Terminal) -> Checkpoint:
    """The model that was asked for, or the largest that can be had."""
    if source is not None:
        return load_checkpoint(source)
    try:
        return load_checkpoint(MODEL)
    except OccError as error:
        terminal.note(f"{error} Going on with the bundled model {OFFLINE_MODEL!r} instead.")
        return load_checkpoint(OFFLINE_MODEL)


def _settings(bits: float, coordinates: CoordinateName) -> Settings:
    """Scalar quantization, whose files are made in half the time of the trellis; one survey serves all rates."""
    return Settings(bits=bits, coordinates=coordinates, states=1, output_feedback="never")


def _labelled(terminal: Terminal, label: str, rows: Iterable, step: str) -> Iterable:
    return terminal.track(rows, f"{label}: {step}")
