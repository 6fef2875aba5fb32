"""Frequency tables: optimal integers, exact serialisation, clear refusals."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from occ_jax.entropy import (
    FreqTable,
    cost_bits,
    from_bytes,
    from_counts,
    from_samples,
    normalize_counts,
    stack,
    to_bytes,
)
from occ_jax.entropy.stacks import host_cost_bits
from occ_jax.entropy.tables import ESCAPE_BITS
from occ_jax.entropy.varint import write_varint, write_varints

QUICK = settings(max_examples=60, deadline=None)
COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=15)


def code_bits(counts, freq) -> float:
    counts, freq = np.asarray(counts, float), np.asarray(freq, float)
    return float(-(counts * np.log2(freq / freq.sum())).sum())


@QUICK
@given(COUNTS)
def test_normalised_counts_are_a_distribution(counts):
    freq = normalize_counts(np.array(counts), 16)
    assert freq.sum() == 16
    assert freq.min() >= 1


@pytest.mark.parametrize("counts", [(5, 1, 1), (100, 1, 0), (3, 3, 2), (1000, 500, 1), (0, 0, 0), (7, 90, 2)])
def test_normalised_counts_give_the_shortest_code(counts):
    """Against every table of that sum; the divisor rule may miss the optimum by a rounding of the logarithm."""
    best = min(code_bits(counts, freq) for freq in itertools.product(range(1, 17), repeat=3) if sum(freq) == 16)
    assert code_bits(counts, normalize_counts(np.array(counts), 16)) <= best * 1.01 + 1e-9


def handed_out_one_by_one(counts, total):
    """The rule itself, with unbounded integers: units go to the largest quotient, or come from the smallest."""
    freq = [max(1, c * total // max(sum(counts), 1)) for c in counts]
    while sum(freq) < total:
        freq[max(range(len(freq)), key=lambda s: (Fraction(counts[s], 2 * freq[s] + 1), -s))] += 1
    while sum(freq) > total:
        most = [s for s in range(len(freq)) if freq[s] > 1]
        freq[min(most, key=lambda s: (Fraction(counts[s], 2 * freq[s] - 1), s))] -= 1
    return freq


@QUICK
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**40)), min_size=1, max_size=30), st.integers(5, 10))
@example([2**31 - 1] + 28 * [0], 5)
@example([0, 0, 0], 8)
@example([7, 7, 7, 7, 7], 10)
def test_units_of_frequency_go_where_they_are_worth_most(counts, precision):
    expected = handed_out_one_by_one(counts, 1 << precision)
    assert normalize_counts(np.array(counts), 1 << precision).tolist() == expected


@QUICK
@given(COUNTS)
def test_normalisation_loses_little_at_12_bits(counts):
    total = sum(counts)
    if total:
        p = np.array(counts) / total
        entropy = float(-(p[p > 0] * np.log2(p[p > 0])).sum())
        excess = code_bits(counts, normalize_counts(np.array(counts), 4096)) / total - entropy
        assert -1e-9 <= excess < 0.01


@pytest.mark.parametrize("counts", [np.ones(17, int), np.array([-1, 2]), np.zeros(0, int)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="at most 16"):
        normalize_counts(counts, 16)


def test_escape_is_last_and_counts():
    table = from_counts(np.array([1, 1]), 5, 8, escape_count=2)
    assert table.freq.tolist() == [64, 64, 128]
    assert int(table.offset) == 5


def test_from_samples_leaves_outliers_to_the_escape():
    q = np.concatenate([np.random.default_rng(0).integers(-2, 3, 100_000), [10**9, -(10**9), 5000]])
    table = from_samples(q)
    assert (int(table.offset), table.num_symbols) == (-2, 6)
    assert from_samples(np.arange(1000), max_symbols=16).num_symbols <= 16
    assert from_samples(np.zeros(0, int)).freq.tolist() == [4096]
    assert from_samples(np.full(9, -(2**31))).freq.tolist() == [4095, 1]


def test_from_samples_keeps_what_pays():
    q = np.repeat(np.arange(-3, 4), [2, 50, 900, 4000, 900, 50, 2])
    table = from_samples(q)
    assert int(table.offset) == -3
    assert table.num_symbols == 8


def test_stack_keeps_tables_and_pads_before_the_escape():
    tables = [from_counts(np.ones(n, int), n, 8) for n in (0, 1, 5)]
    stacked = stack(tables)
    assert stacked.freq.shape == (3, 6)
    for row, table in zip(stacked.freq, tables):
        assert row[: table.num_symbols - 1].tolist() == table.freq[:-1].tolist()
        assert row[-1] == table.freq[-1]
    with pytest.raises(ValueError, match="one precision"):
        stack([from_counts(np.ones(1, int), 0, 8), from_counts(np.ones(1, int), 0, 9)])
    with pytest.raises(ValueError, match="at least one"):
        stack([])


def test_cost_bits_are_finite_code_lengths():
    table = stack([from_counts(np.array([8, 4, 3]), 0, 4), from_counts(np.array([1]), 0, 4)])
    costs = np.asarray(cost_bits(table))
    np.testing.assert_allclose(costs[0, :3], 4 - np.log2(np.asarray(table.freq)[0, :3]))
    np.testing.assert_allclose(costs[:, 3], 4 - np.log2(np.asarray(table.freq)[:, 3]) + ESCAPE_BITS)
    assert costs[1, 1] == costs[1, 3]


def test_costs_on_the_host_are_the_same_and_compiled_once_for_many_widths(caplog):
    def tables(width):
        return stack([from_counts(np.arange(1, width), 0, 8), from_counts(np.array([3]), 2, 8)])

    for width in (35, 64):
        np.testing.assert_array_equal(host_cost_bits(tables(width)), cost_bits(tables(width)))
    others = [tables(width) for width in (37, 50, 61)]
    with caplog.at_level("WARNING", "jax"), jax.log_compiles():
        assert [host_cost_bits(other).shape for other in others] == [(2, 37), (2, 50), (2, 61)]
    assert not [record for record in caplog.messages if "Compiling jit(log2)" in record]


@QUICK
@given(st.lists(st.tuples(COUNTS, st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=4), st.integers(5, 16))
def test_bytes_round_trip(specs, precision):
    tables = stack([from_counts(np.array(counts), offset, precision) for counts, offset in specs])
    data = to_bytes(tables)
    again = from_bytes(data)
    np.testing.assert_array_equal(again.offset, tables.offset)
    np.testing.assert_array_equal(again.freq.sum(1), 1 << precision)
    for row, source in zip(again.freq, tables.freq):
        assert [f for f in row.tolist() if f] == [f for f in source.tolist() if f]
    assert to_bytes(again) == data


def test_bytes_are_compact():
    rng = np.random.default_rng(0)
    table = from_samples(np.round(rng.standard_normal(100_000)).astype(int))
    assert len(to_bytes(stack([table] * 64))) < 64 * 18


@QUICK
@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_tables_or_a_value_error(data):
    try:
        tables = from_bytes(data)
    except ValueError:
        return
    assert (np.asarray(tables.freq, np.int64).sum(-1) == 1 << tables.precision).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "announced"),
        (b"\x00\x01\x00\x00", "precision"),
        (b"\x11\x01\x00\x00", "precision"),
        (b"\x0c" + b"\xff" * 9 + b"\x01", "32 bits"),
        (b"\x0c" + write_varint(2**32 - 1) + b"\x00\x00", "tables are announced"),
        (b"\x0c\x01\x00" + write_varint(2**32 - 1), "too many"),
        (b"\x0c\x01\x00\x02" + write_varints(np.array([4000, 96])), "frequencies sum to 4096"),
        (b"\x04\x01\x00\x01\x07\x00", "left over"),
    ],
)
def test_malformed_bytes_are_refused_with_the_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        from_bytes(data)


def test_tables_check_themselves():
    with pytest.raises(ValueError, match="must sum to"):
        FreqTable(jnp.array([3, 4], jnp.uint32), jnp.int32(0), 3)
    with pytest.raises(ValueError, match="must sum to"):
        FreqTable(jnp.array([8, 0], jnp.uint32), jnp.int32(0), 3)
    with pytest.raises(ValueError, match="1 to 16"):
        from_counts(np.ones(2, int), 0, 17)


def test_tables_are_pytrees():
    tables = stack([from_counts(np.ones(2, int), 0, 4)] * 2)
    first = jax.tree.map(lambda x: x[0], tables)
    assert first.precision == 4
    assert first.freq.shape == (3,)
