"""Record what `occ learn` did: how each basis was trained, what that changed by its own measure, and what it took.

    occ learn smollm2-135m-q4_1 layerwise-int2-clipped.safetensors --text wiki.txt --text-share 0.6 ...
    python scripts/update_learning.py *.safetensors    # takes them over, writes page and figures
    python scripts/update_learning.py --check          # exit code 1 unless page and record say the same

A file of transforms holds its settings, its measures before and after, the same of its control, and its log. The script
keeps these under the file's name (``docs/results/learning.json``), in the place of an older training of that name, and
writes ``docs/results/learning.md`` and a figure for each training from them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from occ_llm.figures import learning_figure
from occ_llm.learning import LearnSettings
from occ_llm.stored_coordinates import describe
from pages import table, update_whole

from occ_jax.errors import InputError
from occ_jax.learned import FitLog

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE, FIGURES = (Path("docs/results") / name for name in ("learning.json", "learning.md", "learning"))
COMMAND = "python scripts/update_learning.py"

KEPT = ("model", "settings", "parameters", "measured", "control", "seconds_per_step", "pass_seconds", "transforms")
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "scales": ("bits",),
    "int": ("distortion",),
    "kl": ("distortion",),
    "kl-coded": ("bits", "distortion"),
}
"""What an objective moves."""

_PLACES = ("original", "start", "coded")
_DIGITS = 6


def take_over(files: Sequence[Path], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the trainings of some files.

    Raises:
        SystemExit: a file holds no learned coordinates, or those of another model.
    """
    found = dict(record)
    for file in files:
        try:
            about = describe(file)
        except InputError as error:
            raise SystemExit(str(error)) from None
        models = {about["model"], *(training["model"] for training in found.values())}
        if len(models) > 1:
            raise SystemExit(f"{file}: trained on {about['model']}, and the record is of another model")
        kept = {name: about.get(name) for name in KEPT}
        control = kept["control"] and {"measured": kept["control"]["measured"]}
        found[file.stem] = kept | {"control": control, "log": _rounded(about["log"])}
    return dict(sorted(found.items()))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [float(f"{x:.{_DIGITS}g}") for x in value]


def options(training: Mapping[str, Any]) -> str:
    """The options of `occ learn` that differ from its defaults."""
    words = []
    for field in dataclasses.fields(LearnSettings):
        value, default = training["settings"].get(field.name, field.default), field.default
        value = tuple(value) if isinstance(value, list) else value
        if value == default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    if training["transforms"]:
        words += ["--transforms", training["transforms"]]
    return " ".join(words)


def page(record: Mapping[str, Any]) -> str:
    """Every training, and a figure of each."""
    model = next(iter(record.values()))["model"]
    lines = [
        "# What was trained",
        "",
        f"Trainings of `occ learn` on `{model}`, whose files",
        "[rotation and alignment](../theory/rotation_vs_alignment.md) compares. By its own measure each began at",
        "*start* and ended at *as coded*, with its parameters rounded as files hold them: bits per weight that an",
        "entropy coder spends, or a divergence in nats (layer by layer the second-order sum over blocks, end to end",
        "that of the network on a few windows). The control is the same training on Gaussian matrices with the",
        "scales of these rows and columns. Times are those of the steps; a pass is one forward and one backward",
        "pass over the tokens of one.",
        f"Written by `{COMMAND}` from [learning.json](learning.json).",
        "",
        table(
            ("training", "measure", "original", "start", "as coded", "control, start", "control, as coded", "steps",
             "minutes", "a step in passes", "least orthogonal"),
            [cells for name, training in record.items() for cells in _cells(name, training)],
            names=2,
        ),
    ]  # fmt: skip
    for name, training in record.items():
        lines += ["", f"## {name}", "", f"`occ learn {options(training)}`", "", f"![{name}]({FIGURES.name}/{name}.svg)"]
    return "\n".join(lines) + "\n"


def _cells(name: str, training: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    log, step, single = training["log"]["learned"], training["seconds_per_step"], training["pass_seconds"]
    control = training["control"]
    for quantity in QUANTITIES[training["settings"]["objective"]]:
        yield (
            name,
            _measure(training, quantity),
            *(f"{training['measured'][place][quantity]:.4f}" for place in _PLACES),
            *("" if control is None else f"{control['measured'][place][quantity]:.4f}" for place in _PLACES[1:]),
            str(len(log["bits"])),
            "" if step is None else f"{len(log['bits']) * step / 60:.0f}",
            "" if step is None or not single else f"{step / single:.2f}",
            f"{max(log['orthogonality']):.1e}",
        )


def _measure(training: Mapping[str, Any], quantity: str) -> str:
    if quantity == "bits":
        return "bits per weight"
    settings = training["settings"]
    if settings["objective"] in ("scales", "int"):
        return "divergence, second order"
    # Before steps could have several windows, the outcome was measured on windows of the training.
    return f"divergence, {'unseen' if 'batch' in settings else 'training'} windows"


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """A figure of every training: rate, distortion and orthogonality over its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, training in record.items():
        logs = {
            series: FitLog(**{field: np.asarray(values) for field, values in log.items()})
            for series, log in training["log"].items()
        }
        learning_figure(logs, folder / f"{name}.svg", title=name)


def main(files: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), check: bool = False) -> None:
    """Take over trainings, or check the page.

    Args:
        files: transforms that `occ learn` wrote; without any the page is written again from the record.
        check: change nothing; exit code 1 if the page has drifted from the record.
    """
    renew = partial(take_over, files) if files else None
    record = update_whole(renew, page, check=check, root=ROOT, record=RECORD, page=PAGE, command=COMMAND)
    draw(record, ROOT / FIGURES)


if __name__ == "__main__":
    tyro.cli(main)
