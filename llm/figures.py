"""Figures of measured results: the finding as the title, axes with units, colours that everybody can tell apart."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from .results import Row, best_series

matplotlib.use("Agg")  # files only: no display is needed, here or on a server

import matplotlib.pyplot as plt

# Okabe & Ito, Color Universal Design, 2008; markers repeat what the colours say.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def rate_distortion_figure(rows: Sequence[Row], path: Path, *, model: str) -> None:
    """KL divergence against file size, one line per series of ``rows``; SVG or PNG by the name's suffix.

    Args:
        rows: measured points; those of one :attr:`Row.series` are joined.
        path: file to write.
        model: name for the title.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for index, series in enumerate(dict.fromkeys(row.series for row in rows)):
        points = sorted((row for row in rows if row.series == series), key=lambda row: row.file_bytes)
        axes.errorbar(
            [row.file_bytes / 1e6 for row in points],
            [row.kl_mean for row in points],
            yerr=[2 * row.kl_se for row in points],
            label=series,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            capsize=3,
        )
    axes.set_yscale("log")
    axes.set_xlabel("file size (MB, everything included)")
    axes.set_ylabel("KL divergence from the original (nats per token)")
    axes.set_title(f"{model}: {best_series(rows)}", loc="left")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, title="bars: two standard errors")
    with plt.rc_context({"svg.hashsalt": "occ", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)
    plt.close(figure)
