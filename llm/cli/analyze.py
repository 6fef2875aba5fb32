"""``occ analyze``: one page about a model's weights in several coordinate systems."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..analysis import Facts, Finding, analyze, decide, open_subject, render_page
from ..analysis.page import verdict
from ..analysis.subject import check_learned, chosen_layers, read_learned
from ..checkpoints import load_checkpoint
from ..checkpoints.atomic import atomic_file
from ..errors import OccError, said_of
from ..stored_coordinates import holds_transforms, require_model
from .compress import CalibrationText, ModelSource, Output
from .terminal import Terminal

PAGE, NUMBERS = "index.html", "analysis.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyze:
    """Measure a model's weights in several coordinate systems, and test what is claimed of them, on one HTML page."""

    model: ModelSource
    """A directory, a hub id, a .gguf file, or a name of `occ models`."""
    out: Output
    """Directory for index.html, which opens without a network, and analysis.json."""
    text: Path | None = None
    """A text file; by default the documentation that every Python carries."""
    calibration_windows: int = 8
    """Windows of text from which the sensitivity of the weights is measured."""
    calibration_window: int | None = None
    """Tokens per calibration window; by default 1024, or what the model was trained on if that is less."""
    fisher_windows: int = 4
    """Calibration windows on which the sensitivity of the outputs is measured, which takes twice as long a window."""
    windows: int = 2
    """Windows of other text on which divergences are measured."""
    window: int = 512
    """Tokens of these windows."""
    layers: tuple[int, ...] | None = None
    """Numbers of the blocks to look at, from 0; all when left out."""
    transforms: Path | None = None
    """A file that `occ learn` wrote, or one of bare transforms named after matrices or the spaces residual, values and
    hidden."""
    seed: int = 0
    """Seed of the random coordinates and of the labels that calibration draws."""
    force: bool = False
    """Replace the page and the numbers in OUT."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Calibrate, measure, and write the page and its numbers."""
        terminal = Terminal(json_only=self.json)
        self._check()
        checkpoint = load_checkpoint(self.model)
        layers = chosen_layers(checkpoint.config, self.layers)
        learned = {} if self.transforms is None else read_learned(self.transforms, checkpoint.config)
        check_learned(checkpoint.config, learned, layers)
        calibration = CalibrationText(
            text=self.text,
            calibration_windows=self.calibration_windows,
            calibration_window=self.calibration_window or 1024,
            fisher_windows=self.fisher_windows,
        )
        tokens = calibration.tokens(checkpoint, hold_back=self.windows)
        assert tokens.held_back is not None
        trial = tokens.held_back[:, : self.window]
        statistics = calibration.collect(checkpoint, terminal, tokens, seed=self.seed)
        if self.transforms is not None and holds_transforms(self.transforms):
            require_model(self.transforms, statistics.fingerprint.model)
        facts = Facts(
            model=checkpoint.name,
            layers=layers,
            num_layers=checkpoint.config.num_layers,
            text=calibration.described(checkpoint.config),
            calibration_tokens=statistics.num_tokens,
            trial_windows=len(trial),
            trial_window=trial.shape[1],
            learned=None if self.transforms is None else self.transforms.name,
        )
        subject = open_subject(
            checkpoint.config,
            checkpoint.weights,
            statistics,
            key=jax.random.key(self.seed),
            layers=layers,
            learned=learned,
        )
        with said_of(checkpoint.name), subject as opened:
            analysis = analyze(opened, np.asarray(trial), facts, track=terminal.track)
        decided = decide(analysis)
        numbers = {"findings": [dataclasses.asdict(finding) for finding in decided], **analysis.to_json()}
        self._write(PAGE, render_page(analysis))
        self._write(NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
        _show(terminal, checkpoint.name, decided)
        terminal.note(f"{PAGE} and {NUMBERS} are in {self.out}")
        terminal.result(
            {
                "model": checkpoint.name,
                "page": str(self.out / PAGE),
                "numbers": str(self.out / NUMBERS),
                "seconds": sum(analysis.seconds.values()),
                "cpu_seconds": analysis.cpu_seconds,
                "findings": [_outcome(finding) for finding in decided],
            }
        )

    def _check(self) -> None:
        """Refuse before anything long is begun."""
        if self.out.exists() and not self.out.is_dir():
            raise OccError(f"{self.out}: is a file; give the name of a directory")
        if self.out.exists() and not self.force:
            raise OccError(f"{self.out}: already exists; choose another output, or pass --force to write into it")
        if self.calibration_windows < 1:
            raise OccError(f"--calibration-windows {self.calibration_windows} says nothing: choose 1 or more")
        if self.windows < 1:
            raise OccError(f"--windows {self.windows} measures nothing: choose 1 or more")
        if self.window < 2:
            raise OccError(f"--window {self.window} predicts nothing: choose 2 or more")

    def _write(self, name: str, text: str) -> None:
        with atomic_file(self.out / name, force=self.force) as file:
            file.write_text(text, encoding="utf-8")


def _outcome(finding: Finding) -> dict[str, Any]:
    return {"claim": finding.claim, "holds": finding.holds, "evidence": finding.evidence}


def _show(terminal: Terminal, model: str, decided: list[Finding]) -> None:
    rows = [(verdict(finding), finding.claim, finding.evidence) for finding in decided]
    terminal.table(f"{model}: claims and outcomes", ("outcome", "claim", "evidence"), rows)
