"""How small or how good the file is to be, and the search for the one step that makes it so.

Everything else about a file follows from its step. A first guess comes from probes of a few rows of every matrix
(:mod:`occ_llm.compression.allocation`); then whole files are made, measured, and the step is moved along a straight
line in logarithms: a rate falls by one bit for each octave of the step, and the divergence is near a power of it.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Literal

from ..errors import OccError

Kind = Literal["bits", "bytes", "kl", "step"]

SIZE_TOLERANCE = 0.005
"""Relative miss of a size that ends the search."""

KL_TOLERANCE = 0.03
"""Relative miss of a divergence that ends the search: below its own standard error on a few windows."""

MAX_ATTEMPTS = 12
"""Files that are made at most."""

_LEAST = 1e-12  # nats per token

_LARGEST_MOVE = 4.0  # octaves of the step in one correction

_STEEPEST = 4.0  # slopes between two files, as a multiple of the expected one or of its inverse: the rest is noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """One number that a file has to have.

    Attributes:
        kind: bits per weight of the linear layers, bytes of the whole file, divergence on held-back windows in nats
            per token, or the step itself.
        value: the number.
    """

    kind: Kind
    value: float

    @property
    def tolerance(self) -> float:
        """Relative miss that is good enough."""
        return KL_TOLERANCE if self.kind == "kl" else SIZE_TOLERANCE

    def met_by(self, achieved: float) -> bool:
        """Whether a file that has ``achieved`` instead of the value will do."""
        return self.kind == "step" or abs(achieved - self.value) <= self.tolerance * self.value

    def describe(self, value: float) -> str:
        """A value with its unit."""
        unit = {"bits": "bits per linear weight", "bytes": "bytes", "kl": "nats per token", "step": "as the step"}
        number = f"{value:.0f}" if self.kind == "bytes" else f"{value:.4g}"
        return f"{number} {unit[self.kind]}"


def search_step(
    goal: Goal,
    first: float,
    measure: Callable[[float], float],
    *,
    slope: float,
    curve: Callable[[float], Hashable] = lambda step: None,
) -> float:
    """The step of a file that meets a goal.

    A secant in ``(log2 step, f(achieved))`` with ``f`` the identity for rates and the logarithm for divergences, held
    between the closest steps known to lie on either side.

    Args:
        goal: what to meet.
        first: a guess.
        measure: makes a file at a step and returns what it has of the goal's kind.
        slope: expected change of ``f`` per octave of the step, for the first move.
        curve: what ``measure`` is continuous on: files of one curve say nothing about those of another, and where a
            curve begins anew so do the secant and its bounds.

    Returns:
        The step of the last file that ``measure`` has made.

    Raises:
        OccError: no step meets the goal; the message says what was reached.
    """
    scale = _logarithm if goal.kind == "kl" else lambda value: value
    known: list[tuple[float, float]] = []  # log2 step, miss
    seen: list[float] = []
    step, place = first, curve(first)
    for _ in range(MAX_ATTEMPTS):
        achieved = measure(step)
        if goal.met_by(achieved):
            return step
        seen.append(achieved)
        known.append((math.log2(step), scale(achieved) - scale(goal.value)))
        step = 2.0 ** _next(known, slope)
        if curve(step) != place:
            known, place = [], curve(step)
    nearest = min(seen, key=lambda value: abs(value - goal.value))
    lies_inside = min(seen) <= goal.value <= max(seen)
    advice = f"the nearest, {goal.describe(nearest)}, can be had" if lies_inside else "choose a target in that range"
    raise OccError(
        f"no step gives {goal.describe(goal.value)}: {len(seen)} files reached "
        f"{goal.describe(min(seen))} to {goal.describe(max(seen))}; {advice}"
    )


def _logarithm(divergence: float) -> float:
    """A divergence of nearly nothing may come out as zero, or less, in floats."""
    return math.log2(max(divergence, _LEAST))


def _next(known: list[tuple[float, float]], slope: float) -> float:
    """Next ``log2 step`` from the misses so far."""
    at, miss = known[-1]
    if len(known) > 1:
        before, old_miss = known[-2]
        seen = (miss - old_miss) / (at - before) / slope if at != before else 0.0
        if seen > 0:
            slope *= max(1 / _STEEPEST, min(_STEEPEST, seen))
    move = max(-_LARGEST_MOVE, min(_LARGEST_MOVE, -miss / slope))
    guess = at + move
    below = [x for x, m in known if m * slope < 0]
    above = [x for x, m in known if m * slope > 0]
    if below and above:
        low, high = max(below), min(above)
        if not min(low, high) < guess < max(low, high):
            guess = (low + high) / 2
    return guess
