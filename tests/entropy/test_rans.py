"""The jitted coder: lossless on anything, byte-equal to its plain-Python twin, close to the ideal code length."""

import dataclasses

import constriction
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occ_jax.entropy import (
    FreqTable,
    Streams,
    compact,
    decode,
    decode_adaptive,
    decode_lanes,
    encode,
    from_counts,
    from_samples,
    ideal_bits,
    pack,
    rans,
    rans_numpy,
    stack,
    unpack,
)
from occ_jax.entropy.rans_scan import BLOCK_STEPS, pop_lookup

LANES, STEPS = 4, BLOCK_STEPS + 9  # one whole block and a short one
INT32 = st.integers(-(2**31), 2**31 - 1)
REUSE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fixed_width(table: FreqTable, num_symbols: int = 12) -> FreqTable:
    """The same table with unused symbols before its escape, so that all examples share one compilation."""
    freq = np.zeros(num_symbols, np.uint32)
    freq[: table.num_symbols - 1], freq[-1] = table.freq[:-1], table.freq[-1]
    return FreqTable(jnp.asarray(freq), table.offset, table.precision)


TABLES = st.lists(st.tuples(st.lists(st.integers(0, 10**6), max_size=11), st.integers(-8, 4)), min_size=3, max_size=3)
ROWS = st.lists(st.lists(st.one_of(st.integers(-9, 9), INT32), max_size=STEPS), min_size=LANES, max_size=LANES)


def round_trip(q, tables, contexts=None, lengths=None):
    lengths = np.full(len(q), q.shape[1], np.int32) if lengths is None else lengths
    contexts = None if contexts is None else jnp.asarray(contexts)
    data = pack(encode(jnp.asarray(q), tables, contexts, jnp.asarray(lengths)))
    decoded = decode(unpack(data, lengths), tables, num_steps=q.shape[1], contexts=contexts)
    np.testing.assert_array_equal(decoded, np.where(np.arange(q.shape[1]) < lengths[:, None], q, 0))
    return data


@REUSE
@given(TABLES, ROWS, st.integers(0, 99))
def test_any_input_comes_back_and_the_bytes_are_the_twins(specs, rows, seed):
    """Tables that may or may not hold the values, contexts, ragged lanes."""
    tables = stack([fixed_width(from_counts(np.array(counts, int), offset, 12)) for counts, offset in specs])
    contexts = np.random.default_rng(seed).integers(0, 3, (LANES, STEPS))
    lengths = np.array([len(row) for row in rows], np.int32)
    q = np.array([row + [0] * (STEPS - len(row)) for row in rows], np.int32)
    data = pack(encode(jnp.asarray(q), tables, jnp.asarray(contexts), jnp.asarray(lengths)))
    assert data == rans_numpy.encode(q, tables, contexts, lengths)
    for row, lane, n in zip(q, rans_numpy.decode(data, tables, lengths, contexts), lengths):
        np.testing.assert_array_equal(lane, row[:n])
    # Decoding from the padded streams shares a compilation; escapes of another number would not.
    streams = encode(jnp.asarray(q), tables, jnp.asarray(contexts), jnp.asarray(lengths), max_escapes=LANES * STEPS)
    decoded = decode(streams, tables, num_steps=STEPS, contexts=jnp.asarray(contexts))
    np.testing.assert_array_equal(decoded, np.where(np.arange(STEPS) < lengths[:, None], q, 0))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (2, 2 * BLOCK_STEPS)])
def test_every_shape(shape, gaussian_indices):
    q = gaussian_indices(*shape)
    data = round_trip(q, from_counts(np.array([1, 2, 1]), -1))
    assert data == rans_numpy.encode(q, from_counts(np.array([1, 2, 1]), -1))


def test_extreme_values_escape():
    q = np.array([[2**31 - 1, -(2**31), 0, -1, 2**31 - 2, -(2**31) + 1]], np.int32)
    for offset in (0, 2**31 - 3, -(2**31)):
        assert round_trip(q, from_counts(np.array([5, 5]), offset)) == rans_numpy.encode(
            q, from_counts(np.array([5, 5]), offset)
        )


def test_a_table_of_nothing_but_the_escape(gaussian_indices):
    q = gaussian_indices(3, 20, scale=50.0)
    table = from_counts(np.zeros(0, int), 0)
    assert table.num_symbols == 1
    lengths = np.array([20, 7, 0], np.int32)
    assert round_trip(q, table, lengths=lengths) == rans_numpy.encode(q, table, lengths=lengths)


