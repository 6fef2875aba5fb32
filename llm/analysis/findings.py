"""What the numbers say: for every claim, whether it holds here, decided by a rule that is stated before any number.

A rule can come out either way. A claim that the measurement cannot decide stays open, and says why.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from .frequency import CONTROL
from .means import alike, weighted
from .outliers import SCATTERED
from .run import Analysis

ROTATIONS = ("hadamard", "random")

ROUNDING = 1e-4
"""Largest relative change of a norm that float32 rounding explains."""


HEAVY_RMS = 4.0
"""Threshold of the largest 0.1 % above which a tail counts as heavy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim and what became of it.

    Attributes:
        section: of the page.
        claim: in one sentence.
        rule: when it is taken to hold.
        holds: whether it does; None if the numbers do not decide.
        evidence: the numbers, in one sentence; also the title of a figure.
    """

    section: str
    claim: str
    rule: str
    holds: bool | None
    evidence: str


def decide(analysis: Analysis) -> list[Finding]:
    """All claims, in the order of the page."""
    rules: list[Callable[[Analysis], Finding]] = [
        norms_are_kept,
        rotation_flattens,
        rotation_costs_bits,
        outliers_vanish,
        price_vanishes,
        places_matter,
        sensitivity_is_concentrated,
        formula_predicts,
        low_directions_are_cheap,
        matrices_are_low_rank,
        neighbours_share_directions,
        entries_are_smooth,
        scales_are_smooth,
        order_is_seen,
        rotation_is_blind,
    ]
    return [rule(analysis) for rule in rules]


def norms_are_kept(a: Analysis) -> Finding:
    """Whether the changes of coordinates were orthonormal."""
    worst = max(regime.norm_departure for regime in a.regimes)
    return Finding(
        section="regimes",
        claim="Every change of coordinates keeps the Frobenius norm of every matrix.",
        rule=f"the largest relative departure is below {ROUNDING:g}",
        holds=worst < ROUNDING,
        evidence=f"Norms agree in all coordinates to {worst:.1e}",
    )


def rotation_flattens(a: Analysis) -> Finding:
    """Whether rotated weights look Gaussian."""
    medians = {c: float(np.median([r.kurtosis for r in alike(a.regimes, c)])) for c in a.systems}
    rotated = max(medians[c] for c in ROTATIONS)
    return Finding(
        section="regimes",
        claim="Rotated weights are closer to a Gaussian than the original ones.",
        rule="the median excess kurtosis after each rotation is less than half the original's",
        holds=abs(rotated - 3) < abs(medians["identity"] - 3) / 2,
        evidence=f"Rotation takes the median kurtosis from {medians['identity']:.2f} to {medians['hadamard']:.2f}; "
        f"{_listed(medians, '.2f', but=('identity', 'hadamard'))} (a Gaussian has 3)",
    )


def rotation_costs_bits(a: Analysis) -> Finding:
    """Whether a rotation destroys scales that the coder uses."""
    rates = mean_rates(a)
    cost = min(rates[c] for c in ROTATIONS) - rates["identity"]
    return Finding(
        section="regimes",
        claim="Under a coder that knows the scales of rows and columns, rotated weights take more bits.",
        rule="each rotation costs more than 0.001 bit per weight at equal distortion",
        holds=cost > 1e-3,
        evidence=f"Fewest coded bits per weight at equal distortion in {min(rates, key=rates.__getitem__)}: "
        f"{_listed(rates, '.3f')}",
    )


def mean_rates(a: Analysis) -> dict[str, float]:
    """Coded bits per weight of all matrices together, in every coordinate system."""
    return {c: weighted(a.regimes, c, "rate_bits") for c in a.systems}


def outliers_vanish(a: Analysis) -> Finding:
    """Whether outliers are left after a rotation."""
    left = {c: weighted(a.outliers, c, "survivors") for c in a.systems if c != "identity"}
    expected = weighted(a.outliers, "identity", "expected_survivors")
    threshold = weighted(a.outliers, "identity", "threshold_rms")
    heavy = threshold > HEAVY_RMS
    return Finding(
        section="outliers",
        claim="Most outliers vanish when the coordinates are rotated.",
        rule=f"after each rotation less than half as many entries exceed the original threshold; open if that is below "
        f"{HEAVY_RMS:g} RMS, close to the 3.29 of a Gaussian",
        holds=max(left[c] for c in ROTATIONS) < 0.5 if heavy else None,
        evidence=f"A Hadamard rotation leaves {left['hadamard']:.0%} of the outliers "
        f"({_listed(left, '.0%', but=('hadamard',))}); {expected:.0%} expected of Gaussian rows"
        + ("" if heavy else f"; with a threshold of {threshold:.2f} RMS there are hardly any to begin with"),
    )


def price_vanishes(a: Analysis) -> Finding:
    """Whether clipping outliers costs less after a rotation."""
    prices = {price.coordinates: price for price in a.prices}
    original = prices["identity"]
    rotated = max(prices[c].difference for c in ROTATIONS)
    shown = {c: p.difference for c, p in prices.items() if c != SCATTERED}
    clear = original.difference > 2 * original.difference_se
    return Finding(
        section="outliers",
        claim="What outliers are worth to the function is an artifact of coordinates, too.",
        rule="clipping them costs something in original coordinates, and less than half of that after each rotation",
        holds=rotated < original.difference / 2 if clear else None,
        evidence=f"Clipping the largest 0.1 % costs most in {max(shown, key=shown.__getitem__)}, in nats per token: "
        f"{_listed(shown, '.2g')}"
        + ("" if clear else "; in original coordinates that is within two standard errors of nothing"),
    )


def places_matter(a: Analysis) -> Finding:
    """Whether clipping costs more than the size of its errors explains."""
    prices = {price.coordinates: price for price in a.prices}
    clipped, scattered = prices["identity"], prices[SCATTERED]
    error = math.hypot(clipped.difference_se, scattered.difference_se)
    gap = clipped.difference - scattered.difference
    return Finding(
        section="outliers",
        claim="An outlier matters no more than an error of its size anywhere else in its matrix.",
        rule="clipping costs at most twice what the same errors cost at random entries, within two standard errors",
        holds=clipped.difference < 2 * scattered.difference + 2 * error if math.isfinite(error) else None,
        evidence=f"Clipping costs {clipped.difference:.2g}, the same errors at random entries "
        f"{scattered.difference:.2g} nats per token (difference {gap:.2g} ± {error:.1g})",
    )


def sensitivity_is_concentrated(a: Analysis) -> Finding:
    """Whether few directions carry the cost."""
    shares = {what: _median([s.top_tenth for s in a.spectra if s.what == what]) for what in ("inputs", "outputs")}
    dimension = _median([s.participation / s.dimension for s in a.spectra if s.what == "inputs"])
    return Finding(
        section="sensitivity",
        claim="A tenth of the directions carries most of what an error costs.",
        rule="the median share of the top tenth of the eigenvalues of H is above one half",
        holds=shares["inputs"] > 0.5,
        evidence=f"The top tenth of the directions carries {shares['inputs']:.0%} (inputs) and {shares['outputs']:.0%} "
        f"(outputs) of the cost; the effective dimension of H is {dimension:.1%} of its size",
    )


def formula_predicts(a: Analysis) -> Finding:
    """Whether the second-order formula is right for small errors."""
    first = min(i.relative_norm for i in a.injections)
    ratios = {i.directions: i.measured / i.predicted for i in a.injections if i.relative_norm == first}
    return Finding(
        section="sensitivity",
        claim="The second-order formula predicts what small errors cost.",
        rule="at the smallest norm measured over predicted lies between 1/2 and 2 in all three sets of directions",
        holds=all(0.5 < ratio < 2 for ratio in ratios.values()),
        evidence=f"Measured over predicted divergence at the smallest norm: {_listed(ratios, '.2f')}",
    )


def low_directions_are_cheap(a: Analysis) -> Finding:
    """Whether the direction of an error matters as H says."""
    by_norm: dict[float, dict[str, float]] = {}
    for injection in a.injections:
        by_norm.setdefault(injection.relative_norm, {})[injection.directions] = injection.measured
    ratios = [found["high"] / found["low"] for found in by_norm.values()]
    first = by_norm[min(by_norm)]
    return Finding(
        section="sensitivity",
        claim="Errors of equal norm cost more in the top than in the bottom directions of H.",
        rule="the measured divergence is more than twice as high at every norm",
        holds=min(ratios) > 2,
        evidence=f"Equal norm, {first['high'] / first['low']:.0f} times the divergence in the top tenth "
        f"than in the bottom tenth of the directions ({min(ratios):.0f} to {max(ratios):.0f} times over all norms)",
    )


def matrices_are_low_rank(a: Analysis) -> Finding:
    """Whether matrices have low-dimensional structure of their own."""
    rank, shuffled = _median([r.effective_rank for r in a.ranks]), _median([r.shuffled_rank for r in a.ranks])
    return Finding(
        section="structure",
        claim="Matrices have fewer effective dimensions than the same entries in random places.",
        rule="the effective rank is lower in every matrix",
        holds=all(r.effective_rank < r.shuffled_rank for r in a.ranks),
        evidence=f"Matrices use {rank:.0%} of their dimensions, {shuffled:.0%} with shuffled entries "
        "(effective ranks, medians)",
    )


def neighbours_share_directions(a: Analysis) -> Finding:
    """Whether structure is shared from layer to layer."""
    pairs = [r for r in a.ranks if r.overlap is not None]
    if not pairs:
        return _open("structure", "Neighbouring layers share their top directions.", "only one layer was looked at")
    overlap, permuted = _median([r.overlap for r in pairs]), _median([r.overlap_permuted for r in pairs])
    chance = pairs[0].overlap_chance
    return Finding(
        section="structure",
        claim="Neighbouring layers share their top directions.",
        rule="the median overlap is more than twice that with permuted channels",
        holds=overlap > 2 * permuted,
        evidence=f"Neighbouring layers' top tenths overlap by {overlap:.0%}; {permuted:.0%} with permuted channels, "
        f"{chance:.0%} by chance",
    )


def entries_are_smooth(a: Analysis) -> Finding:
    """Whether the entries follow a smooth function of the depth."""
    return _smooth(a, "entries", "A smooth function of the depth predicts the entries of a layer.")


def scales_are_smooth(a: Analysis) -> Finding:
    """Whether the channels' scales follow a smooth function of the depth."""
    return _smooth(a, "scales", "A smooth function of the depth predicts the scales of a layer's channels.")


