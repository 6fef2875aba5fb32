"""Order of channels: an order that means something is noticed, white noise is not, a rotation never notices."""

import numpy as np
import pytest
from occ_llm.analysis.frequency import (
    CONTROL,
    CONTROL_SIZE,
    CORRELATION,
    PERMUTATIONS,
    Order,
    measure_order,
    worth_of_order,
)

from occ_jax.metrics import ar1_coding_gain


@pytest.fixture(scope="module")
def orders(subject) -> list[Order]:
    return measure_order(subject, subject.matrices)


def test_the_control_is_worth_its_closed_form(orders):
    control = {o.transform: o for o in orders if o.kind == CONTROL}
    exact = 0.5 * np.log2(ar1_coding_gain(CORRELATION, CONTROL_SIZE))
    assert control["dct"].ordered_bits == pytest.approx(exact, rel=0.05)
    assert max(control["dct"].permuted_bits) < 0.2 * exact
    assert abs(control["hadamard"].difference_bits) < 0.05 * exact


def test_random_weights_have_no_order(orders):
    worth = worth_of_order(orders)
    assert len(worth) == 7 * 2 * 2 + 2
    noticed = [w for w in worth if w.is_noticed]
    assert [(w.kind, w.transform) for w in noticed] == [(CONTROL, "dct")]


def test_the_noise_is_that_of_one_more_permutation():
    rng = np.random.default_rng(0)
    place = dict(matrix="m", layer=0, kind="q", axis="inputs", transform="dct")
    draws = rng.standard_normal((4000, 1 + PERMUTATIONS))
    orders = [Order(ordered_bits=row[0], permuted_bits=tuple(row[1:]), **place) for row in draws]
    (worth,) = worth_of_order(orders)
    assert worth.limit_bits == pytest.approx(3.89 * np.sqrt((1 + 1 / PERMUTATIONS) / 4000), rel=0.05)
    assert not worth.is_noticed


def test_few_permutations_are_not_trusted():
    """With one layer the spread of a few permutations is itself uncertain: chance stays what it is said to be."""
    rng = np.random.default_rng(1)
    place = dict(matrix="m", layer=0, kind="q", axis="inputs", transform="dct")
    draws = rng.standard_normal((4000, 1 + PERMUTATIONS))
    noticed = [
        worth_of_order([Order(ordered_bits=r[0], permuted_bits=tuple(r[1:]), **place)])[0].is_noticed for r in draws
    ]
    assert np.mean(noticed) < 0.001
