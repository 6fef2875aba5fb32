"""Figures of sensitivity, structure and order: the finding is the title, the rows are the data."""

import dataclasses

import numpy as np

from ..calibration.statistics import TURNING_OUTPUTS
from ..roles import LINEAR_KINDS
from . import findings as found
from .drawing import Figure, Sheet, style
from .frequency import AXES, CHANCE, CONTROL, TRANSFORMS
from .run import Analysis
from .sensitivity import DIRECTIONS, SAMPLES
from .weight_figures import kinds_of


def spectra_figure(a: Analysis) -> Figure:
    """Eigenvalues of second moments and Fisher matrices, and the share of the top tenth."""
    sheet = Sheet("spectra")
    ranks = np.linspace(0, 100, SAMPLES)
    for what, title in (("inputs", "second moments of the inputs, H"), ("outputs", "Fisher matrices of the outputs")):
        members = [s for s in a.spectra if s.what == what]
        spaces = list(dict.fromkeys(s.space for s in members))
        with sheet.panel(title, "rank (% of the dimension)", "eigenvalue over their mean") as axes:
            for index, space in enumerate(spaces):
                samples = np.maximum([s.samples for s in members if s.space == space], 1e-12)
                middle = np.exp(np.median(np.log(samples), 0))
                axes.plot(ranks, middle, label=space, markevery=6, **style(index))
            axes.set_yscale("log")
        with sheet.panel(f"top tenth: {title}", "layer", "share of the cost (%)") as axes:
            for index, space in enumerate(spaces):
                chosen = [s for s in members if s.space == space]
                axes.plot([s.layer for s in chosen], [100 * s.top_tenth for s in chosen], label=space, **style(index))
            axes.set_ylim(0, 103)
    rows = [{k: v for k, v in dataclasses.asdict(s).items() if k != "samples"} for s in a.spectra]
    diagonal = ", ".join(kind for kind in LINEAR_KINDS if kind not in TURNING_OUTPUTS)
    return Figure(
        name="spectra",
        title=found.sensitivity_is_concentrated(a).evidence,
        caption="Left: medians over layers. Of outputs whose basis cannot be turned "
        f"({diagonal}) there is the diagonal, in the data alone.",
        panels=sheet.panels,
        rows=rows,
    )


