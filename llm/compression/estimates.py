"""Tables and classes of a file while a search moves its step: estimated anew where they are stale, a few times."""

import math
from collections.abc import Callable
from typing import final

from .allocation import Allocation

SAME_TABLES = 0.15
"""Octaves that a step may move before classes are chosen and tables estimated anew."""

MOST_TABLES = 4
"""How often that is done: with other tables a file has another size and another divergence, and a target that lies in
the jump between two estimates is met on the last one, by a step further from it than ``SAME_TABLES``."""


@final
class Estimates:
    """The allocation that serves at each step of a search.

    Args:
        first: where the search starts.
        estimate: makes another, at a step.
    """

    def __init__(self, first: Allocation, estimate: Callable[[float], Allocation]):
        self._last = first
        self._estimate = estimate
        self._made = 1

    def at(self, step: float) -> Allocation:
        """The last allocation if its tables serve at a step, or a new one."""
        if abs(math.log2(step / self._last.step)) >= SAME_TABLES and self._made < MOST_TABLES:
            self._last = self._estimate(step)
            self._made += 1
        return self._last
