"""Figures of measured results: the finding as the title, axes with units, colours that everybody can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from occ_jax.learned import FitLog

from .results import Row, at_equal_bytes, best_series

# Okabe & Ito, Color Universal Design, 2008; markers repeat what the colours say.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

STYLE: Mapping[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
"""Settings of matplotlib for figures of one's own: ``matplotlib.pyplot.rcParams.update(STYLE)``."""


def rate_distortion_figure(rows: Sequence[Row], path: Path, *, model: str) -> None:
    """KL divergence against file size, one line per series of ``rows``; SVG or PNG by the name's suffix.

    Args:
        rows: measured points; those of one :attr:`Row.series` are joined.
        path: file to write.
        model: name for the title.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, series in enumerate(dict.fromkeys(row.series for row in rows)):
        points = sorted((row for row in rows if row.series == series), key=lambda row: row.file_bytes)
        axes.errorbar(
            [row.file_bytes / 1e6 for row in points],
            [row.kl_mean for row in points],
            yerr=[2 * row.kl_se for row in points],
            label=series,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            capsize=3,
        )
    axes.set_yscale("log")
    axes.set_xlabel("file size (MB, everything included)")
    axes.set_ylabel("KL divergence from the original (nats per token)")
    axes.set_title(f"{model}: {best_series(rows)}", loc="left")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, title="bars: two standard errors")
    _save(figure, path)


def bench_figure(rows: Sequence[Row], path: Path, *, model: str) -> None:
    """KL divergence against file size: a panel for each basis, in each a line for every quantizer; SVG or PNG.

    Args:
        rows: measured points of a bench.
        path: file to write.
        model: name for the title.
    """
    places = list(dict.fromkeys(row.coordinates for row in rows))
    kinds = list(dict.fromkeys((row.quantizer, row.feedback) for row in rows))
    figure = Figure(figsize=(2 + 3.6 * len(places), 5), layout="constrained")
    panels = figure.subplots(1, len(places), sharey=True, squeeze=False)
    for axes, place in zip(panels[0], places, strict=True):
        for index, (quantizer, feedback) in enumerate(kinds):
            kind = [r for r in rows if (r.coordinates, r.quantizer, r.feedback) == (place, quantizer, feedback)]
            points = sorted(kind, key=lambda row: row.file_bytes)
            axes.errorbar(
                [row.file_bytes / 1e6 for row in points],
                [row.kl_mean for row in points],
                yerr=[2 * row.kl_se for row in points],
                label=f"{quantizer}{', feedback' if feedback else ''}",
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle="-" if feedback else ":",
                capsize=3,
            )
        axes.set_yscale("log")
        axes.set_title(place)
        axes.set_xlabel("file size (MB, everything included)")
        axes.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("KL divergence from the original (nats per token)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, title="bars: two standard errors"
    )
    figure.suptitle(f"{model}: lowest divergence at equal bytes with {at_equal_bytes(rows).anchor}", x=0.02, ha="left")
    _save(figure, path)


def learning_figure(logs: Mapping[str, FitLog], path: Path, *, title: str) -> None:
    """Rate, distortion and departure from orthogonality over the steps of trainings; SVG or PNG.

    Args:
        logs: by name; the first is drawn in full, others dashed.
        path: file to write.
        title: the finding.
    """
    quantities = {
        "bits": "rate (bits per weight)",
        "distortion": "distortion",
        "orthogonality": "departure from orthogonality",
    }
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(quantities))
    for axes, (name, label) in zip(panels, quantities.items(), strict=True):
        for index, (series, log) in enumerate(logs.items()):
            values = getattr(log, name)
            axes.plot(range(len(values)), values, color=COLOURS[index], linestyle="--" if index else "-", label=series)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    if len(logs) > 1:
        panels[0].legend(frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "occ", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)
