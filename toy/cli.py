"""``occ toy``: the experiment from one command."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from occ_jax.errors import InputError

QUICK: Mapping[str, Any] = {
    "sources": ("sawtooth",),
    "representations": ("fourier", "haar", "tanh"),
    "reparameterise": False,
    "draws": 4,
    "others": 512,
    "seeds": 1,
    "steps": 300,
    "widths": (8,),
}
"""What is different with ``--quick``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """Write known functions down in many bases, and compare what each costs in the real codec."""

    out: Path = Path("toy-results")
    """Directory for the results, the figures and the report."""
    quick: bool = False
    """One function, three representations, few draws and short training, for a look in a minute."""
    functions: tuple[str, ...] = ()
    """Functions: bandlimited, sawtooth, chirp, piecewise, ar1, patch, convolution, integral; all when left out."""
    force: bool = False
    """Replace the files of an earlier run."""
    png: bool = True
    """Write every figure as PNG, too."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Run the experiment and write ``results.json``, ``report.md`` and the figures."""
        # Here, so that other commands do not wait for what only this one needs.
        from .experiment import Protocol, num_parts, run_experiment
        from .report import RESULTS, write_results

        size = dict(QUICK) if self.quick else {}
        size |= {"sources": tuple(dict.fromkeys(self.functions))} if self.functions else {}
        protocol = Protocol(**size)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; choose a directory as --out")
        if (self.out / RESULTS).exists() and not self.force:
            raise InputError(f"{self.out}: holds results already; choose another --out or pass --force")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("first function", total=num_parts(protocol))
            results = run_experiment(protocol, advance=lambda done: bar.update(task, advance=1, description=done))
        decided = write_results(results, self.out, command=self._command(), png=self.png)
        table = Table(title="predictions", title_justify="left", title_style="bold")
        for column in ("", "prediction", "outcome", "evidence"):
            table.add_column(column)
        for outcome in decided:
            word = {True: "holds", False: "refuted", None: "open"}[outcome.holds]
            table.add_row(outcome.name, outcome.prediction, word, outcome.evidence)
        Console(stderr=self.json, highlight=False).print(table)
        Console(stderr=True, highlight=False).print(f"{self.out}: results, figures and report", markup=False)
        if self.json:
            sys.stdout.write(json.dumps({"predictions": [dataclasses.asdict(o) for o in decided]}) + "\n")

    def _command(self) -> str:
        """The command line that gives the same results."""
        words = ["occ toy", *(["--quick"] if self.quick else [])]
        return " ".join([*words, *(["--functions", *self.functions] if self.functions else [])])
