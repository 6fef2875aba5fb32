"""Every codec: error bounds, exact integers, counted bits, packing, and bad arguments."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax._pytree import pytree_dataclass
from occ_jax.codec import (
    FormatError,
    code_transform,
    decode_indices,
    decode_tensor,
    decode_tensors,
    decode_transform,
    encode_affine,
    encode_raw,
    encode_tensor,
    encode_transform,
    stored_transform,
)
from occ_jax.codec.integers import pack_bits, unpack_bits
from occ_jax.codec.tensor import canonical_json, matrix_shape, shorten
from occ_jax.quantization import Affine, DeadZone, Quantizer, Uniform, fit_affine
from occ_jax.quantization.codebook import codebook_to_bytes
from occ_jax.transforms import DCT, AlongAxis, hadamard, random_hadamard, random_rotation

RNG = np.random.default_rng(0)


@pytree_dataclass
class Truncated(Quantizer):
    """A rounding rule that the library does not know, with a shift of its reconstruction points."""

    step: jax.Array
    shift: jax.Array

    def quantize(self, y):
        return jnp.trunc(y / self.step).astype(jnp.int32)

    def dequantize(self, q):
        return self.step * q.astype(self.step.dtype) + self.shift

    def relax(self, y, *, key):
        return y / self.step


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=30))
def test_packed_bits_are_the_bits_in_order(width, values):
    values = [value % 2**width for value in values]
    packed = pack_bits(np.array(values, np.int64), width)
    assert len(packed) == (len(values) * width + 7) // 8
    number = int.from_bytes(packed, "little")
    assert number == sum(value << (width * i) for i, value in enumerate(values))
    assert unpack_bits(packed, len(values), width).tolist() == values


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (4, 0), (0, 4)])
def test_uniform_tensors_of_any_shape(shape):
    w = np.array(RNG.standard_normal(shape), np.float32)
    coded = encode_tensor(w, Uniform(jnp.array(0.125)))
    w_hat = decode_tensor(coded)
    assert w_hat.shape == shape
    assert w_hat.dtype == np.float32
    assert np.all(np.abs(w - w_hat) <= 0.0625 + 1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [1, 4, 7, 100, "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_affine_tensors_decode_to_what_the_quantizer_says(bits, group, symmetric):
    w = RNG.standard_normal((6, 13)).astype(np.float32)
    quantizer = fit_affine(jnp.asarray(w), bits, group_size=group, symmetric=symmetric)
    coded = encode_tensor(w, quantizer)
    np.testing.assert_array_equal(decode_indices([coded])[0], quantizer.quantize(jnp.asarray(w)))
    expected = quantizer.dequantize(quantizer.quantize(jnp.asarray(w)))
    np.testing.assert_array_equal(decode_tensor(coded), expected)
    side = (len(coded.sections["scales"]) + len(coded.sections["zero_points"])) * 8
    assert quantizer.side_info_bits <= side < quantizer.side_info_bits + 8
    assert len(coded.sections["indices"]) == (6 * 13 * bits + 7) // 8


@pytest.mark.parametrize("shape", [(9,), (2, 3, 8), (0, 4), (4, 0)])
def test_affine_tensors_of_other_ranks(shape):
    w = RNG.standard_normal(shape).astype(np.float32)
    for group in (4, "channel", "tensor"):
        quantizer = fit_affine(jnp.asarray(w), 4, group_size=group)
        expected = quantizer.dequantize(quantizer.quantize(jnp.asarray(w)))
        np.testing.assert_array_equal(decode_tensor(encode_tensor(w, quantizer)), expected)


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_raw_values(dtype, digits, shape):
    x = np.array(RNG.standard_normal(shape), np.float32)
    coded = encode_raw(x, dtype)
    got = decode_tensor(coded)
    assert got.shape == shape
    np.testing.assert_allclose(got, x, rtol=2.0**-digits)
    assert coded.num_bytes == x.size * (4 if dtype == "float32" else 2)


def test_a_rounded_rotation_is_rounded_once():
    """The decoder's basis is the one in which the tensor was quantized: nothing is lost but the quantization error."""
    w = RNG.standard_normal((40, 64)).astype(np.float32)
    right = random_rotation(64, key=jax.random.key(1))
    step = 1e-3
    coded = encode_tensor(w, Uniform(jnp.asarray(step, jnp.float32)), right=right, matrix_bits=3)
    error = decode_tensor(coded) - w
    assert np.sqrt(np.mean(error**2)) < 1.05 * step / np.sqrt(12)


