"""The search finds the best path: against all paths, on every number of devices, on every backend."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.entropy.tables import cost_bits
from occ_jax.quantization.codebook import REACH, SHIFTS_PER_STEP, Codebook, estimate, search_tables
from occ_jax.quantization.trellis import gaussian_statistics
from occ_jax.quantization.trellis_coding import is_path
from occ_jax.quantization.ungerboeck import STATE_COUNTS, next_states
from occ_jax.quantization.viterbi import bit_of_state, pack_bits, search, step_back

SIGMAS = np.array([0.4, 1.5, 3.0])


def codebook_with_shifts(num_states: int) -> Codebook:
    """Gaussian tables, and points moved towards zero by a sixteenth of a step."""
    codebook = estimate(gaussian_statistics(SIGMAS, num_states), num_states)
    shifts = np.tile(-4 * np.sign(np.arange(-REACH, REACH + 1)), (len(codebook.shifts), 1))
    return Codebook(codebook.tables, jnp.asarray(shifts, jnp.int8), num_states)


@functools.cache
def on_host(codebook: Codebook) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code lengths, offsets and shifts: as arrays of JAX every look at them would be a call of its own."""
    return tuple(map(np.asarray, (cost_bits(codebook.tables), codebook.tables.offset, codebook.shifts)))


def price(t: float, q: int, scale_class: int, codebook: Codebook, lmbda: float) -> float:
    """Cost of one index, read off the codebook with NumPy alone."""
    if codebook.num_states == 1:
        k, table = q, scale_class
    else:
        k, table = (q - q % 2) // 2, 2 * scale_class + q % 2
    costs, offsets, shifts = on_host(codebook)
    bits, symbol = costs[table], k - int(offsets[table])
    inside = 0 <= symbol < len(bits) - 1
    shift = int(shifts[table, k + REACH]) / SHIFTS_PER_STEP if abs(k) <= REACH else 0.0
    return (t - q - shift) ** 2 + lmbda * float(bits[symbol] if inside else bits[-1])


def cost_of(t, q, classes, codebook, lmbda):
    return sum(price(*sample, codebook, lmbda) for sample in zip(t, q, classes))


def best_cost(t, classes, codebook, lmbda):
    """Cost of the best of all paths, each subset represented by the best of its members near the value."""
    modulus = 1 if codebook.num_states == 1 else 4
    member = [
        [
            min(price(x, q, c, codebook, lmbda) for q in range(subset - 5 * modulus, subset + 5 * modulus, modulus))
            for subset in range(modulus)
        ]
        for x, c in zip(t, classes)
    ]
    if modulus == 1:
        return sum(costs[0] for costs in member)
    following, best = next_states(codebook.num_states), np.inf
    for bits in itertools.product(range(2), repeat=len(t)):
        state, total = 0, 0.0
        for costs, bit in zip(member, bits):
            total += costs[2 * bit + state % 2]
            state = following[state, bit]
        best = min(best, total)
    return best


@pytest.mark.parametrize("num_states", STATE_COUNTS)
def test_no_path_is_better(num_states):
    codebook, lmbda = codebook_with_shifts(num_states), 0.36
    rng = np.random.default_rng(num_states)
    classes = rng.integers(0, 3, (4, 8))
    t = (rng.standard_normal((4, 8)) * SIGMAS[classes]).astype(np.float32)
    q = search(
        jnp.asarray(t), jnp.asarray(classes, jnp.int32), search_tables(codebook), num_states=num_states, lmbda=lmbda
    )
    assert is_path(q, num_states)
    for row in range(len(t)):
        found = cost_of(t[row], np.asarray(q[row]).tolist(), classes[row].tolist(), codebook, lmbda)
        assert found == pytest.approx(best_cost(t[row], classes[row].tolist(), codebook, lmbda), abs=5e-3)


def random_rows(num_rows, length, seed=0):
    t = jnp.asarray(np.random.default_rng(seed).standard_normal((num_rows, length)) * 2, jnp.float32)
    return t, jnp.ones(t.shape, jnp.int32)


