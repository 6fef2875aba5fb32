"""The trellises are Ungerboeck's: connected as the decoder follows them, with the free distances he tabulated."""

import heapq

import numpy as np
import pytest

from occ_jax.quantization.ungerboeck import (
    PARITY_CHECKS,
    STATE_COUNTS,
    check_num_states,
    next_states,
    num_parities,
    predecessors,
    step_state,
)

# Ungerboeck 1982, Table I (amplitude modulation): squared free distance in units of the lattice's.
FREE_DISTANCE = {4: 9, 8: 10, 16: 11, 32: 13, 64: 14, 128: 16, 256: 16}


def free_distance(num_states: int) -> int:
    """Least squared distance of two paths, by Dijkstra's algorithm over the differences of paths."""
    subset_distance = {0: 0, 1: 1, 2: 4, 3: 1}
    following = next_states(num_states)
    best = {int(following[0, 1]): subset_distance[2]}  # paths part in state 0, where only the subset bit differs
    queue = [(distance, state) for state, distance in best.items()]
    while queue:
        distance, state = heapq.heappop(queue)
        if state == 0:
            return min(distance, 16)  # members of one subset are 4 apart
        if distance > best[state]:
            continue
        for bit in range(2):
            reached = int(following[state, bit])
            longer = distance + subset_distance[2 * bit + (state & 1)]
            if longer < best.get(reached, 1 << 30):
                best[reached] = longer
                heapq.heappush(queue, (longer, reached))
    raise AssertionError("paths never meet again")


@pytest.mark.parametrize("num_states", PARITY_CHECKS)
def test_free_distance_is_the_tabulated_one(num_states):
    assert free_distance(num_states) == FREE_DISTANCE[num_states]


@pytest.mark.parametrize("num_states", PARITY_CHECKS)
def test_every_state_has_two_successors_and_two_predecessors_of_one_parity(num_states):
    following, before = next_states(num_states), predecessors(num_states)
    assert (following[:, 0] != following[:, 1]).all()
    assert (np.bincount(following.ravel(), minlength=num_states) == 2).all()
    for bit in range(2):
        assert (following[before[:, bit], bit] == np.arange(num_states)).all()
    assert (before[:, 0] % 2 == before[:, 1] % 2).all()


@pytest.mark.parametrize("num_states", PARITY_CHECKS)
def test_every_state_is_reached_from_state_zero_in_as_many_steps_as_it_has_bits(num_states):
    reached = {0}
    for _ in range(num_states.bit_length() - 1):
        reached = {int(s) for state in reached for s in next_states(num_states)[state]}
    assert reached == set(range(num_states))


@pytest.mark.parametrize("num_states", PARITY_CHECKS)
def test_paths_meet_the_parity_check(num_states):
    h0, h1 = PARITY_CHECKS[num_states]
    bits = np.random.default_rng(num_states).integers(0, 2, 200)
    state, parities = 0, []
    for bit in bits:
        parities.append(state & 1)
        state = step_state(state, int(bit), num_states)
    check = np.zeros(200 + 16, int)
    for i in range(10):
        check[i : i + 200] ^= (h0 >> i & 1) * np.array(parities) ^ (h1 >> i & 1) * bits
    assert not check[:200].any()


@pytest.mark.parametrize("num_states", PARITY_CHECKS)
def test_arithmetic_and_table_give_the_same_next_state(num_states):
    table = [[step_state(state, bit, num_states) for bit in range(2)] for state in range(num_states)]
    assert np.array_equal(table, next_states(num_states))


def test_one_state_allows_all_integers():
    assert num_parities(1) == 1
    assert step_state(0, 1, 1) == 0
    assert next_states(1).tolist() == predecessors(1).tolist() == [[0, 0]]


@pytest.mark.parametrize("num_states", [0, 2, 3, 7, 512, -8])
def test_other_numbers_of_states_are_refused_by_name(num_states):
    with pytest.raises(ValueError, match=rf"{num_states} states: choose one of 1, 4, 8"):
        check_num_states(num_states)
    assert num_states not in STATE_COUNTS
