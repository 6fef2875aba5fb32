"""``occ learn``: coordinates fitted to one model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..checkpoints import load_checkpoint
from ..checkpoints.atomic import atomic_file, check_output
from ..errors import OccError
from ..figures import learning_figure
from ..learning import LearnSettings, Outcome, Session
from ..stored_coordinates import describe, load_coordinates, require_file, save_coordinates
from .compress import CalibrationText, ModelSource, Output
from .terminal import Terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learn:
    """Learn coordinates of a model, for `occ compress --coordinates learned --transforms OUT`.

    An interrupted training goes on where it stopped: run the same command again.
    """

    model: ModelSource
    """A directory, a hub id, a .gguf file, or a name of `occ models`."""
    out: Output
    """Transforms file to write (.safetensors); a figure of the training is written beside it."""
    settings: Annotated[LearnSettings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=LearnSettings)
    calibration: Annotated[CalibrationText, tyro.conf.arg(name="")] = dataclasses.field(default_factory=CalibrationText)
    transforms: Path | None = None
    """With --init learned, the file of `occ learn` in whose coordinates training begins."""
    control: bool = False
    """Learn on Gaussian matrices of the same shapes and scales, too: what is gained there is fitted to noise."""
    force: bool = False
    """Replace a file at OUT."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Calibrate, learn, write, and show the gain."""
        terminal = Terminal(json_only=self.json)
        if self.out.suffix != ".safetensors":
            raise OccError(f"{self.out}: transforms are written as .safetensors; give the file such a name")
        require_file("--init", learned=self.settings.init == "learned", given=self.transforms is not None)
        if self.transforms is not None:
            describe(self.transforms)  # refused before anything is measured
        figure = self.out.with_suffix(".svg")
        checkpoint = load_checkpoint(self.model)
        inputs = self.calibration.inputs(checkpoint.path, self.transforms)
        for path in (self.out, figure):
            check_output(path, force=self.force, inputs=inputs)
        tokens = self.calibration.tokens(checkpoint)
        statistics = self.calibration.collect(checkpoint, terminal, tokens, seed=self.settings.seed)
        if self.settings.end_to_end and (tokens.unseen is None or not len(tokens.unseen)):
            terminal.note("all of the text trains: what is measured before and after is on text that training has seen")
        begun, model = self.transforms, statistics.fingerprint.model
        session = Session(
            checkpoint,
            statistics,
            self.settings,
            tokens.finishing,
            unseen=tokens.unseen,
            start=None if begun is None else load_coordinates(begun, checkpoint.config, model_digest=model),
            progress=lambda label, total: terminal.progress(label, total=total),
            track=terminal.track,
        )
        outcome = session.run(control=self.control)
        result = outcome.to_json()
        about = {
            "settings": dataclasses.asdict(self.settings),
            "transforms": None if self.transforms is None else self.transforms.name,
            "text": self.calibration.described(checkpoint.config),
            "text_digest": statistics.fingerprint.text,
            **result,
        }
        with atomic_file(self.out, force=self.force) as aside:
            save_coordinates(
                aside,
                checkpoint.config,
                outcome.learned.coordinates,
                model=checkpoint.name,
                model_digest=model,
                about=about | {"log": _log(outcome)},
            )
        session.forget()
        found = _finding(outcome, "distortion" if self.settings.is_integer else "bits")
        learning_figure(_logs(outcome), figure, title=f"{checkpoint.name}: {found}")
        _show(terminal, outcome, f"{checkpoint.name} in {self.out}")
        terminal.result({"out": str(self.out), "figure": str(figure), **result})


def show_transforms(terminal: Terminal, file: Path) -> None:
    """What a transforms file holds."""
    about = describe(file)
    settings = about.get("settings", {})
    chosen = ("objective", "rate", "bits", "group_size", "clip", "init", "steps")
    rows: list[tuple[str, Any]] = [("learned for", about["model"]), ("bytes", file.stat().st_size)]
    rows += [(name.replace("_", " "), settings.get(name)) for name in chosen]
    rows += [(f"parameters, {name.replace('_', ' ')}", count) for name, count in about.get("parameters", {}).items()]
    rows += [(f"gain in {name}", value) for name, value in about.get("gain", {}).items()]
    terminal.table(str(file), ("what", "value"), rows)
    terminal.result({name: value for name, value in about.items() if name != "log"})


def _logs(outcome: Outcome) -> dict[str, Any]:
    return {"learned": outcome.learned.log} | (
        {} if outcome.control is None else {"control": outcome.control.learned.log}
    )


def _log(outcome: Outcome) -> dict[str, dict[str, list[float]]]:
    """Training logs as JSON values."""
    return {
        name: {field: [float(x) for x in getattr(log, field)] for field in ("bits", "distortion", "orthogonality")}
        for name, log in _logs(outcome).items()
    }


def _finding(outcome: Outcome, quantity: str) -> str:
    gain = outcome.gain[quantity]
    found = f"{gain:.3f} bit per weight below the original coordinates"
    if quantity == "distortion":
        found = f"divergence lower by {gain:.3g} nats"
    if outcome.control is not None:
        found += f" (control {outcome.control.gain[quantity]:.3g})"
    return found


def _show(terminal: Terminal, outcome: Outcome, title: str) -> None:
    columns = ("matrices", "original", "start", "learned", "as coded")
    for quantity, name in (("bits", "bits per weight"), ("distortion", "distortion")):
        measured = [outcome.measured[place] for place in ("original", "start", "learned", "coded")]
        if len({m[quantity] for m in measured}) == 1:
            continue
        kinds = measured[0]["kinds"]
        rows = [(kind, *(m["kinds"][kind][quantity] for m in measured)) for kind in kinds]
        if quantity == "bits" and any(paid := [m["transform_bits"] for m in measured]):
            rows.append(("transforms stored with matrices", *paid))
        terminal.table(f"{title}: {name}", columns, [*rows, ("all", *(m[quantity] for m in measured))])
    rows = [("gain over the original coordinates, bits", outcome.gain["bits"])]
    rows += [("fall of the distortion", outcome.gain["distortion"])]
    if outcome.control is not None:
        rows += [(f"of the control, {name}", value) for name, value in outcome.control.gain.items()]
    step, single = outcome.learned.seconds_per_step, outcome.pass_seconds
    rows += [("seconds per step", step), ("seconds of a forward and backward pass over its tokens", single)]
    if step is not None and single:
        rows.append(("a step relative to a pass", step / single))
    terminal.table(f"{title}: result", ("quantity", "value"), rows)
