"""Figures of weights in several coordinates, and of their outliers: the finding is the title, the rows are the data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..roles import LINEAR_KINDS
from . import findings as found
from .drawing import Figure, Sheet, heat_map, plain_log_scale, style
from .means import alike, weighted
from .outliers import SCATTERED
from .regimes import HISTOGRAM_WIDTH
from .run import Analysis

MEASURES: Mapping[str, tuple[str, str]] = {
    "kurtosis": ("kurtosis", "kurtosis (3: Gaussian)"),
    "linf_rms": ("largest weight", "largest magnitude (RMS)"),
    "effective_dimension": ("effective dimension", "share of the columns"),
    "top_energy": ("energy of the largest 1 %", "share of the energy"),
    "entropy_bits": ("entropy, one table", "bits per weight"),
    "rate_bits": ("coded bytes, equal distortion", "bits per weight"),
    "coding_gain_bits": ("coding gain of the columns", "bits per weight"),
    "input_gain_bits": ("coding gain of the inputs", "bits per component"),
}
"""Field of a regime -> title of its panel and label of its axis."""

LOGARITHMIC = frozenset({"kurtosis", "linf_rms"})


def histograms_figure(a: Analysis) -> Figure:
    """Densities of the magnitudes, one panel for each kind of layer."""
    sheet = Sheet("histogram")
    centres = (np.arange(len(a.histograms[0].counts) - 1) + 0.5) * HISTOGRAM_WIDTH
    for kind in kinds_of(a):
        members = [h for h in a.histograms if h.kind == kind]
        with sheet.panel(kind, "magnitude (RMS of its matrix)", "density (per RMS)") as axes:
            for h in members:
                index = a.systems.index(h.coordinates)
                seen = h.density > 0
                axes.plot(centres[seen], h.density[seen], label=h.coordinates, markevery=6, **style(index))
            gaussian = np.sqrt(2 / np.pi) * np.exp(-(centres**2) / 2)
            lowest = min(float(h.density[h.density > 0].min()) for h in members)
            shown = gaussian > lowest / 2
            axes.plot(centres[shown], gaussian[shown], color="#000000", linestyle=":", label="Gaussian")
            axes.set_yscale("log")
    rows = [
        {"kind": h.kind, "coordinates": h.coordinates, "from_rms": i * HISTOGRAM_WIDTH, "count": n}
        for h in a.histograms
        for i, n in enumerate(h.counts)
    ]
    caption = (
        "All layers of one kind together, every weight counted, each matrix in units of its root mean square (RMS). "
        "What lies beyond the axis is counted in the last row of the data."
    )
    return Figure(
        name="histograms",
        title=found.rotation_flattens(a).evidence,
        caption=caption,
        panels=sheet.panels,
        rows=rows,
    )


def regimes_figure(a: Analysis) -> Figure:
    """Every measure of the regimes against the depth."""
    sheet = Sheet("regime")
    for field, (title, unit) in MEASURES.items():
        with sheet.panel(title, "layer", unit) as axes:
            for index, coordinates in enumerate(a.systems):
                layers, values = by_layer(alike(a.regimes, coordinates), field)
                axes.plot(layers, values, label=coordinates, **style(index))
            if field in LOGARITHMIC:
                plain_log_scale(axes.yaxis)
    caption = (
        "Mean over the matrices of a layer, every weight counted once. One step for each matrix, half of its RMS. "
        "Where curves lie on each other, coordinates do not matter."
    )
    rows = [dataclasses.asdict(r) for r in a.regimes]
    title = found.rotation_costs_bits(a).evidence
    return Figure(name="regimes", title=title, caption=caption, panels=sheet.panels, rows=rows)


def where_figure(a: Analysis) -> Figure:
    """Where the outliers of the original coordinates sit."""
    sheet = Sheet("where")
    original = [o for o in a.outliers if o.coordinates == "identity"]
    panels: Sequence[tuple[str, str, Callable[[Any], float]]] = (
        ("threshold of the largest 0.1 % (RMS)", "threshold", lambda o: o.threshold_rms),
        ("share of them in 1 % of the rows (%)", "rows", lambda o: 100 * o.in_crowded_rows),
        ("share of them in 1 % of the columns (%)", "columns", lambda o: 100 * o.in_crowded_columns),
    )
    for title, _, value in panels:
        with sheet.panel(title, "layer", "") as axes:
            heat_map(axes, kinds_of(a), a.facts.layers, {(o.kind, o.layer): value(o) for o in original})
    largest = max(original, key=lambda o: o.threshold_rms)
    rows = float(np.mean([o.in_crowded_rows for o in original]))
    columns = float(np.mean([o.in_crowded_columns for o in original]))
    return Figure(
        name="where",
        title=f"1 % of the rows hold {rows:.0%} of the outliers, 1 % of the columns {columns:.0%}; "
        f"the heaviest tail is {largest.kind} of layer {largest.layer}",
        caption="Original coordinates. The threshold is 3.29 RMS for a Gaussian; scattered at random, the fullest 1 % "
        "of many rows would hold a little more than 1 % of the outliers.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(o) for o in a.outliers],
    )


def survivors_figure(a: Analysis) -> Figure:
    """What is left of the outliers in other coordinates."""
    sheet = Sheet("survivors")
    fields = (
        ("survivors", "above the original threshold"),
        ("expected_survivors", "expected of Gaussian rows"),
        ("energy_kept", "energy of the original outliers at the new ones"),
    )
    with sheet.panel("left of the largest 0.1 %", "coordinates", "share (%)") as axes:
        for index, (field, label) in enumerate(fields):
            values = [100 * weighted(a.outliers, c, field) for c in a.systems]
            axes.bar(
                np.arange(len(a.systems)) + 0.27 * (index - 1), values, 0.25, label=label, color=style(index)["color"]
            )
        axes.set_xticks(range(len(a.systems)), a.systems, rotation=25)
    with sheet.panel("energy in the largest 0.1 %", "layer", "share of the energy (%)") as axes:
        for index, coordinates in enumerate(a.systems):
            layers, values = by_layer(alike(a.outliers, coordinates), "energy_share")
            axes.plot(layers, 100 * np.asarray(values), label=coordinates, **style(index))
    rows = [{"coordinates": c} | {f: weighted(a.outliers, c, f) for f, _ in fields} for c in a.systems]
    return Figure(
        name="survivors",
        title=found.outliers_vanish(a).evidence,
        caption="Means over all matrices, every weight counted once; the second bar follows from the energies of the "
        "rows, which no change of the columns' coordinates touches.",
        panels=sheet.panels,
        rows=rows,
    )


def prices_figure(a: Analysis) -> Figure:
    """What the outliers of each coordinate system are worth."""
    sheet = Sheet("prices")
    names = [p.coordinates for p in a.prices]
    places = np.arange(len(names))
    bars = {"capsize": 3, "linestyle": "", "label": "clipped less exact (two standard errors)"}
    with sheet.panel("price of the largest 0.1 %", "coordinates", "KL divergence (nats per token)") as axes:
        prices, errors = [p.difference for p in a.prices], [2 * p.difference_se for p in a.prices]
        axes.errorbar(places - 0.1, prices, errors, **bars, **style(0))
        predicted = [p.predicted for p in a.prices]
        axes.plot(places + 0.1, predicted, linestyle="", label="second-order prediction", **style(1))
        axes.set_yscale("symlog", linthresh=max(1e-6, float(np.median([e for e in errors if e > 0] or [0.0]))))
        axes.axhline(0, color="#000000", linewidth=0.8)
        axes.set_xticks(places, names, rotation=25)
    with sheet.panel("divergence of the quantized network", "coordinates", "KL divergence (nats per token)") as axes:
        for index, (field, label) in enumerate((("kept", "outliers exact"), ("clipped", "quantized like the rest"))):
            values = [getattr(p, field) for p in a.prices]
            axes.plot(places + 0.2 * index - 0.1, values, linestyle="", label=label, **style(index))
        axes.set_yscale("log")
        axes.set_xticks(places, names, rotation=25)
    return Figure(
        name="prices",
        title=found.price_vanishes(a).evidence,
        caption="One step for every matrix, a quarter of its RMS, the same in all coordinates; outliers are those of "
        f"the coordinates that are named. “{SCATTERED}”: the errors of clipping in original coordinates, added to "
        "entries drawn at random.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(p) for p in a.prices],
    )


def kinds_of(a: Analysis) -> list[str]:
    """Kinds of layers in the order of the network."""
    return [kind for kind in LINEAR_KINDS if any(h.kind == kind for h in a.histograms)]


def by_layer(rows: Sequence[Any], field: str) -> tuple[list[int], list[float]]:
    """Mean of a field over the matrices of each layer, every weight counted once."""
    layers = sorted({row.layer for row in rows})
    means = []
    for layer in layers:
        chosen = [row for row in rows if row.layer == layer]
        weights = [row.num_weights for row in chosen]
        means.append(float(np.average([getattr(row, field) for row in chosen], weights=weights)))
    return layers, means
