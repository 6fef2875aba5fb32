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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatter, LogFormatterSciNotation, MaxNLocator

from ..figures import COLOURS, MARKERS, STYLE

WIDTH, HEIGHT = 4.3, 3.4
"""Size of a panel in inches: so small that its letters can be read where it fills a phone."""

_STYLE: dict[Any, Any] = {
    **STYLE,
    "figure.constrained_layout.use": False,
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
            canvas = Canvas(figsize=(WIDTH, height))
            axes = canvas.add_subplot()
            axes.set_title(title)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            yield axes
            if axes.get_xlabel() == "layer" and axes.get_xscale() == "linear" and not axes.collections:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for axis in (axes.xaxis, axes.yaxis):
                if isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
                    axis.set_major_formatter(PowersOfTen())
                    axis.set_minor_formatter(PowersOfTen(labelOnlyBase=False))
            _lay_out(canvas, axes)
            text = io.StringIO()
            FigureCanvasSVG(canvas).print_svg(text, metadata={"Date": None})
        label = f"{title}: {y} against {x}" if x and y else title
        self.panels.append(themed(text.getvalue(), f"{self._prefix}-{len(self.panels)}", label))


class PowersOfTen(LogFormatterSciNotation):
    """Labels of a logarithmic axis as text with raised digits, which no parser of formulas has to read.

    Example:
        >>> formatter = PowersOfTen()
        >>> formatter.create_dummy_axis()
        >>> formatter(1e-3), formatter(1.0)
        ('10⁻³', '10⁰')
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a place on the axis; empty where there is none."""
        power = re.fullmatch(r"\$\\mathdefault\{(.*?)(?:\\times)?10\^\{(.*)\}\}\$", label := super().__call__(x, pos))
        if power is None:
            return label
        factor, exponent = power.groups()
        return (f"{factor}×" if factor else "") + "10" + exponent.translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _lay_out(canvas: Canvas, axes: Axes) -> None:
    """Make room for labels and a legend, in one pass and with the renderer that measures letters fastest."""
    renderer = FigureCanvasAgg(canvas).get_renderer()
    canvas.tight_layout(pad=0.5)
    handles, labels = axes.get_legend_handles_labels()
    for columns in (3, 2, 1) if labels else ():
        legend = canvas.legend(handles, labels, loc="lower center", ncols=columns, columnspacing=1.2)
        box = legend.get_window_extent(renderer)
        if box.width <= canvas.bbox.width or columns == 1:
            canvas.subplots_adjust(bottom=canvas.subplotpars.bottom + box.y1 / canvas.bbox.height)
            return
        legend.remove()


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
