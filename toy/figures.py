"""One figure per source, and one that compares all: findings as titles, colours that everybody can tell apart."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .bases import BASES
from .experiment import LEVELS, Cell, Results
from .networks import ACTIVATIONS
from .sources import SOURCES, Source, grid

# Okabe & Ito, Color Universal Design, 2008; markers repeat what the colours say.
_STYLES = {
    "original": ("#0072B2", "o"),
    "rotated": ("#D55E00", "s"),
    "aligned": ("#009E73", "D"),
    "learned": ("#CC79A7", "v"),
}
_TITLES = {name: item.title for name, item in (*BASES.items(), *ACTIVATIONS.items())}


def source_figure(results: Results, name: str) -> Figure:
    """A source in the three regimes: what it looks like, its coefficients, its curves, its bytes in every basis."""
    cells = [cell for cell in results.cells if cell.source == name]
    featured = featured_cell(cells)
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{SOURCES[name].title}: {source_finding(cells)}", x=0.01, ha="left", fontsize=13)
    _show_draws(axes[0, 0], SOURCES[name])
    _show_energies(axes[0, 1], featured)
    _show_curves(axes[1, 0], featured, results.ar1_bound_bytes if name == "ar1" else None)
    _show_bytes(axes[1, 1], cells)
    return figure


def summary_figure(results: Results) -> Figure:
    """Bytes after rotation and after alignment over bytes in the original coordinates, for every cell."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    names = list(results.protocol.sources)
    medians = {}
    for regime, shift in (("rotated", 0.15), ("aligned", -0.15)):
        colour, marker = _STYLES[regime]
        found = [
            (names.index(cell.source), ratio, cell.is_network)
            for cell in results.cells
            if (ratio := _ratio(cell, regime)) is not None
        ]
        for is_network, face in ((False, colour), (True, "none")):
            points = [(ratio, place) for place, ratio, network in found if network == is_network]
            label = f"{regime}, {'network' if is_network else 'linear basis'}"
            x, y = [p[0] for p in points], [p[1] + shift for p in points]
            axes.scatter(x, y, marker=marker, edgecolors=colour, facecolors=face, s=36, label=label)
        medians[regime] = statistics.median(ratio for _, ratio, _ in found) if found else float("nan")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), [SOURCES[name].title for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("bytes over bytes in the original coordinates, at equal error (bases not counted)")
    title = "Rotation multiplies the bytes by {rotated:.2f}, alignment by {aligned:.2f} (medians)".format(**medians)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def featured_cell(cells: Sequence[Cell]) -> Cell:
    """The linear basis that is cheapest in its original coordinates."""
    linear = [cell for cell in cells if not cell.is_network]
    return min(linear, key=lambda cell: cell.bytes_at("original") or float("inf"))


def source_finding(cells: Sequence[Cell]) -> str:
    """What the figure of a source shows, in one line."""
    featured = featured_cell(cells)
    old, rotated, aligned = (featured.bytes_at(r) for r in ("original", "rotated", featured.aligned))
    text = f"cheapest in {_TITLES[featured.representation]}"
    if old is None or rotated is None or aligned is None:
        return text
    return f"{text} ({old:.0f} bytes); rotated {rotated:.0f}, aligned {aligned:.0f}"


def _ratio(cell: Cell, regime: str) -> float | None:
    for level in LEVELS:
        old, new = cell.bytes_at("original", level), cell.bytes_at(_regime(cell, regime), level)
        if old is not None and new is not None:
            return new / old
    return None


def _regime(cell: Cell, kind: str) -> str:
    return cell.aligned if kind == "aligned" else kind


def _show_draws(axes: Any, source: Source) -> None:
    draws = source.draw(2, stream=0)
    axes.set_title("two draws" if source.num_axes == 1 else "one draw", loc="left", fontsize=10)
    if source.num_axes == 1:
        for row, colour in zip(draws, ("#000000", "#56B4E9")):
            axes.plot(grid(source.side), row, color=colour, linewidth=1.5)
        axes.set_xlabel("x")
        axes.set_ylabel("f(x)")
        return
    reach = float(np.abs(draws[0]).max())
    image = draws[0].reshape(source.side, source.side)
    shown = axes.imshow(image, cmap="cividis", vmin=-reach, vmax=reach, extent=(0, 1, 1, 0))
    axes.set_xlabel("second variable")
    axes.set_ylabel("first variable")
    axes.figure.colorbar(shown, ax=axes, label="value")


def _kinds(cell: Cell) -> list[str]:
    """Coordinates that a cell has; networks have no learned ones."""
    return [kind for kind in _STYLES if _regime(cell, kind) in cell.regimes]


def _show_energies(axes: Any, cell: Cell) -> None:
    for kind in _kinds(cell):
        colour, _ = _STYLES[kind]
        energies = cell.regimes[_regime(cell, kind)].energies
        share = np.cumsum(energies) / np.sum(energies)
        axes.plot(np.arange(1, share.size + 1), 1 - share, color=colour, label=kind, linewidth=2)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1)
    axes.set_xlim(0, cell.size)
    axes.set_xlabel("coordinates kept, largest first")
    axes.set_ylabel("energy not yet captured (share)")
    axes.set_title(f"{_TITLES[cell.representation]}: where the energy is", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _show_curves(axes: Any, cell: Cell, bound: float | None) -> None:
    for kind in _kinds(cell):
        colour, marker = _STYLES[kind]
        points = cell.regimes[_regime(cell, kind)].points
        x, y = [p.bytes_per_function for p in points], [p.error for p in points]
        axes.plot(x, y, color=colour, marker=marker, label=kind)
    axes.axhline(LEVELS[0], color="#999999", linewidth=1, linestyle="--")
    if bound is not None:
        axes.plot([bound], [LEVELS[0]], marker="*", color="black", markersize=12, linestyle="", label="R(D)")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("coded bytes per function")
    axes.set_ylabel("relative squared error of the function")
    axes.set_title(f"{_TITLES[cell.representation]}: through the codec", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _show_bytes(axes: Any, cells: Sequence[Cell]) -> None:
    names = list(dict.fromkeys(cell.representation for cell in cells))
    for kind, (colour, marker) in _STYLES.items():
        for level, face in zip(LEVELS, (colour, "none")):
            points = []
            for place, name in enumerate(names):
                group = [cell for cell in cells if cell.representation == name]
                is_first = any(cell.bytes_at("original") is not None for cell in group)
                if is_first == (level == LEVELS[0]):
                    sizes = [b for cell in group if (b := cell.bytes_at(_regime(cell, kind), level)) is not None]
                    points += [(statistics.median(sizes), place)] if sizes else []
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.scatter(x, y, marker=marker, edgecolors=colour, facecolors=face, s=44, zorder=3)
    reached = {
        cell.representation for cell in cells for level in LEVELS if cell.bytes_at("original", level) is not None
    }
    for place in (place for place, name in enumerate(names) if name not in reached):
        axes.text(0.02, place, "not reached", transform=axes.get_yaxis_transform(), va="center", color="#777777")
    axes.set_yticks(range(len(names)), [_TITLES[name] for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [size for size in (5, 10, 20, 50, 100, 200, 500, 1000) if low <= size <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("coded bytes per function")
    title = f"all representations at {LEVELS[0]:.0%} error (hollow: at {LEVELS[1]:.0%})"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a figure to files, SVG or PNG by their suffix, the same in every run."""
    for path in paths:
        with matplotlib.rc_context({"svg.hashsalt": "occ", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)