def injections_figure(a: Analysis) -> Figure:
    """Predicted and measured divergence of errors of equal norm."""
    sheet = Sheet("injections")
    label = "predicted KL divergence (nats per token)"
    with sheet.panel("prediction against measurement", label, "measured KL (nats per token)", height=3.6) as axes:
        for index, place in enumerate(DIRECTIONS):
            chosen = [i for i in a.injections if i.directions == place]
            x, y = [i.predicted for i in chosen], [i.measured for i in chosen]
            axes.errorbar(x, y, [2 * i.measured_se for i in chosen], label=place, capsize=2, **style(index))
        ends = [min(i.predicted for i in a.injections), max(i.predicted for i in a.injections)]
        axes.plot(ends, ends, color="#000000", linestyle=":", label="equal")
        axes.set_xscale("log")
        axes.set_yscale("log")
    with sheet.panel(
        "equal norm, different directions", "norm of the error (% of the matrix)", "KL (nats per token)"
    ) as axes:
        norms = sorted({100 * i.relative_norm for i in a.injections})
        for index, place in enumerate(DIRECTIONS):
            chosen = [i for i in a.injections if i.directions == place]
            axes.plot(
                [100 * i.relative_norm for i in chosen], [i.measured for i in chosen], label=place, **style(index)
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(norms, [f"{norm:.2g}" for norm in norms])
    return Figure(
        name="injections",
        title=f"{found.formula_predicts(a).evidence}. {found.low_directions_are_cheap(a).evidence}",
        caption="Random errors in all matrices at once: anywhere, in the top tenth or in the bottom tenth of the "
        "eigenvectors of H. Bars: two standard errors.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(i) for i in a.injections],
    )


def ranks_figure(a: Analysis) -> Figure:
    """Effective ranks of matrices and of all layers stacked."""
    sheet = Sheet("ranks")
    with sheet.panel("every matrix", "kind of layer", "effective rank (% of full)") as axes:
        for index, (field, label) in enumerate((("effective_rank", "as it is"), ("shuffled_rank", "shuffled entries"))):
            x = [kinds_of(a).index(r.kind) + 0.3 * index - 0.15 for r in a.ranks]
            axes.plot(x, [100 * getattr(r, field) for r in a.ranks], linestyle="", label=label, **style(index))
        axes.set_xticks(range(len(kinds_of(a))), kinds_of(a))
    with sheet.panel("all layers stacked", "kind of layer", "effective rank (% of the width)") as axes:
        for index, (field, label) in enumerate(
            (("stacked_rank", "as they are"), ("permuted_rank", "channels permuted"))
        ):
            x = np.arange(len(a.depths)) + 0.4 * index - 0.2
            values = [100 * getattr(d, field) for d in a.depths]
            axes.bar(x, values, 0.38, label=label, color=style(index)["color"])
        axes.set_xticks(range(len(a.depths)), [d.kind for d in a.depths])
    return Figure(
        name="ranks",
        title=found.matrices_are_low_rank(a).evidence,
        caption="Effective rank: exponential of the entropy of the squared singular values. Left: one point for every "
        "layer, beside the same entries in random places.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(r) for r in a.ranks],
    )


def neighbours_figure(a: Analysis) -> Figure:
    """Overlap of neighbouring layers' top directions."""
    sheet = Sheet("neighbours")
    pairs = [(r, 100 * r.overlap) for r in a.ranks if r.overlap is not None]
    with sheet.panel("overlap with the next layer", "layer", "mean squared cosine (%)") as axes:
        for index, kind in enumerate(kinds_of(a)):
            chosen = [(r.layer, overlap) for r, overlap in pairs if r.kind == kind]
            axes.plot([layer for layer, _ in chosen], [overlap for _, overlap in chosen], label=kind, **style(index))
        if pairs:
            axes.axhline(100 * pairs[0][0].overlap_chance, color="#000000", linestyle=":", label="chance")
    return Figure(
        name="neighbours",
        title=found.neighbours_share_directions(a).evidence,
        caption="Subspaces of the residual stream, spanned by the largest tenth of the singular directions. The data "
        "have the medians of the angles.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(r) for r in a.ranks],
    )


def depths_figure(a: Analysis) -> Figure:
    """Skill of a smooth function of the depth."""
    sheet = Sheet("depth")
    for field, title in (("entries", "entries"), ("scales", "log scales of the channels")):
        with sheet.panel(f"prediction of the {title}", "kind of layer", "skill (1: exact, 0: the mean)") as axes:
            for index, suffix in enumerate(("", "_shuffled")):
                values = [getattr(d, field + suffix) for d in a.depths]
                heights = [0.0 if value is None else value for value in values]
                x = np.arange(len(a.depths)) + 0.4 * index - 0.2
                label = ("order of the depth", "random order")[index]
                axes.bar(x, heights, 0.38, label=label, color=style(index)["color"])
            axes.axhline(0, color="#000000", linewidth=0.8)
            axes.set_xticks(range(len(a.depths)), [d.kind for d in a.depths])
    return Figure(
        name="depth",
        title=f"{found.entries_are_smooth(a).evidence}. {found.scales_are_smooth(a).evidence}",
        caption="A polynomial in the depth, fitted to all other layers, against their mean; below zero it does worse. "
        "Means of many random orders beside it.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(d) for d in a.depths],
    )


def orders_figure(a: Analysis) -> Figure:
    """What the order of the channels is worth to both transforms."""
    sheet = Sheet("order")
    kinds = kinds_of(a)
    for axis in AXES:
        with sheet.panel(f"order of the {axis}", "kind of layer", "coding gain by the order (bit)") as axes:
            for index, transform in enumerate(TRANSFORMS):
                chosen = {w.kind: w for w in a.worth if (w.axis, w.transform) == (axis, transform)}
                x = np.arange(len(kinds)) + 0.2 * index - 0.1
                means, noise = [chosen[k].mean_bits for k in kinds], [chosen[k].limit_bits for k in kinds]
                axes.errorbar(x, means, noise, linestyle="", capsize=3, label=transform, **style(index))
            axes.axhline(0, color="#000000", linewidth=0.8)
            axes.set_xticks(range(len(kinds)), kinds)
    control = {w.transform: w.mean_bits for w in a.worth if w.kind == CONTROL}
    return Figure(
        name="order",
        title=f"{found.order_is_seen(a).evidence}. {found.rotation_is_blind(a).evidence}",
        caption="Coding gain in the order of the network less that after random permutations, mean over layers. Bars "
        f"end where chance ends (p = {CHANCE:g}) for one more random permutation. An autoregressive process, whose "
        f"order means something, loses {control['dct']:.2f} bit in the DCT and {control['hadamard']:.4f} bit in the "
        "Hadamard transform.",
        panels=sheet.panels,
        rows=[dataclasses.asdict(o) | {"permuted_bits": " ".join(map(str, o.permuted_bits))} for o in a.orders],
    )