def test_an_escape_without_a_value_is_damage(gaussian_indices):
    q = gaussian_indices(2, 60)
    table = from_samples(q, 12)
    q[1, 7] = 2**30
    data = encode(jnp.asarray(q), table)
    assert data.escapes.size == 1
    bare = dataclasses.replace(
        data,
        escapes=data.escapes[:0],
        escape_starts=jnp.zeros_like(data.escape_starts),
        escape_counts=jnp.zeros_like(data.escape_counts),
    )
    with pytest.raises(ValueError, match="corrupted"):
        decode(bare, table, num_steps=60)


@pytest.mark.parametrize("num_symbols", [257, 65_537, 70_000])
def test_symbols_of_wide_tables_are_whole(num_symbols):
    freq = np.zeros(num_symbols, np.uint32)
    freq[[3, num_symbols - 2, num_symbols - 1]] = (1 << 11, (1 << 11) - 1, 1)
    table = FreqTable(jnp.asarray(freq), jnp.int32(0), 12)
    q = np.random.default_rng(0).choice([3, num_symbols - 2], (2, 50)).astype(np.int32)
    round_trip(q, table)


def test_a_certain_symbol_costs_almost_nothing():
    q = np.full((1, 5000), 3, np.int32)
    assert len(round_trip(q, from_samples(q, 16))) < 16


@pytest.mark.parametrize("precision", [1, 8, 12, 14, 16])
def test_every_precision_packed_or_not(precision, gaussian_indices):
    q = gaussian_indices(2, 90, scale=0.4 if precision == 1 else 3.0)
    table = from_samples(q, precision, max_symbols=300)
    assert pop_lookup(table).is_packed == (2 * precision + (max(table.num_symbols, 2) - 1).bit_length() <= 32)
    assert round_trip(q, table) == rans_numpy.encode(q, table)


def test_many_symbols_use_wide_lookups(gaussian_indices):
    q = gaussian_indices(2, 400, scale=300.0)
    table = from_samples(q, 14, max_symbols=4096)
    assert table.num_symbols > 256
    assert not pop_lookup(table).is_packed
    assert round_trip(q, table) == rans_numpy.encode(q, table)


@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0])
def test_size_is_near_the_ideal_and_constrictions(scale, gaussian_indices):
    lanes = 8
    q = gaussian_indices(lanes, 16_384, scale=scale)
    table = from_samples(q)
    streams = compact(encode(jnp.asarray(q), table))
    bits = 8 * len(pack(streams))
    ideal = float(ideal_bits(jnp.asarray(q), table))
    assert ideal - 1 <= bits <= 1.005 * ideal + 64 * lanes
    probabilities = np.asarray(table.freq, np.float32) / 2**table.precision
    model = constriction.stream.model.Categorical(probabilities, perfect=True)
    symbols = np.where(np.isin(q, np.arange(table.num_symbols - 1) + int(table.offset)), q - int(table.offset), -1)
    symbols = np.where(symbols < 0, table.num_symbols - 1, symbols).astype(np.int32)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols.reshape(-1), model)
    # constriction has one lane and no escaped values: compare the words, and a state for each lane.
    assert abs(16 * (streams.words.size + lanes) / coder.num_bits() - 1) < 0.002


def test_contexts_pay(gaussian_indices, fitted_tables):
    contexts = np.random.default_rng(0).integers(0, 8, (4, 4096)).astype(np.uint8)
    q = np.round(gaussian_indices(4, 4096, scale=1.0) * 2.0 ** (contexts.astype(int) - 3)).astype(np.int32)
    tables = fitted_tables(q, contexts, 8, 12)
    together = 8 * len(round_trip(q, tables, contexts))
    assert together <= 1.005 * float(ideal_bits(jnp.asarray(q), tables, jnp.asarray(contexts))) + 64 * 4
    assert together < 0.9 * 8 * len(round_trip(q, from_samples(q)))


def test_groups_of_lanes_are_only_a_matter_of_speed(monkeypatch, gaussian_indices):
    q = gaussian_indices(7, 80)
    lengths = np.array([80, 3, 80, 0, 79, 80, 80], np.int32)
    table = from_samples(q[:, :40])
    expected = round_trip(q, table, lengths=lengths)
    monkeypatch.setattr(rans, "MAX_GROUP_LANES", 3)
    assert round_trip(q, table, lengths=lengths) == expected


