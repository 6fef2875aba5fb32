"""Codebooks: tables and points are what the statistics say, survive their bytes, and refuse broken ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.entropy import cost_bits, from_counts, stack
from occ_jax.quantization.codebook import (
    MAX_SYMBOL,
    REACH,
    SHIFTS_PER_STEP,
    Codebook,
    _reconstruct,
    codebook_from_bytes,
    codebook_to_bytes,
    estimate,
    gather_statistics,
    reconstruct,
    search_tables,
    symbol,
    table_index,
)
from occ_jax.quantization.trellis import gaussian_statistics


def test_symbol_and_table_give_the_index_back():
    q = np.arange(-9, 10)
    classes = np.full(q.shape, 5)
    assert np.array_equal(symbol(q, 1), q)
    assert np.array_equal(table_index(q, classes, 1), classes)
    parity = table_index(q, classes, 8) - 10
    assert set(parity) == {0, 1}
    assert np.array_equal(2 * symbol(q, 8) + parity, q)


@pytest.mark.parametrize("num_states", [1, 8])
def test_statistics_count_every_index_once(num_states):
    rng = np.random.default_rng(0)
    t = rng.standard_normal((20, 30)).astype(np.float32) * 4
    q = np.rint(t).astype(np.int32)
    classes = rng.integers(0, 3, t.shape).astype(np.int32)
    statistics = gather_statistics(jnp.asarray(t), jnp.asarray(q), jnp.asarray(classes), num_states, 3)
    assert statistics.counts.sum() == t.size
    assert statistics.residuals.sum() == pytest.approx(float((t - q).sum(dtype=np.float64)), abs=1e-3)
    k, table = symbol(q, num_states), table_index(q, classes, num_states)
    for where in ((0, 0), (7, 11), (19, 29)):
        same = (k == k[where]) & (table == table[where])
        assert statistics.counts[table[where], k[where] + MAX_SYMBOL] == same.sum()


def test_far_symbols_are_left_to_the_escape():
    q = jnp.array([[0, 1, 5000, -(2**31)]], jnp.int32)
    statistics = gather_statistics(q.astype(jnp.float32), q, jnp.zeros_like(q), 1, 1)
    assert statistics.counts.sum() == 2


def test_estimated_points_are_the_centroids():
    t = jnp.array([[0.2, 0.3, 1.25, 0.75, -1.5]], jnp.float32)
    q = jnp.array([[0, 0, 1, 1, -1]], jnp.int32)
    classes = jnp.zeros_like(q)
    codebook = estimate(gather_statistics(t, q, classes, 1, 1), 1)
    assert reconstruct(q, classes, codebook).tolist() == [[0.25, 0.25, 1.0, 1.0, -1.5]]
    assert reconstruct(jnp.array([[REACH + 1, -REACH - 1]]), jnp.zeros((1, 2), jnp.int32), codebook).tolist() == [
        [5, -5]
    ]


@pytest.mark.parametrize("num_states", [1, 8])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.0])
def test_expected_statistics_of_a_gaussian(num_states, sigma):
    """Against samples, within five standard errors."""
    statistics = gaussian_statistics(np.array([sigma]), num_states)
    assert statistics.counts.sum(-1) == pytest.approx(1, abs=1e-9)
    spacing = 1 if num_states == 1 else 2
    t = np.random.default_rng(3).standard_normal(100_000) * sigma
    for table, counts in enumerate(statistics.counts):
        k = np.rint((t - table) / spacing).astype(int)
        for value in (-1, 0, 1, 2):
            p = counts[value + MAX_SYMBOL]
            assert np.mean(k == value) == pytest.approx(p, abs=5 * np.sqrt(p / t.size) + 1e-9)


@pytest.mark.parametrize("num_states", [1, 4])
def test_search_tables_are_the_codebook_unfolded(num_states):
    codebook = estimate(gaussian_statistics(np.array([0.5, 2.0, 40.0]), num_states), num_states)
    shifts = np.random.default_rng(0).integers(-127, 128, codebook.shifts.shape)
    codebook = Codebook(codebook.tables, jnp.asarray(shifts, jnp.int8), num_states)
    unfolded = search_tables(codebook)
    bits, costs = np.asarray(unfolded.bits), np.asarray(cost_bits(codebook.tables))
    for table, offset in enumerate(np.asarray(codebook.tables.offset)):
        for k in (-30, -4, -1, 0, 1, 4, 30, 500):
            column = np.clip(k - int(unfolded.first), 0, bits.shape[1] - 1)
            inside = 0 <= k - offset < codebook.tables.num_symbols - 1
            expected = costs[table, k - offset] if inside else costs[table, -1]
            assert bits[table, column] == pytest.approx(expected, abs=1e-3)
            q = jnp.array([[k if num_states == 1 else 2 * k + table % 2]], jnp.int32)
            classes = jnp.full((1, 1), table // codebook.num_parities, jnp.int32)
            point = float(reconstruct(q, classes, codebook)[0, 0]) - int(q[0, 0])
            assert point == (shifts[table, k + REACH] / SHIFTS_PER_STEP if abs(k) <= REACH else 0)


counts_and_offset = st.tuples(st.lists(st.integers(0, 1000), max_size=20), st.integers(-15, 5))
shift_row = st.lists(st.integers(-127, 127), min_size=2 * REACH + 1, max_size=2 * REACH + 1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 4, 256]), st.lists(counts_and_offset, min_size=1, max_size=4), shift_row)
def test_bytes_bring_back_everything_that_a_codable_index_needs(num_states, contents, shifts):
    contents = contents if num_states == 1 else 2 * contents
    tables = stack([from_counts(np.array(counts, int), offset, 12) for counts, offset in contents])
    codebook = Codebook(tables, jnp.asarray(np.tile(shifts, (len(contents), 1)), jnp.int8), num_states)
    data = codebook_to_bytes(codebook)
    again = codebook_from_bytes(data)
    assert again.num_states == codebook.num_states
    assert codebook_to_bytes(again) == data
    freq, offset = np.asarray(codebook.tables.freq)[:, :-1], np.asarray(codebook.tables.offset)
    for table in range(len(offset)):
        k = offset[table] + np.flatnonzero(freq[table])
        near = k[np.abs(k) <= REACH] + REACH
        assert np.array_equal(np.asarray(again.shifts)[table, near], np.asarray(codebook.shifts)[table, near])


def test_broken_bytes_are_refused():
    data = codebook_to_bytes(estimate(gaussian_statistics(np.array([1.0]), 8), 8))
    for broken in (b"", data[:-1], data + b"\0", b"\x05" + data[1:], data[:1] + b"\xff\xff\x03" + data[2:]):
        with pytest.raises(ValueError):
            codebook_from_bytes(broken)


def test_shapes_that_do_not_fit_are_refused():
    tables = stack([from_counts(np.ones(3, int), -1)] * 3)
    with pytest.raises(ValueError, match="need shifts"):
        Codebook(tables, jnp.zeros((2, 9), jnp.int8), 1)
    with pytest.raises(ValueError, match="not 2 for each scale class"):
        Codebook(tables, jnp.zeros((3, 9), jnp.int8), 8)
    with pytest.raises(ValueError, match="5 states"):
        Codebook(tables, jnp.zeros((3, 9), jnp.int8), 5)


@pytest.mark.parametrize("num_states", [1, 8])
def test_what_is_left_to_the_escape_has_no_shift(num_states):
    """Near zero, too, a symbol may be too rare for a frequency: what is searched with is what a file brings back."""
    rare = -3 if num_states == 1 else -6
    q = jnp.asarray(np.repeat([0, 2, rare], [100_000, 20_000, 1])[None], jnp.int32)
    statistics = gather_statistics(q.astype(jnp.float32) + 0.25, q, jnp.zeros_like(q), num_states, 1)
    codebook = estimate(statistics, num_states)
    assert np.asarray(codebook.shifts).any()
    again = codebook_from_bytes(codebook_to_bytes(codebook))
    np.testing.assert_array_equal(again.shifts, codebook.shifts)
    classes = jnp.zeros_like(q)
    np.testing.assert_array_equal(reconstruct(q, classes, again), reconstruct(q, classes, codebook))


def test_codebooks_of_other_widths_share_what_is_compiled():
    before = _reconstruct._cache_size()
    for reach in (3, 900):
        q = jnp.asarray(np.arange(-reach, reach + 1).repeat(1801 // reach)[None, :1800], jnp.int32)
        codebook = estimate(gather_statistics(q.astype(jnp.float32), q, jnp.zeros_like(q), 8, 1), 8)
        reconstruct(q, jnp.zeros_like(q), codebook)
    assert _reconstruct._cache_size() == before + 1


def test_a_class_without_data_takes_three_bytes_and_no_shift():
    counts = gaussian_statistics(np.array([1.0, 1.0]), 1)
    one = jax.tree.map(lambda x: x * np.array([[1.0], [0.0]]), counts)
    both, half = (len(codebook_to_bytes(estimate(s, 1))) for s in (one, jax.tree.map(lambda x: x[:1], counts)))
    assert both - half <= 3


def test_reconstruction_lowers_to_every_backend(lowers_everywhere):
    codebook = estimate(gaussian_statistics(np.array([1.0]), 8), 8)
    q = jnp.zeros((3, 5), jnp.int32)
    lowers_everywhere(reconstruct, q, q, codebook)
