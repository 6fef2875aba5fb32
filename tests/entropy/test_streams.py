"""The bytes of coded streams, and the variable-length integers in them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.entropy import compact, concatenate, decode, encode, from_samples, pack, unpack
from occ_jax.entropy.varint import ByteReader, num_varint_bytes, unzigzag, write_varint, write_varints, zigzag

QUICK = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="module")
def example():
    """Ragged lanes with escapes, their table and their bytes."""
    rng = np.random.default_rng(3)
    q = np.round(rng.standard_normal((3, 70)) * 4).astype(np.int32)
    lengths = np.array([70, 0, 41], np.int32)
    table = from_samples(q, max_symbols=9)
    return q, lengths, table, pack(encode(jnp.asarray(q), table, lengths=jnp.asarray(lengths)))


@QUICK
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_varints_round_trip(values):
    array = np.array(values, np.int64)
    data = write_varints(array)
    reader = ByteReader(data, "test")
    np.testing.assert_array_equal(reader.varints(len(values)), array)
    reader.finish()
    assert len(data) == num_varint_bytes(array).sum()


@QUICK
@given(st.integers(-(2**31), 2**31 - 1))
def test_zigzag_round_trips_and_orders_by_magnitude(value):
    code = int(zigzag(np.array(value)))
    assert code in (2 * abs(value), 2 * abs(value) - 1)
    assert int(unzigzag(np.array(code))) == value


@pytest.mark.parametrize("value", [-1, 2**32])
def test_varints_are_32_bits(value):
    with pytest.raises(ValueError, match="holds integers"):
        write_varint(value)


def test_reader_never_reads_past_the_end():
    reader = ByteReader(b"\x80\x80", "example")
    with pytest.raises(ValueError, match="malformed example"):
        reader.varint()
    with pytest.raises(ValueError, match="1152921504606846976 bytes are announced and 2 are left"):
        reader.take(2**60)
    with pytest.raises(ValueError, match="announced"):
        reader.varints(2**60)
    with pytest.raises(ValueError, match="longer than 32 bits"):
        ByteReader(b"\xff\xff\xff\xff\x7f", "example").varint()
    with pytest.raises(ValueError, match="longer than 32 bits"):
        ByteReader(b"\xff\xff\xff\xff\xff\x01", "example").varints(1)
    with pytest.raises(ValueError, match="2 bytes are left over"):
        reader.finish()


def test_unpack_gives_what_was_packed(example):
    q, lengths, table, data = example
    streams = unpack(data, lengths)
    assert pack(streams) == data
    source = compact(encode(jnp.asarray(q), table, lengths=jnp.asarray(lengths)))
    for name, value in vars(source).items():
        np.testing.assert_array_equal(getattr(streams, name), value, err_msg=name)


def test_a_lane_costs_little():
    q = np.zeros((64, 100), np.int32)
    table = from_samples(q)
    assert 8 * len(pack(encode(jnp.asarray(q), table))) <= 64 * 64


def test_concatenated_lanes_decode_in_one_call(example):
    q, lengths, table, data = example
    both = concatenate([unpack(data, lengths), encode(jnp.asarray(q), table)])
    decoded = np.asarray(decode(both, table, num_steps=70))
    np.testing.assert_array_equal(decoded[:3], np.where(np.arange(70) < lengths[:, None], q, 0))
    np.testing.assert_array_equal(decoded[3:], q)


def test_no_lanes_are_no_bytes():
    assert unpack(b"", np.zeros(0, np.int32)).num_lanes == 0
    with pytest.raises(ValueError, match="left over"):
        unpack(b"\x00", np.zeros(0, np.int32))


def test_damaged_bytes_are_refused_or_decode_to_some_integers(example):
    """Every single-byte change and every truncation: a ``ValueError`` or integers of the right shape, in little time."""
    _, lengths, table, data = example
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "unpacked": 0, "reported": 0}
    intact = unpack(data, lengths)
    sizes = (intact.words.size, intact.escapes.size)
    for at in range(len(data)):
        for mutated in (data[:at], data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]):
            try:
                streams = unpack(mutated, lengths)
            except ValueError as error:
                assert "malformed coded streams" in str(error)
                outcomes["refused"] += 1
                continue
            outcomes["unpacked"] += 1
            assert streams.words.size <= len(data)
            same_sizes = (streams.words.size, streams.escapes.size) == sizes  # one compilation for all
            if same_sizes:
                try:
                    decoded = decode(streams, table, num_steps=70)
                except ValueError as error:
                    assert "do not end as they were begun" in str(error)
                    outcomes["reported"] += 1
                else:  # the value behind an escape, or where a word ends and the next lane begins
                    assert decoded.shape == (3, 70)
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (write_varint(2**32 - 1) + b"\x00\x00", "more words than symbols"),
        (b"\x00\x00\x00" + b"\x00" * 9, "state below"),
        (b"\x05\x00\x00" + b"\xff" * 8, "bytes are announced"),
        (b"\x00\x00\x00" + b"\xff" * 8 + write_varint(2**32 - 1) + b"\x01\x01", "do not match"),
        (b"\x00\x00\x00" + b"\xff" * 8 + b"\x02\x01\x01\x00", "announced"),
        (b"\x00\x00\x00" + b"\xff" * 8 + b"\x00\x00", "left over"),
    ],
)
def test_lies_about_sizes_are_refused_before_anything_is_allocated(data, reason):
    with pytest.raises(ValueError, match=reason):
        unpack(data, np.array([9, 9], np.int32))
