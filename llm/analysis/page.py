"""The page: one HTML file that holds its drawings and their data, and needs no network."""

import dataclasses
import datetime
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from . import operator_figures as operator
from . import weight_figures as weights
from .drawing import Figure
from .findings import Finding, decide
from .means import weighted
from .run import Analysis

SECTIONS = {
    "regimes": "Weights in several coordinates",
    "outliers": "Outliers",
    "sensitivity": "Sensitivity",
    "structure": "Low-dimensional structure",
    "frequency": "Rotation versus frequency",
}
"""Anchor -> title, in the order of the page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers by kind of layer and coordinates.

    Attributes:
        columns: titles.
        rows: cells, as they are shown.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_page(analysis: Analysis) -> str:
    """The whole page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("occ_llm.analysis").joinpath("page.html").read_text(encoding="utf-8"))
    decided = decide(analysis)
    return template.render(
        facts=analysis.facts,
        analysis=analysis,
        day=datetime.date.today().isoformat(),
        sections=SECTIONS,
        findings=decided,
        by_section={key: [f for f in decided if f.section == key] for key in SECTIONS},
        figures=draw_all(analysis),
        regimes=regime_table(analysis),
        word=verdict,
        svg=Markup,
    )


def draw_all(analysis: Analysis) -> dict[str, list[Figure]]:
    """Figures by section of the page."""
    draw: dict[str, tuple] = {
        "regimes": (weights.histograms_figure, weights.regimes_figure),
        "outliers": (weights.where_figure, weights.survivors_figure, weights.prices_figure),
        "sensitivity": (operator.spectra_figure, operator.injections_figure),
        "structure": (operator.ranks_figure, operator.neighbours_figure, operator.depths_figure),
        "frequency": (operator.orders_figure,),
    }
    return {section: [figure(analysis) for figure in figures] for section, figures in draw.items()}


def verdict(finding: Finding) -> str:
    """What became of a claim, in one word."""
    return {True: "holds", False: "refuted", None: "open"}[finding.holds]


def regime_table(analysis: Analysis) -> Table:
    """Means over the layers of each kind, every weight counted once."""
    fields = list(weights.MEASURES)
    rows = []
    for kind in weights.kinds_of(analysis):
        members = [r for r in analysis.regimes if r.kind == kind]
        for coordinates in analysis.systems:
            if not any(r.coordinates == coordinates for r in members):
                continue
            rows.append([kind, coordinates, *(_short(weighted(members, coordinates, field)) for field in fields)])
    return Table(columns=["kind", "coordinates", *(weights.MEASURES[f][0] for f in fields)], rows=rows)


def _short(value: Any) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
