"""Drawings that live inside a page: SVG whose colours follow the page's light or dark theme, and data to download."""

import base64
import contextlib
import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatter, MaxNLocator

from ..figures import COLOURS, MARKERS, STYLE

WIDTH, HEIGHT = 4.3, 3.4
"""Size of a panel in inches: so small that its letters can be read where it fills a phone."""

_STYLE: dict[Any, Any] = {
    **STYLE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.fontsize": 8,
    "font.size": 9,
    "axes.titlesize": 10,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "occ",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: for its anchor and its file of data.
        title: the finding.
        caption: how to read it.
        panels: SVG elements.
        rows: the data, one mapping for each row of the file.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    @property
    def data_uri(self) -> str:
        """The data as a CSV file inside a link."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return "data:text/csv;base64," + base64.b64encode(text.getvalue().encode()).decode()


class Sheet:
    """Draws panels one after the other, each an SVG of its own, so that a page can put them where there is room."""

    def __init__(self, prefix: str):
        self._prefix = prefix
        self.panels: list[str] = []

    @contextlib.contextmanager
    def panel(self, title: str, x: str, y: str, *, height: float = HEIGHT) -> Iterator[Axes]:
        """Axes to draw in; the panel is finished when the block ends.

        Args:
            title: what this panel shows.
            x, y: labels of the axes, with units.
            height: in inches.
        """
        with matplotlib.rc_context(_STYLE):
            canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
            axes = canvas.add_subplot()
            axes.set_title(title)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            yield axes
            if axes.get_xlabel() == "layer" and axes.get_xscale() == "linear" and not axes.collections:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            handles, labels = axes.get_legend_handles_labels()
            if labels:
                canvas.legend(handles, labels, loc="outside lower center", ncols=3, columnspacing=1.2)
            text = io.StringIO()
            canvas.savefig(text, format="svg", metadata={"Date": None})
        label = f"{title}: {y} against {x}" if x and y else title
        self.panels.append(themed(text.getvalue(), f"{self._prefix}-{len(self.panels)}", label))


def plain_log_scale(axis: Axis) -> None:
    """A logarithmic scale for numbers above one, with numbers written out."""
    axes = axis.axes
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the series with this number; markers repeat what the colours say."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def heat_map(axes: Axes, kinds: Sequence[str], layers: Sequence[int], values: Mapping[tuple[str, int], float]) -> None:
    """A cell for every kind and layer, with a scale of colours that everybody can tell apart."""
    table = np.array([[values[kind, layer] for layer in layers] for kind in kinds])
    mesh = axes.pcolormesh(table, cmap="cividis", edgecolors="face", linewidth=0.2)
    axes.figure.colorbar(mesh, ax=axes)
    axes.grid(visible=False)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
    step = max(1, len(layers) // 8)
    axes.set_xticks(np.arange(len(layers))[::step] + 0.5, [str(layer) for layer in layers[::step]])
    axes.invert_yaxis()


def themed(svg: str, prefix: str, label: str) -> str:
    """An SVG file as an element of a page: no fixed size, own ids, fonts and colours of the page.

    Args:
        svg: what matplotlib wrote.
        prefix: keeps its ids apart from those of other drawings.
        label: what a screen reader says.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, head
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    for index, colour in enumerate(COLOURS):
        theme = "currentColor" if colour == "#000000" else f"var(--c{index})"
        body = re.sub(re.escape(colour), theme, body, flags=re.IGNORECASE)
    return f'<svg {box[0]} role="img" aria-label="{_escaped(label)}">{body}'


def _escaped(text: str) -> str:
    for letter, code in (("&", "&amp;"), ("<", "&lt;"), ('"', "&quot;")):
        text = text.replace(letter, code)
    return text