def _smooth(a: Analysis, field: str, claim: str) -> Finding:
    found = [d for d in a.depths if getattr(d, field) is not None]
    if not found:
        return _open("structure", claim, "there are too few layers")
    skill = _median([getattr(d, field) for d in found])
    shuffled = _median([getattr(d, f"{field}_shuffled") for d in found])
    clear = sum(getattr(d, f"{field}_p") < 0.05 and getattr(d, field) > 0 for d in found)
    return Finding(
        section="structure",
        claim=claim,
        rule="in most kinds of layers it beats the mean of the other layers, and 95 % of the random orders",
        holds=clear > len(found) / 2,
        evidence=f"Skill of a smooth function of the depth for the {field}: {skill:+.2f}, in random order "
        f"{shuffled:+.2f}; clear in {clear} of {len(found)} kinds",
    )


def order_is_seen(a: Analysis) -> Finding:
    """Whether a frequency transform finds an order of the channels."""
    seen = [w for w in a.worth if w.transform == "dct" and w.kind != CONTROL and w.is_noticed]
    all_tests = [w for w in a.worth if w.transform == "dct" and w.kind != CONTROL]
    control = next(w for w in a.worth if w.transform == "dct" and w.kind == CONTROL)
    most = max(all_tests, key=lambda w: w.mean_bits)
    return Finding(
        section="frequency",
        claim="The order of the channels means something to a frequency transform.",
        rule="a permutation costs the DCT coding gain, beyond chance (p < 0.0001), in most kinds of layers and axes",
        holds=len(seen) > len(all_tests) / 2 if control.is_noticed else None,
        evidence=f"The DCT notices the order in {len(seen)} of {len(all_tests)} cases, most in {most.kind} along its "
        f"{most.axis} ({most.mean_bits:.4f} bit); in the control it is {control.mean_bits:.2f} bit",
    )


def rotation_is_blind(a: Analysis) -> Finding:
    """Whether a rotation is indifferent to the order of the channels."""
    tests = [w for w in a.worth if w.transform == "hadamard"]
    seen = [w for w in tests if w.is_noticed]
    largest = max(abs(w.mean_bits) for w in tests)
    return Finding(
        section="frequency",
        claim="A rotation does not notice the order of the channels.",
        rule="the Hadamard transform changes by no more than chance (p < 0.0001) in all kinds, axes and the control",
        holds=not seen,
        evidence=f"The Hadamard transform notices the order in {len(seen)} of {len(tests)} cases "
        f"(at most {largest:.1e} bit)",
    )


def _open(section: str, claim: str, reason: str) -> Finding:
    return Finding(section=section, claim=claim, rule="", holds=None, evidence=f"Not decided: {reason}")


def _listed(values: dict[str, float], form: str, *, but: tuple[str, ...] = ()) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items() if name not in but)


def _median(values: Iterable[float | None]) -> float:
    return float(np.median([value for value in values if value is not None]))
