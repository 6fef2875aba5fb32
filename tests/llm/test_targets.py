"""The search for the step that meets a target: on curves whose answer is known."""

import math

import numpy as np
import pytest
from occ_llm.cli.compress import note_a_miss
from occ_llm.cli.terminal import Terminal
from occ_llm.compression import Sizes
from occ_llm.compression.allocation import Allocation
from occ_llm.compression.estimates import MOST_TABLES, Estimates
from occ_llm.compression.targets import MAX_ATTEMPTS, Goal, search_step
from occ_llm.errors import OccError

from occ_jax.quantization.trellis import gaussian_codebook


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


def test_a_divergence_of_nothing_ends_the_search_with_a_sentence():
    with pytest.raises(OccError, match="choose a target in that range"):
        search_step(Goal(kind="kl", value=1e-9), 0.1, lambda step: max(1e-6 * step - 1e-8, -1e-9) + 1e-7, slope=2.0)
    assert search_step(Goal(kind="kl", value=0.01), 1e-3, lambda step: step - 1e-3, slope=2.0) == pytest.approx(
        0.011, rel=0.03
    )


def test_two_files_that_differ_by_noise_do_not_send_the_search_far_away():
    """Feedback is chaotic: a step that hardly differs makes another file, whose divergence is off by a few percent."""
    values = iter([1.0, 0.998, 0.85])
    measure, steps = counted(lambda step: next(values))
    assert search_step(Goal(kind="kl", value=0.85), 0.03, measure, slope=2.0) == steps[-1]
    assert steps[0] > steps[1] > steps[2] > steps[1] / 2


CODEBOOK = gaussian_codebook(np.ones(1), num_states=1)


def allocation(step: float) -> Allocation:
    return Allocation(step=step, codebook=CODEBOOK, linear_bits=2.0, class_bits=np.zeros(1, np.float32))


@pytest.mark.parametrize("jumps", [(0.0, -0.3, -0.3, -0.3), (0.0, 0.2, -0.2, 0.2)])
def test_a_target_in_the_jump_between_two_estimates_is_met_on_the_last(jumps):
    """Far from where tables were estimated they are estimated again: the rate jumps over the target, and comes back."""
    estimates = Estimates(allocation(1.0), allocation)
    made: list[float] = []

    def curve(step):
        found = estimates.at(step).step
        if found not in made:
            made.append(found)
        return found

    def rate(step):
        return 1.7 - math.log2(step) + jumps[made.index(curve(step))]

    measure, steps = counted(rate)
    found = search_step(Goal(kind="bits", value=1.52), 1.0, measure, slope=-1.0, curve=curve)
    assert rate(found) == pytest.approx(1.52, rel=0.005)
    assert len(made) <= MOST_TABLES
    assert len(steps) <= MOST_TABLES + 2


def test_a_target_between_two_files_names_the_nearest():
    with pytest.raises(OccError, match=r"the nearest, 2 bits per linear weight, can be had"):
        search_step(Goal(kind="bits", value=2.4), 0.1, lambda step: 2.0 if step > 0.1 else 3.0, slope=-1.0)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Goal(kind="bits", value=2.0), "the file has 2.05 bits per linear weight, not 2 bits"),
        (Goal(kind="bytes", value=1100.0), "the file has 1000 bytes, not 1100 bytes"),
        (Goal(kind="bits", value=2.045), ""),
        (Goal(kind="bytes", value=1003.0), ""),
        (Goal(kind="kl", value=0.1), ""),
        (Goal(kind="step", value=0.1), ""),
    ],
)
def test_a_finished_file_that_misses_its_size_is_pointed_out(goal, words, capsys):
    sizes = Sizes(file_bytes=1000, linear_bits_per_weight=2.05, file_bits_per_weight=2.5, ledger={})
    note_a_miss(Terminal(json_only=True), goal, sizes)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(words)
    assert bool(said) == bool(words)
