"""What a command says: results on standard output, everything else on standard error."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_T = TypeVar("_T")

_FOLDED = 20
"""Characters of a word that are kept together, however narrow the terminal."""

_PADDED = 3
"""Characters around a cell: two of padding and one of its frame."""


class Terminal:
    """Progress bars and tables for a person; with ``json_only``, one JSON object on standard output instead."""

    def __init__(self, *, json_only: bool = False):
        self.json_only = json_only
        self.notes = Console(stderr=True, highlight=False)
        self._results = Console(highlight=False)

    def note(self, message: str) -> None:
        """Say something that is not the result."""
        self.notes.print(message, markup=False)

    def track(self, rows: Iterable[_T], label: str) -> Iterator[_T]:
        """Iterate with a progress bar."""
        rows = list(rows) if not isinstance(rows, Sequence) and not hasattr(rows, "__len__") else rows
        with self.progress(label, total=len(rows)) as advance:  # pyright: ignore[reportArgumentType]
            for row in rows:
                yield row
                advance(1)

    @contextmanager
    def progress(self, label: str, *, total: int) -> Iterator[Any]:
        """A progress bar; calls of the yielded function move it on."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.notes, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda amount=1: bar.advance(task, amount)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table; columns of numbers are lined up at the right, long texts wrap, and no cell is cut short.

        Where that takes more than the width of the terminal, the table is wider.
        """
        rows = [tuple(row) for row in rows]
        cells = [[_cell(value) for value in row] for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            wordy = index > 0 and any(isinstance(row[index], str) for row in rows)
            texts = [column, *(row[index] for row in cells)]
            pieces = [word[:_FOLDED] for text in texts for word in text.split()] if wordy else texts
            justify, least = "left" if index == 0 or wordy else "right", max(map(cell_len, pieces))
            table.add_column(column, justify=justify, no_wrap=not wordy, min_width=least, overflow="fold")
        for row in cells:
            table.add_row(*row)
        console = self.notes if self.json_only else self._results
        needed = sum((column.min_width or 0) + _PADDED for column in table.columns) + 1
        table.width = needed if needed > console.width else None
        console.print(table, crop=False)

    def result(self, fields: Any) -> None:
        """Put the result on standard output as one JSON object, if that is what was asked for."""
        if self.json_only:
            fields = dataclasses.asdict(fields) if dataclasses.is_dataclass(fields) else dict(fields)  # pyright: ignore
            sys.stdout.write(json.dumps(fields) + "\n")

    def text(self, text: str) -> None:
        """Write plain text as it is to standard output (to standard error if that is kept for JSON)."""
        stream = sys.stderr if self.json_only else sys.stdout
        stream.write(text)
        stream.flush()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