@pytest.mark.parametrize("num_states", [1, 8, 64])
def test_rows_do_not_depend_on_the_devices_or_on_each_other(num_states):
    t, classes = random_rows(67, 40)
    tables = search_tables(codebook_with_shifts(num_states))
    q = search(t, classes, tables, num_states=num_states, lmbda=0.3)
    shared = search(t, classes, tables, num_states=num_states, lmbda=0.3, devices=tuple(jax.devices()[:4]))
    assert jnp.array_equal(q, shared)
    alone = search(t[13:14], classes[13:14], tables, num_states=num_states, lmbda=0.3)
    assert jnp.array_equal(q[13:14], alone)


def test_without_rate_one_state_rounds_to_the_nearest_point():
    t, classes = random_rows(9, 30)
    codebook = estimate(gaussian_statistics(SIGMAS, 1), 1)
    q = search(t, classes, search_tables(codebook), num_states=1, lmbda=0.0)
    assert jnp.array_equal(q, jnp.round(t).astype(jnp.int32))


def test_a_higher_price_of_bits_never_adds_bits():
    t, classes = random_rows(16, 200)
    codebook = codebook_with_shifts(8)
    bits = []
    for lmbda in (0.0, 0.2, 0.4, 0.8):
        q = search(t, classes, search_tables(codebook), num_states=8, lmbda=lmbda)
        flat = zip(np.asarray(q).ravel().tolist(), np.asarray(classes).ravel().tolist())
        bits.append(sum(price(q, q, c, codebook, 1.0) - price(q, q, c, codebook, 0.0) for q, c in flat))
    assert bits == sorted(bits, reverse=True)


@pytest.mark.parametrize("value", [1e4, -1e7, 1e30])
def test_outliers_keep_their_sign_and_stay_on_a_path(value):
    t, classes = random_rows(2, 12)
    t = t.at[0, 5].set(value)
    q = search(t, classes, search_tables(codebook_with_shifts(8)), num_states=8, lmbda=0.36)
    assert is_path(q, 8)
    assert np.sign(int(q[0, 5])) == np.sign(value)
    if abs(value) < 1e6:
        assert abs(int(q[0, 5]) - value) <= 4


@pytest.mark.parametrize("num_states", [4, 8, 256])
def test_packed_decisions_are_read_back(num_states):
    bits = jnp.asarray(np.random.default_rng(0).integers(0, 2, (num_states, 11)), bool)
    packed = pack_bits(bits)
    assert packed.shape == (max(1, num_states // 8), 11)
    for state in (0, 3, num_states - 1):
        assert jnp.array_equal(bit_of_state(packed, jnp.full(11, state, jnp.int32)), bits[state].astype(jnp.int32))


@pytest.mark.parametrize("num_states", [4, 32, 256])
def test_a_step_back_undoes_a_step(num_states):
    state, bit = jnp.meshgrid(jnp.arange(num_states, dtype=jnp.int32), jnp.arange(2, dtype=jnp.int32), indexing="ij")
    reached = jnp.asarray(next_states(num_states), jnp.int32)
    assert jnp.array_equal(step_back(reached.ravel(), bit.ravel(), num_states), state.ravel())


def test_the_search_lowers_to_every_backend(lowers_everywhere):
    t, classes = random_rows(8, 16)
    for num_states in (1, 8):
        tables = search_tables(codebook_with_shifts(num_states))
        lowers_everywhere(lambda *x, s=num_states: search(*x, num_states=s, lmbda=0.36), t, classes, tables)


def test_the_search_is_the_same_in_64_bit_mode():
    t, classes = random_rows(5, 33)
    tables = search_tables(codebook_with_shifts(8))
    q = search(t, classes, tables, num_states=8, lmbda=0.36)
    with jax.enable_x64(True):
        wide = search(t, classes, tables, num_states=8, lmbda=0.36)
    assert wide.dtype == jnp.int32
    assert np.array_equal(q, wide)