def test_stored_transforms_are_undone():
    w = RNG.standard_normal((8, 12)).astype(np.float32)
    key = jax.random.key(1)
    coded = encode_tensor(w, Uniform(jnp.array(0.01)), left=random_hadamard(8, key=key), right=DCT())
    error = decode_tensor(coded) - w
    # Orthonormal on both sides: the squared error is that of the coefficients, at most (step / 2)^2 each.
    assert np.mean(error**2) <= 0.005**2
    assert np.mean(error**2) == pytest.approx(0.01**2 / 12, rel=0.4)
    assert coded.spec["left"]["name"] == "hadamard"
    assert len(coded.sections["transforms"]) == 1


def test_a_transform_that_is_coded_before_is_stored_in_the_same_bytes():
    """And coded once: what stores it a second time only copies."""
    w = RNG.standard_normal((6, 32)).astype(np.float32)
    right = random_rotation(32, key=jax.random.key(2))
    once = code_transform(right, matrix_bits=3)
    promised = stored_transform(right, matrix_bits=3)
    np.testing.assert_array_equal(once.decoded().matrix, promised.matrix)
    quantizer = fit_affine(promised.forward(jnp.asarray(w)), 8, group_size=16)
    q = np.asarray(quantizer.quantize(promised.forward(jnp.asarray(w))))
    given = encode_affine(q, quantizer, right=once, matrix_bits=9)
    expected = encode_affine(q, quantizer, right=right, matrix_bits=3)
    assert (given.spec, given.sections) == (expected.spec, expected.sections)
    assert given.sections["transforms"] == once.data
    with pytest.raises(ValueError, match="along_axis"):
        encode_affine(q, quantizer, right=code_transform(AlongAxis(DCT(), 0)))


def test_affine_in_other_coordinates():
    w = RNG.standard_normal((8, 16)).astype(np.float32)
    y = hadamard(16).forward(jnp.asarray(w))
    quantizer = fit_affine(y, 8, group_size=16)
    w_hat = decode_tensor(encode_tensor(w, quantizer, right=hadamard(16)))
    expected = hadamard(16).inverse(quantizer.dequantize(quantizer.quantize(y)))
    np.testing.assert_allclose(w_hat, expected, atol=1e-6)


def test_bits_count_everything():
    w = RNG.standard_normal((20, 30)).astype(np.float32)
    coded = encode_tensor(w, Uniform(jnp.array(0.25)), right=random_hadamard(30, key=jax.random.key(0)))
    assert coded.codebook is not None
    spec = json.dumps(dict(coded.spec), separators=(",", ":"), sort_keys=True)
    expected = len(spec) + len("[20,30]") + len(codebook_to_bytes(coded.codebook))
    expected += sum(len(section) for section in coded.sections.values())
    assert coded.num_bits == 8 * expected
    assert coded.num_elements == 600


def test_rate_of_a_gaussian_matches_theory():
    """A uniform quantizer with an ideal coder spends h(X) - log2(step) bits; real bytes come within one percent."""
    w = RNG.standard_normal((400, 500)).astype(np.float32)
    for step in (0.25, 0.5):
        coded = encode_tensor(w, Uniform(jnp.array(step)))
        entropy = 0.5 * np.log2(2 * np.pi * np.e) - np.log2(step)
        assert 8 * coded.num_bytes / w.size == pytest.approx(entropy, rel=0.01)


def test_a_dead_zone_saves_bits():
    w = RNG.laplace(size=(100, 100)).astype(np.float32)
    uniform = encode_tensor(w, Uniform(jnp.array(1.0)))
    dead = encode_tensor(w, DeadZone(jnp.array(1.0), jnp.array(0.2)))
    assert dead.num_bytes < 0.95 * uniform.num_bytes
    assert np.abs(decode_tensor(dead) - w).max() <= 0.8 + 1e-5


def test_a_rounding_rule_of_ones_own_needs_no_registration():
    w = RNG.normal(size=(20, 30)).astype(np.float32)
    coded = encode_tensor(w, Truncated(jnp.array(0.25), jnp.array(0.0)))
    np.testing.assert_array_equal(decode_tensor(coded), np.trunc(w / 0.25) * np.float32(0.25))


def test_codecs_mix_in_one_call(kinds):
    together = decode_tensors(list(kinds.values()))
    for coded, w in zip(kinds.values(), together):
        np.testing.assert_array_equal(decode_tensor(coded), w)


