"""The search for the step that meets a target: on curves whose answer is known."""

import math

import pytest
from occ_llm.compression.targets import MAX_ATTEMPTS, Goal, search_step
from occ_llm.errors import OccError


def counted(curve):
    steps = []

    def measure(step):
        steps.append(step)
        return curve(step)

    return measure, steps


@pytest.mark.parametrize("first", [0.01, 0.1, 0.13, 3.0])
def test_a_rate_of_one_bit_an_octave_takes_one_move(first):
    measure, steps = counted(lambda step: 2.0 - math.log2(step / 0.125))
    found = search_step(Goal(kind="bits", value=2.0), first, measure, slope=-1.0)
    assert found == pytest.approx(0.125, rel=0.01)
    assert steps[-1] == found
    assert len(steps) <= 3


@pytest.mark.parametrize("power", [1.2, 2.0, 3.5])
def test_a_divergence_is_a_power_of_the_step(power):
    measure, steps = counted(lambda step: 0.3 * (step / 0.02) ** power)
    found = search_step(Goal(kind="kl", value=0.05), 0.1, measure, slope=2.0)
    assert 0.3 * (found / 0.02) ** power == pytest.approx(0.05, rel=0.03)
    assert len(steps) <= 4


def test_a_rate_that_bends_is_bracketed():
    measure, steps = counted(lambda step: 4e6 / (1 + 40 * step**1.5) + 1e5)
    found = search_step(Goal(kind="bytes", value=1.2e6), 0.001, measure, slope=-1e6)
    assert 4e6 / (1 + 40 * found**1.5) + 1e5 == pytest.approx(1.2e6, rel=0.005)
    assert len(steps) <= MAX_ATTEMPTS


def test_a_step_is_taken_as_it_is():
    assert search_step(Goal(kind="step", value=0.7), 0.7, lambda step: step, slope=-1.0) == 0.7


def test_what_cannot_be_reached_is_said_with_the_range():
    with pytest.raises(OccError, match=r"no step gives 1 bits.*reached 2.* bits .* to 2.* bits.*choose a target"):
        search_step(Goal(kind="bits", value=1.0), 0.1, lambda step: 2.0 + 1 / (1 + step), slope=-1.0)
