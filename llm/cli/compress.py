"""``occ compress``, ``occ decompress`` and ``occ calibrate``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from ..calibration import Statistics, load_or_calibrate, spread
from ..checkpoints import Checkpoint, load_checkpoint, write_hf_directory
from ..checkpoints.atomic import check_output
from ..checkpoints.write import FloatType
from ..compression import CalibrationTokens, Compressed, Settings, Sizes, compress
from ..compression.correction import Slope
from ..compression.plan import STEP_RESOLUTION
from ..compression.targets import Goal
from ..config import ModelConfig
from ..errors import OccError
from ..evaluation import cut_lines, cut_windows, read_file
from ..text import python_text
from .terminal import Terminal

HELD_BACK = 4
"""Windows of text on which a target divergence is measured."""

ModelSource = Annotated[str, tyro.conf.Positional]
Output = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Text on which the sensitivity of the weights is measured."""

    text: Path | None = None
    """A text file; by default the documentation that every Python carries."""
    text_share: float = 1.0
    """Share of its lines that is read, from the front. Of a text that evaluation is to have the rest of, take less;
    `occ bench` calibrates on 0.6."""
    calibration_windows: int = 32
    """Windows of text to read; more is better and slower."""
    calibration_window: int = 1024
    """Tokens per window; fewer if the model was trained on less."""
    fisher_windows: int = 16
    """Windows of these on which the sensitivity of the outputs is measured, which takes twice as long a window."""
    finish_windows: int = 32
    """Windows of text on which row scales and gains are tuned, at low rates."""
    statistics: Path | None = None
    """A file of `occ calibrate` for the same model, text and windows; written, if it is not there. Without it, what is
    measured is kept in the user's cache, and found there by every command."""

    def described(self, config: ModelConfig) -> str:
        """What a model card says.

        Args:
            config: of the model.
        """
        share = "" if self.text_share == 1 else f" (the first {self.text_share:.0%} of its lines)"
        return f"{self._name}{share}, up to {self.calibration_windows} windows of {self._window(config)} tokens"

    def inputs(self, *others: Path | None) -> list[Path]:
        """The files of this that are given, and those others: what no output may replace."""
        return [path for path in (*others, self.text, self.statistics) if path is not None]

    def tokens(self, checkpoint: Checkpoint, *, hold_back: int = 0) -> CalibrationTokens:
        """Windows for each use, spread over the text.

        Args:
            checkpoint: the model, for its tokenizer.
            hold_back: windows that no other use sees.

        Raises:
            OccError: the text cannot be read, or is too short.
        """
        if not 0 < self.text_share <= 1:
            raise OccError(f"--text-share {self.text_share} is no share of a text: choose a number above 0, up to 1")
        for option in ("calibration_windows", "finish_windows"):
            if getattr(self, option) < 1:
                name = option.replace("_", "-")
                raise OccError(f"--{name} {getattr(self, option)} reads nothing: choose 1 or more")
        text = python_text("calibration") if self.text is None else read_file(self.text)
        text, _ = cut_lines(text, self.text_share)
        window = self._window(checkpoint.config)
        tokens = cut_windows(text, checkpoint.tokenizer, window=window, source=self._name).tokens
        if len(tokens) <= hold_back:
            raise OccError(
                f"{self._name} has {len(tokens)} windows of {window} tokens, and {hold_back} are held back to "
                "measure the divergence: give a longer text or a smaller --calibration-window"
            )
        held = spread(len(tokens), hold_back)
        rest = np.delete(tokens, held, axis=0)
        calibration, finishing = (spread(len(rest), most) for most in (self.calibration_windows, self.finish_windows))
        return CalibrationTokens(
            calibration=rest[calibration],
            finishing=rest[finishing],
            held_back=tokens[held] if hold_back else None,
            unseen=np.delete(rest, np.union1d(calibration, finishing), axis=0),
        )

    def _window(self, config: ModelConfig) -> int:
        return min(self.calibration_window, config.max_position)

    def collect(
        self, checkpoint: Checkpoint, terminal: Terminal, tokens: CalibrationTokens, *, seed: int
    ) -> Statistics:
        """Statistics of a model on this text: collected now, or read from where they are kept.

        Raises:
            OccError: the file of statistics is of another model, another text or other settings, or is damaged.
        """
        statistics = load_or_calibrate(
            checkpoint.config,
            checkpoint.weights,
            tokens.calibration,
            key=jax.random.key(seed),
            path=self.statistics,
            fisher_windows=self.fisher_windows,
            progress=lambda steps: terminal.track(steps, "calibrate"),
        )
        if few := statistics.singular_inputs():
            terminal.note(
                f"{statistics.num_tokens} tokens of text are fewer than the inputs of {len(few)} kinds of layers "
                f"(first: {few[0].removesuffix('.hessian')}): more text makes a better file"
            )
        return statistics

    @property
    def _name(self) -> str:
        return "the Python documentation" if self.text is None else str(self.text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress:
    """Compress a model into a directory: as small as asked for, as good as possible."""

    model: ModelSource
    """A directory, a hub id, a .gguf file, or a name of `occ models`."""
    out: Output
    """Directory to write."""
    settings: Annotated[Settings, tyro.conf.arg(name="")]
    calibration: Annotated[CalibrationText, tyro.conf.arg(name="")] = CalibrationText()
    force: bool = False
    """Replace a model at OUT."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Calibrate, compress, and show the sizes."""
        terminal = Terminal(json_only=self.json)
        checkpoint = load_checkpoint(self.model)
        inputs = self.calibration.inputs(checkpoint.path, self.settings.transforms)
        check_output(self.out, force=self.force, inputs=inputs)
        tokens = self.calibration.tokens(checkpoint, hold_back=0 if self.settings.kl is None else HELD_BACK)
        statistics = self.calibration.collect(checkpoint, terminal, tokens, seed=self.settings.seed)
        result = compress(
            checkpoint,
            self.out,
            statistics,
            self.settings,
            tokens=tokens,
            force=self.force,
            text=self.calibration.described(checkpoint.config),
            track=terminal.track,
        )
        show_compressed(terminal, self.out, result)
        note_a_miss(terminal, self.settings.goal, result.sizes)
        terminal.result(
            dataclasses.asdict(result.sizes)
            | {"step": result.step, "finished": result.finished, "seconds": result.seconds}
            | {"slopes": [dataclasses.asdict(slope) for slope in result.slopes]}
        )


def show_compressed(terminal: Terminal, out: Path, result: Compressed) -> None:
    """Sizes of a fresh file."""
    sizes = result.sizes
    rows = [
        ("file bytes", sizes.file_bytes),
        ("bits per weight, linear layers", sizes.linear_bits_per_weight),
        ("bits per weight, whole file", sizes.file_bits_per_weight),
        ("seconds", result.seconds),
    ]
    terminal.table(str(out), ("quantity", "value"), rows)
    if result.slopes:
        _show_slopes(terminal, result.slopes)


def note_a_miss(terminal: Terminal, goal: Goal, sizes: Sizes) -> None:
    """Say it if the file has not the size that was asked for: what tuning adds is foreseen from the last attempt."""
    reached = {"bits": sizes.linear_bits_per_weight, "bytes": float(sizes.file_bytes)}.get(goal.kind)
    if reached is not None and not goal.met_by(reached):
        terminal.note(
            f"the file has {goal.describe(reached)}, not {goal.describe(goal.value)}: what tuning adds changed from "
            "attempt to attempt; ask for a little less or more, or give --finish never"
        )


def _show_slopes(terminal: Terminal, slopes: tuple[Slope, ...]) -> None:
    columns = ("group", "predicted", "measured", "± se", "ratio", "steps times")
    rows = [(s.group, s.predicted, s.fall, s.fall_se, s.ratio, 2.0 ** (s.levels / STEP_RESOLUTION)) for s in slopes]
    terminal.table("fall of the divergence when a group's errors are eased, nats per token", columns, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure on text how sensitive a model is to errors in its weights, for every command that needs it."""

    model: ModelSource
    """A directory, a hub id, a .gguf file, or a name of `occ models`."""
    out: Annotated[Path | None, tyro.conf.Positional] = None
    """Statistics file to write (safetensors), for --statistics of other commands; read instead, if it is there and
    fits. By default a file in the user's cache, where other commands look for it."""
    calibration: Annotated[CalibrationText, tyro.conf.arg(name="")] = CalibrationText()
    seed: int = 0
    """Seed of the labels that are drawn from the model."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Calibrate, or say that the file is there."""
        terminal = Terminal(json_only=self.json)
        if self.out is not None and self.calibration.statistics is not None:
            raise OccError(f"--statistics {self.calibration.statistics} and {self.out}: name one file, as OUT")
        calibration = dataclasses.replace(self.calibration, statistics=self.out or self.calibration.statistics)
        checkpoint = load_checkpoint(self.model)
        tokens = calibration.tokens(checkpoint)
        statistics = calibration.collect(checkpoint, terminal, tokens, seed=self.seed)
        file = None if calibration.statistics is None else str(calibration.statistics)
        fields = {"file": file, "tokens": statistics.num_tokens, **dataclasses.asdict(statistics.fingerprint)}
        terminal.table(file or "in the cache", ("quantity", "value"), list(fields.items()))
        terminal.result(fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decompress:
    """Turn a compressed model into a dense Hugging Face directory that transformers opens."""

    model: ModelSource
    """A directory that `occ compress` wrote."""
    out: Output
    """Directory to write."""
    dtype: FloatType = "float32"
    """How to store the weights."""
    force: bool = False
    """Replace a model at OUT."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Decode every tensor once and write it."""
        terminal = Terminal(json_only=self.json)
        checkpoint = load_checkpoint(self.model)
        with terminal.progress("decompress", total=len(checkpoint.weights)) as advance:
            write_hf_directory(
                self.out,
                config=checkpoint.config,
                weights=checkpoint.weights,
                tokenizer_files=checkpoint.tokenizer_files,
                dtype=self.dtype,
                force=self.force,
                inputs=[] if checkpoint.path is None else [checkpoint.path],
                on_tensor=lambda name: advance(1),
            )
        files = {file.name: file.stat().st_size for file in sorted(self.out.iterdir())}
        terminal.table(str(self.out), ("file", "bytes"), list(files.items()))
        terminal.result({"out": str(self.out), "files": files})