def test_a_transform_is_stored_by_itself():
    given = random_hadamard(24, key=jax.random.key(3))
    coded = encode_transform(given, 24)
    assert coded.num_bytes == 3
    x = jnp.arange(24.0)
    np.testing.assert_array_equal(decode_transform(coded).forward(x), given.forward(x))
    with pytest.raises(FormatError, match="transform"):
        decode_tensor(coded)
    with pytest.raises(FormatError, match="is no transform"):
        decode_transform(encode_raw(np.ones(3, np.float32)))
    with pytest.raises(FormatError, match="damaged"):
        decode_transform(dataclasses.replace(coded, shape=(25,)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    w = np.array([[1.0, bad]], np.float32)
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode_tensor(w, Uniform(jnp.array(0.5)))
    with pytest.raises(ValueError, match="only finite"):
        encode_raw(w)


def test_values_outside_a_dtype_are_refused():
    with pytest.raises(ValueError, match="float16 cannot hold"):
        encode_raw(np.array([1e6], np.float32), "float16")
    with pytest.raises(ValueError, match="int8"):
        encode_raw(np.zeros(1, np.float32), "int8")


def test_quantizers_that_a_file_cannot_hold_are_refused():
    w = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="encode_lattice"):
        encode_tensor(w, Uniform(jnp.ones((3, 1))))
    with pytest.raises(ValueError, match="Truncated reconstructs other points"):
        encode_tensor(w, Truncated(jnp.array(0.25), jnp.array(0.1)))
    with pytest.raises(ValueError, match="do not fit"):
        encode_tensor(w, Affine(jnp.ones((3, 7), jnp.float16), None, bits=4, group_size=2))


def test_raw_values_have_no_indices(kinds):
    with pytest.raises(FormatError, match="no indices"):
        decode_indices([kinds["norm"]])


@pytest.mark.parametrize(
    ("kind", "changes", "cause"),
    [
        ("norm", {"dtype": "float8"}, "dtype"),
        ("norm", {"dtype": 4}, "dtype"),
        ("norm", {"dtype": "float32"}, "needs 80"),
        ("norm", {"codec": "zip"}, "newer occ_jax"),
        ("norm", {"codec": None}, "codec"),
        ("affine", {"bits": 9}, "bits"),
        ("affine", {"bits": 4}, "needs"),
        ("affine", {"bits": True}, "bits"),
        ("affine", {"group_size": 0}, "group_size"),
        ("affine", {"group_size": 2**60}, "group_size"),
        ("affine", {"symmetric": 1}, "symmetric"),
        ("affine", {"shared": True}, "scales"),
        ("trellis.0", {"rows_per_lane": 0}, "rows_per_lane"),
        ("trellis.0", {"rows_per_lane": 10}, "do not fit"),
        ("trellis.0", {"rows_per_lane": 1}, "damaged"),
        ("trellis.0", {"resolution": 2**60}, "resolution"),
        ("trellis.0", {"class_shift": 0.5}, "class_shift"),
    ],
)
def test_specs_that_contradict_their_bytes_are_refused(kind, changes, cause, kinds):
    coded = kinds[kind]
    with pytest.raises(FormatError, match=cause):
        decode_tensor(dataclasses.replace(coded, spec={**coded.spec, **changes}))


@pytest.mark.parametrize("kind", ["affine", "trellis.0", "norm"])
@pytest.mark.parametrize("shape", [(2**60,), (2**30, 2**30), (0,), (10**6,), (9, 15)])
def test_shapes_that_contradict_their_bytes_are_refused(kind, shape, kinds):
    with pytest.raises(FormatError, match="damaged"):
        decode_tensor(dataclasses.replace(kinds[kind], shape=shape))


@pytest.mark.parametrize("kind", ["affine", "affine.dct", "rotated", "trellis.0", "escapes", "norm"])
def test_cut_sections_are_refused(kind, kinds):
    coded = kinds[kind]
    for name, section in coded.sections.items():
        if section:
            with pytest.raises(FormatError, match="damaged"):
                decode_tensor(dataclasses.replace(coded, sections={**coded.sections, name: section[:-1]}))


def test_scales_of_zero_are_refused(kinds):
    coded = kinds["affine"]
    scales = np.frombuffer(coded.sections["scales"], np.float16).copy()
    scales[1] = np.nan
    with pytest.raises(FormatError, match="scale"):
        decode_tensor(dataclasses.replace(coded, sections={**coded.sections, "scales": scales.tobytes()}))


def test_small_things_of_error_messages():
    assert canonical_json({"b": "é", "a": [True, 1]}) == b'{"a":[true,1],"b":"\\u00e9"}'
    assert shorten(2**100) == "2**100 or more"
    assert len(shorten("x" * 1000)) == 60
    assert matrix_shape((2, 3, 0)) == (6, 0)