def test_jit_gives_the_same_streams(gaussian_indices):
    q = jnp.asarray(gaussian_indices(3, 100, scale=2.0))
    table = from_samples(q, max_symbols=6)
    eager, traced = encode(q, table), jax.jit(encode)(q, table)
    assert int(traced.escape_counts.sum()) > 0
    assert pack(eager) == pack(traced)
    decoded = jax.jit(lambda s: decode(s, table, num_steps=100))(traced)
    np.testing.assert_array_equal(decoded, q)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16])
def test_narrow_results(dtype, gaussian_indices):
    q = jnp.asarray(gaussian_indices(2, 70))
    table = from_samples(q)
    decoded = decode(encode(q, table), table, num_steps=70, dtype=dtype)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, q)


def test_adaptive_tables_follow_the_decoded_values(gaussian_indices, fitted_tables):
    """The table of each value is chosen by the parity of the running sum before it."""
    q = gaussian_indices(3, 150, scale=2.0)
    contexts = (np.cumsum(q, 1) - q) & 1
    tables = fitted_tables(q, contexts, 2, max_symbols=9)
    streams = encode(jnp.asarray(q), tables, jnp.asarray(contexts))
    total = jnp.zeros(3, jnp.int32)
    decoded, carry = decode_adaptive(
        streams, tables, total, lambda c, t: c & 1, lambda c, t, value: c + value, num_steps=150
    )
    np.testing.assert_array_equal(decoded, q)
    np.testing.assert_array_equal(carry, q.sum(1))
    outputs, _, intact = decode_lanes(
        streams, tables, total, lambda c, t, _: c & 1, lambda c, t, value: (c + value, 2 * value), num_steps=150
    )
    np.testing.assert_array_equal(outputs, 2 * q)
    assert intact.all()


def test_double_precision_mode_changes_nothing(gaussian_indices):
    q = gaussian_indices(2, 70, scale=2.0)
    table = from_samples(q, max_symbols=5)
    expected = round_trip(q, table)
    with jax.enable_x64(True):
        assert round_trip(q, from_samples(q, max_symbols=5)) == expected


def test_damage_is_reported(gaussian_indices):
    q = gaussian_indices(3, 200)
    table = from_samples(q)
    streams = compact(encode(jnp.asarray(q), table))
    for name, value in (("words", streams.words ^ 1), ("states", streams.states + 1), ("counts", streams.counts - 1)):
        damaged = Streams(**{**vars(streams), name: value})
        with pytest.raises(ValueError, match="do not end as they were begun"):
            decode(damaged, table, num_steps=200)
    with pytest.raises(ValueError, match="longest lane has 200"):
        decode(streams, table, num_steps=199)


def test_too_many_escapes_for_their_room_is_reported(gaussian_indices):
    q = jnp.asarray(gaussian_indices(2, 50, scale=9.0))
    with pytest.raises(ValueError, match="room for 2"):
        compact(encode(q, from_counts(np.ones(2, int), 0), max_escapes=2))


def test_lowers_everywhere(lowers_everywhere, gaussian_indices, fitted_tables):
    q = gaussian_indices(2, 70)
    contexts = q & 1
    tables = fitted_tables(q, contexts, 2)
    streams = compact(encode(jnp.asarray(q), tables, jnp.asarray(contexts)))
    lowers_everywhere(encode, jnp.asarray(q), tables, jnp.asarray(contexts))
    lowers_everywhere(lambda s, t, c: decode(s, t, num_steps=70, contexts=c), streams, tables, jnp.asarray(contexts))
    lowers_everywhere(ideal_bits, jnp.asarray(q), tables, jnp.asarray(contexts))


def test_the_coding_path_is_unsigned_32_bit_integers_only(gaussian_indices):
    """No float and nothing wider than 32 bits, so that every platform computes the same integers."""
    q = jnp.asarray(gaussian_indices(2, 70))
    table = from_samples(q)
    streams = encode(q, table)
    for f, args in ((encode, (q, table)), (lambda s, t: decode(s, t, num_steps=70), (streams, table))):
        text = jax.jit(f).lower(*args).as_text()
        assert not any(f"x{kind}>" in text or f"<{kind}>" in text for kind in ("f16", "bf16", "f32", "f64", "ui64"))
