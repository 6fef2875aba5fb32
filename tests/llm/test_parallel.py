"""Two things at a time: order of the work and of its results, and what an error leaves behind."""

import threading

import pytest
from occ_llm.parallel import in_pairs

NAMES = ("a1", "a2", "a3", "b1", "b2", "a4")


def test_results_come_in_the_order_of_the_names():
    assert list(in_pairs(str.upper, NAMES, NAMES)) == [(name, name.upper()) for name in NAMES]
    assert list(in_pairs(str.upper, (), ())) == []


def test_one_of_every_shape_is_begun_first():
    begun, lock = [], threading.Lock()
    both = threading.Barrier(2)

    def work(name: str) -> str:
        with lock:
            begun.append(name)
        if name in ("a1", "b1"):
            both.wait(timeout=60)
        return name.upper()

    found = list(in_pairs(work, NAMES, NAMES, shape=lambda name: name[0]))
    assert found == [(name, name.upper()) for name in NAMES]
    assert set(begun[:2]) == {"a1", "b1"}
    assert sorted(begun) == sorted(NAMES)


def test_after_an_error_nothing_new_is_begun():
    begun = []

    def work(name: str) -> None:
        begun.append(name)
        raise ValueError(name)

    with pytest.raises(ValueError, match="a1"):
        list(in_pairs(work, NAMES, NAMES))
    names = [str(n) for n in range(1000)]
    begun.clear()
    with pytest.raises(ValueError, match="0"):
        list(in_pairs(work, names, names))
    assert len(begun) < 1000
