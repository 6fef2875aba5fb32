"""Results as JSON and as a page to read."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .experiment import LEVELS, Cell, Results
from .figures import featured_cell, save_figure, source_figure, summary_figure
from .predictions import Outcome, outcomes
from .sources import SOURCES

RESULTS, REPORT = "results.json", "report.md"


def write_results(results: Results, out: Path, *, command: str, png: bool = True) -> list[Outcome]:
    """Write JSON, figures (SVG and, for slides, PNG) and the report into a directory.

    Returns:
        The predictions with their outcomes.
    """
    out.mkdir(parents=True, exist_ok=True)
    decided = outcomes(results)
    suffixes = (".svg", ".png") if png else (".svg",)
    for name in results.protocol.sources:
        save_figure(source_figure(results, name), [out / f"{name}{suffix}" for suffix in suffixes])
    save_figure(summary_figure(results), [out / f"summary{suffix}" for suffix in suffixes])
    (out / REPORT).write_text(report(results, decided, command=command), encoding="utf-8")
    (out / RESULTS).write_text(as_json(results, decided, command=command), encoding="utf-8")  # last: marks a whole run
    return decided


def as_json(results: Results, decided: Sequence[Outcome], *, command: str) -> str:
    """All numbers, to five digits."""
    fields = {"command": command, **dataclasses.asdict(results)}
    for cell, made in zip(fields["cells"], results.cells):
        for name, regime in cell["regimes"].items():
            del regime["energies"]
            regime["points"] = [[point["bytes_per_function"], point["error"]] for point in regime["points"]]
            regime["bytes_at"] = {f"{level:g}": made.bytes_at(name, level) for level in LEVELS}
    fields["predictions"] = [dataclasses.asdict(outcome) for outcome in decided]
    return json.dumps(_rounded(fields), separators=(",", ":")).replace('{"source"', '\n{"source"') + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def report(results: Results, decided: Sequence[Outcome], *, command: str) -> str:
    """The page: predictions, tables, figures."""
    p = results.protocol
    lines = [
        "# One function, many bases: results",
        "",
        f"Made by `{command}`: {p.draws} draws of each source, {p.seeds} seeds and {p.steps} steps for networks. Bytes",
        f"are coded bytes per function at a relative squared error of {LEVELS[0]:g} (with *: {LEVELS[1]:g}, as no file",
        "came closer); networks show the median of their seeds.",
        "",
        "## Predictions",
        "",
        *_table(("", "prediction", "outcome", "evidence"), map(_outcome_row, decided)),
        "",
        "## Representations",
        "",
    ]
    for name in p.sources:
        lines += [f"### {SOURCES[name].title}", "", *_source_table(results, name), "", f"![{name}]({name}.svg)", ""]
    lines += [
        "## Reparameterisations",
        "",
        *_invariance_table(results),
        "",
        "## Summary",
        "",
        *_table(
            ("function", "cheapest basis", "rotated", "aligned", "learned", "dearest basis", "cheapest network"),
            (_summary_row(results, name) for name in p.sources),
        ),
        "",
        "![summary](summary.svg)",
    ]
    return "\n".join(lines) + "\n"


def _outcome_row(outcome: Outcome) -> tuple[str, ...]:
    word = {True: "holds", False: "**refuted**", None: "open"}[outcome.holds]
    return outcome.name, outcome.prediction, word, outcome.evidence


def _source_table(results: Results, name: str) -> list[str]:
    cells = [cell for cell in results.cells if cell.source == name]
    groups = [[c for c in cells if c.representation == r] for r in dict.fromkeys(c.representation for c in cells)]
    columns = (
        "representation", "numbers", "fit error", "kurtosis", "L∞/RMS", "eff. dim.", "eff. dim. of H",
        "alignment of axes",
        "original", "rotated", "Hessian", "KLT", "learned", "INT4 error", "INT4 rotated",
    )  # fmt: skip
    return _table(columns, map(_cell_row, groups))


def _cell_row(group: Sequence[Cell]) -> tuple[str, ...]:
    def median(value: Callable[[Cell], float]) -> float:
        return statistics.median(value(cell) for cell in group)

    first = group[0]
    mark = "" if first.is_accurate else " (not reached)"
    return (
        first.representation,
        str(first.size),
        f"{median(lambda c: c.fit_error):.1e}{mark}",
        f"{median(lambda c: c.regimes['original'].distribution.kurtosis):.1f}",
        f"{median(lambda c: c.regimes['original'].distribution.linf_rms):.1f}",
        f"{median(lambda c: c.regimes['original'].distribution.effective_dimension):.0%}",
        f"{median(lambda c: c.sensitivity.effective_dimension):.1%}",
        f"{median(lambda c: c.sensitivity.axis_alignment):.2f}",
        *(_bytes_text(group, regime) for regime in ("original", "rotated", "hessian", "klt", "learned")),
        *(f"{median(lambda c, r=r: c.regimes[r].integer_error or 0.0):.1e}" for r in ("original", "rotated")),
    )


def _bytes_text(group: Sequence[Cell], regime: str) -> str:
    if regime not in group[0].regimes:
        return "as original" if regime == "hessian" else "-"
    for level, mark in zip(LEVELS, ("", "*")):
        sizes = [b for cell in group if (b := cell.bytes_at(regime, level)) is not None]
        if 2 * len(sizes) > len(group):
            return f"{statistics.median(sizes):.0f}{mark}"
    return "not reached"


def _summary_row(results: Results, name: str) -> tuple[str, ...]:
    cells = [cell for cell in results.cells if cell.source == name]
    linear, networks = ([cell for cell in cells if cell.is_network is wanted] for wanted in (False, True))
    featured = featured_cell(cells)
    return (
        SOURCES[name].title,
        _extreme(linear, min),
        _bytes_text([featured], "rotated"),
        _bytes_text([featured], featured.aligned),
        _bytes_text([featured], "learned"),
        _extreme(linear, max),
        _extreme(networks, min),
    )


def _extreme(cells: Sequence[Cell], choose: Callable[[Iterable], Any]) -> str:
    """The representation with the fewest or most bytes in its original coordinates."""
    for level, mark in zip(LEVELS, ("", "*")):
        sizes = [(b, cell.representation) for cell in cells if (b := cell.bytes_at("original", level)) is not None]
        if sizes:
            size, name = choose(sizes)
            return f"{name} {size:.0f}{mark}"
    return "not reached"


def _invariance_table(results: Results) -> list[str]:
    rows = [
        (
            i.name,
            "the same for all" if i.is_shared else "each its own",
            f"{i.function_change:.1e}",
            _before_and_after(i.uniform_bytes),
            _before_and_after(i.sensitive_bytes),
        )
        for i in results.invariances
    ]
    return _table(("change", "networks", "function moves (of its RMS)", "bytes, one step", "bytes, steps from H"), rows)


def _before_and_after(pair: tuple[float | None, float | None]) -> str:
    return " → ".join("-" if size is None else f"{size:.0f}" for size in pair)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
