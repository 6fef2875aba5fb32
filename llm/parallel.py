"""Two things at a time: while the devices compute one, the host prepares or codes the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""``track(steps, label)`` iterates over ``steps`` and shows how far the work has come."""


def untracked(steps: Iterable[Any], label: str) -> Iterable[Any]:
    """Shows nothing."""
    del label
    return steps


def in_pairs(
    work: Callable[[str], _Result], shown: Iterable[str], names: Sequence[str]
) -> Iterator[tuple[str, _Result]]:
    """Results of ``work`` in the order of ``names``, two of them under way at any time.

    Args:
        work: a function of a name; called from two threads.
        shown: the names again, wrapped to show how far the work has come.
        names: what to work on.

    Example:
        >>> list(in_pairs(str.upper, ["a", "b", "c"], ["a", "b", "c"]))
        [('a', 'A'), ('b', 'B'), ('c', 'C')]
    """
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(work, names)
        try:
            yield from zip(shown, results, strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
