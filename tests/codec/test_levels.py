"""Levels: exact round trips, code length near the entropy, integer classes, and every malformed byte string refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.codec.levels import Levels, read_levels, write_levels
from occ_jax.entropy.varint import ByteReader, unzigzag, write_varint, zigzag
from occ_jax.quantization.scales import LARGEST_LEVEL, scale_classes

vectors = st.lists(st.integers(-LARGEST_LEVEL, LARGEST_LEVEL), max_size=60).map(lambda v: np.array(v, np.int32))


def read_all(data: bytes, count: int) -> np.ndarray:
    reader = ByteReader(data, "levels")
    levels = read_levels(reader, count)
    reader.finish()
    return levels


@settings(max_examples=200, deadline=None)
@given(vectors)
def test_any_vector_survives(vector):
    np.testing.assert_array_equal(read_all(write_levels(vector), vector.size), vector)


@settings(max_examples=100, deadline=None)
@given(st.lists(vectors, min_size=2, max_size=4))
def test_vectors_follow_one_another(parts):
    reader = ByteReader(b"".join(write_levels(part) for part in parts), "levels")
    for part in parts:
        np.testing.assert_array_equal(read_levels(reader, part.size), part)
    reader.finish()


def plain_rice(data: bytes, count: int) -> list[int]:
    """Bit by bit, as the specification says it."""
    reader = ByteReader(data, "levels")
    parameter, centre = int(reader.take(1)[0]), int(unzigzag(reader.varints(1))[0])
    if parameter == 255:
        return [centre] * count
    code = reader.take(reader.varint()).tolist()
    bits = [(byte >> i) & 1 for byte in code for i in range(8)]
    quotients, position = [], 0
    for _ in range(count):
        start = position
        while not bits[position]:
            position += 1
        quotients.append(position - start)
        position += 1
    levels = []
    for quotient in quotients:
        remainder = sum(int(bits[position + i]) << i for i in range(parameter))
        position += parameter
        levels.append(centre + int(unzigzag(np.array((quotient << int(parameter)) | remainder))))
    return levels


@pytest.mark.parametrize("spread", [0, 0.4, 2, 17, 900])
def test_agrees_with_a_bitwise_reader(spread):
    vector = np.rint(np.random.default_rng(1).standard_normal(200) * spread - 5).astype(np.int32)
    assert plain_rice(write_levels(vector), 200) == vector.tolist()


@pytest.mark.parametrize("spread", [0.5, 1, 4, 16, 60])
def test_code_length_is_near_the_entropy_of_a_gaussian(spread):
    n = 20_000
    vector = np.rint(np.random.default_rng(2).standard_normal(n) * spread).astype(np.int32)
    p = np.unique(vector, return_counts=True)[1] / n
    entropy = -(p * np.log2(p)).sum()
    assert entropy <= 8 * len(write_levels(vector)) / n <= entropy + 0.35


def test_a_constant_vector_costs_two_bytes_at_any_length():
    for count in (1, 576, 100_000):
        assert len(write_levels(np.full(count, -7))) == 2


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "are left"),
        (b"\x00", "announced"),
        (b"\x10\x00\x01\x01", "Rice parameter of 16"),
        (b"\x00\x00\x01\x01", "does not fill"),  # one level of three
        (b"\x00\x00\x02\x07\x00", "does not fill"),  # a byte too many
        (b"\x00\x00\x01\x0f", "does not fill"),  # a fill bit that is set
        (b"\xff" + write_varint(int(zigzag(np.array(LARGEST_LEVEL + 1)))), "outside"),
        (b"\x00" + write_varint(int(zigzag(np.array(LARGEST_LEVEL)))) + b"\x01\x2c", "outside"),
    ],
)
def test_malformed_bytes_are_refused(data, cause):
    with pytest.raises(ValueError, match=cause):
        read_all(data, 3)


def some_levels(rows=5, cols=7, **changes) -> Levels:
    rng = np.random.default_rng(0)
    sizes = {"step_rows": rows, "step_cols": cols, "class_rows": rows, "class_cols": cols}
    fields = {name: rng.integers(-20, 20, size).astype(np.int32) for name, size in sizes.items()}
    return Levels(**{"base": 0.03, **fields, **changes})


@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize(("resolution", "class_shift"), [(1, 0), (8, 1), (64, 8)])
def test_levels_round_trip(rows, cols, resolution, class_shift):
    levels = some_levels(rows, cols, resolution=resolution, class_shift=class_shift)
    again = Levels.from_bytes(levels.to_bytes(), (rows, cols), resolution=resolution, class_shift=class_shift)
    assert np.float32(levels.base) == again.base
    for name in ("step_rows", "step_cols", "class_rows", "class_cols"):
        np.testing.assert_array_equal(getattr(again, name), getattr(levels, name))


def test_steps_are_powers_of_two_on_the_grid():
    levels = some_levels(resolution=8)
    rows, cols = levels.steps()
    for i, row in enumerate(levels.step_rows):
        for j, col in enumerate(levels.step_cols):
            expected = float(np.float32(0.03)) * 2 ** ((int(row) + int(col)) / 8)
            assert math.isclose(float(rows[i]) * float(cols[j]), expected, rel_tol=3e-7)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("num_classes", [1, 2, 6, 48])
def test_classes_agree_with_the_quantizer_and_with_integer_arithmetic(shift, num_classes):
    levels = some_levels(class_shift=shift)
    classes = levels.classes(num_classes)
    for i, a in enumerate(levels.class_rows.tolist()):
        for j, b in enumerate(levels.class_cols.tolist()):
            assert classes[i, j] == min(max((a + b) // 2**shift, 0), num_classes - 1)
    np.testing.assert_array_equal(
        classes, scale_classes(*map(jnp.asarray, (levels.class_rows, levels.class_cols)), num_classes, shift=shift)
    )
    np.testing.assert_array_equal(levels.classes(num_classes, slice(2, 4)), classes[2:4])


def test_extreme_levels_do_not_wrap():
    big = np.full(2, LARGEST_LEVEL, np.int32)
    levels = some_levels(2, 2, class_rows=big, class_cols=big)
    assert levels.classes(9).min() == 8
    assert some_levels(2, 2, class_rows=-big, class_cols=-big).classes(9).max() == 0


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"base": 0.0}, "base step"),
        ({"base": -1.0}, "base step"),
        ({"base": math.nan}, "base step"),
        ({"base": 1e39}, "base step"),
        ({"base": 1e-60}, "base step"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": 65}, "resolution"),
        ({"class_shift": 9}, "class shift"),
        ({"step_rows": np.zeros(6, np.int32)}, "vectors|rows"),
        ({"class_cols": np.full(7, LARGEST_LEVEL + 1)}, "leave"),
    ],
)
def test_impossible_levels_are_refused(changes, cause):
    # Annotations are checked at run time here, and may refuse unequal lengths first.
    with np.errstate(over="ignore"), pytest.raises((ValueError, TypeError), match=cause):
        some_levels(**changes)


@pytest.mark.parametrize("level", [-8000, 8000])
def test_steps_outside_float32_are_refused(level):
    with np.errstate(over="ignore", under="ignore"), pytest.raises(ValueError, match="float32"):
        some_levels(step_rows=np.full(5, level, np.int32)).steps()
