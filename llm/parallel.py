"""Two things at a time: while the devices compute one, the host prepares or codes the other."""

import contextlib
import queue
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""``track(steps, label)`` iterates over ``steps`` and shows how far the work has come."""


def untracked(steps: Iterable[Any], label: str) -> Iterable[Any]:
    """Shows nothing."""
    del label
    return steps


def in_pairs(
    work: Callable[[str], _Result],
    shown: Iterable[str],
    names: Sequence[str],
    *,
    shape: Callable[[str], Hashable] | None = None,
) -> Iterator[tuple[str, _Result]]:
    """Results of ``work`` in the order of ``names``, two of them under way at any time.

    Args:
        work: a function of a name; called from two threads.
        shown: the names again, wrapped to show how far the work has come.
        names: what to work on.
        shape: what functions are compiled for. The first name of every shape is begun before all others, or two
            threads would compile one function for two neighbours.

    Example:
        >>> list(in_pairs(str.upper, ["a", "b", "c"], ["a", "b", "c"]))
        [('a', 'A'), ('b', 'B'), ('c', 'C')]
    """
    firsts = set() if shape is None else set(dict(zip(map(shape, reversed(names)), reversed(names))).values())
    with ThreadPoolExecutor(2) as pool:
        begun = {name: pool.submit(work, name) for name in sorted(names, key=lambda name: name not in firsts)}
        try:
            for step, name in zip(shown, names, strict=True):
                yield step, begun.pop(name).result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Lender(Generic[_Item]):
    """Things of which one thread at a time may use each, such as devices.

    What was given back last is lent first: functions are compiled for each device that they run on, so that few should
    be in use.

    Args:
        items: to lend, at least one.

    Example:
        >>> lender = Lender(["cpu:0", "cpu:1"])
        >>> with lender.lent() as first, lender.lent() as second:
        ...     sorted([first, second])
        ['cpu:0', 'cpu:1']
    """

    def __init__(self, items: Iterable[_Item]):
        self._free: queue.LifoQueue[_Item] = queue.LifoQueue()
        for item in items:
            self._free.put(item)

    @contextlib.contextmanager
    def lent(self) -> Iterator[_Item]:
        """One of them, until the end of the block; waits until one is free."""
        item = self._free.get()
        try:
            yield item
        finally:
            self._free.put(item)
