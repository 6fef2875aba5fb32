"""Entropy-coded indices: exact for every trellis, shape and lane layout, alone and together; bad input refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.codec import (
    FormatError,
    Lattice,
    Levels,
    decode_indices,
    decode_tensor,
    decode_tensors,
    encode_lattice,
    encode_lattices,
    lane_coding,
    scalar_codebook,
    stored_offset,
    with_row_factors,
)
from occ_jax.codec import batch as batch_module
from occ_jax.codec import lattice as lattice_module
from occ_jax.codec.buckets import bucket, flat_bucket
from occ_jax.codec.lanes import Lanes
from occ_jax.codec.tensor import MAX_ELEMENTS_PER_BYTE
from occ_jax.entropy import rans
from occ_jax.quantization.trellis_coding import indices_from_symbols
from occ_jax.quantization.ungerboeck import STATE_COUNTS
from occ_jax.transforms import hadamard


@pytest.mark.parametrize("num_states", STATE_COUNTS)
def test_every_trellis_is_followed_exactly(num_states, make):
    q = make["path"]((11, 40), num_states)
    coded = encode_lattice(q, make["levels"]((11, 40)), make["codebook"](num_states), lane_symbols=100)
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 17), (64, 3), (3, 101)])
@pytest.mark.parametrize("num_states", [1, 8])
def test_matrices_of_any_size(shape, num_states, make):
    q = make["path"](shape, num_states)
    for lane_symbols in (50, 1 << 14):
        coded = encode_lattice(q, make["levels"](shape), make["codebook"](num_states), lane_symbols=lane_symbols)
        np.testing.assert_array_equal(decode_indices([coded])[0], q)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (0, 5), (5, 0), (2, 0, 3)])
def test_tensors_of_any_rank(shape, make):
    rows = int(np.prod(shape[:-1], dtype=int))
    matrix = (rows, shape[-1] if shape else 1)
    q = make["path"](matrix, 1).reshape(shape)
    coded = encode_lattice(q, make["levels"](matrix), make["codebook"](1))
    np.testing.assert_array_equal(decode_indices([coded])[0], q)
    assert decode_tensor(coded).shape == shape


def test_reconstruction_is_the_documented_formula(make):
    codebook, levels = make["codebook"](8), make["levels"]((9, 14))
    q = make["path"]((9, 14), 8)
    got = decode_tensor(encode_lattice(q, levels, codebook))
    shifts = np.asarray(codebook.shifts, np.float64)
    for i, j in itertools.product(range(9), range(14)):
        a = int(levels.class_rows[i]) + int(levels.class_cols[j])
        scale_class = min(max(a >> 1, 0), codebook.num_classes - 1)
        k = int(q[i, j]) >> 1
        shift = shifts[2 * scale_class + (int(q[i, j]) & 1), k + 4] / 64 if abs(k) <= 4 else 0.0
        step = 0.02 * 2 ** ((int(levels.step_rows[i]) + int(levels.step_cols[j])) / 8)
        assert got[i, j] == pytest.approx((int(q[i, j]) + shift) * step, rel=1e-6, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=24, max_size=24),
    lane_symbols=st.sampled_from([7, 12]),
)
def test_any_int32_survives(values, lane_symbols, make):
    q = np.array(values, np.int32).reshape(4, 6)
    coded = encode_lattice(q, make["levels"]((4, 6)), make["codebook"](1), lane_symbols=lane_symbols)
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


def test_escapes_on_a_trellis(make):
    k = make["path"]((5, 30), 1)
    k[1, 3], k[4, 29] = 70_000, -1_000_000
    q = np.asarray(indices_from_symbols(jnp.asarray(k), 32))
    coded = encode_lattice(q, make["levels"]((5, 30)), make["codebook"](32))
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


def test_more_escapes_than_the_first_guess(make):
    q = np.random.default_rng(0).integers(-(10**6), 10**6, (80, 70)).astype(np.int32)
    coded = encode_lattice(q, make["levels"]((80, 70)), make["codebook"](1))
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


@pytest.fixture
def compiled(monkeypatch):
    """No shortcut for small tensors: everything goes through the compiled coder."""
    for module in (batch_module, lane_coding):
        monkeypatch.setattr(module, "is_small", lambda *_: False)


@pytest.mark.parametrize("num_states", [1, 8])
def test_host_and_compiled_coder_agree_byte_for_byte(num_states, make, request):
    k = make["path"]((13, 33), 1)
    k[3, 3], k[12, 32], k[5, 0] = 70_000, -(2**29), 2**29
    q = np.asarray(indices_from_symbols(jnp.asarray(k), num_states))
    arguments = q, make["levels"]((13, 33)), make["codebook"](num_states)
    on_host = encode_lattice(*arguments, lane_symbols=100)
    request.getfixturevalue("compiled")
    jitted = encode_lattice(*arguments, lane_symbols=100)
    assert jitted.sections == on_host.sections
    np.testing.assert_array_equal(decode_indices([on_host])[0], q)


def test_tables_of_different_widths_share_what_is_compiled(compiled):
    rng, sizes = np.random.default_rng(4), []
    for reach in (2, 4, 6):
        q = rng.integers(-reach, reach + 1, (20, 30), dtype=np.int32)
        codebook = scalar_codebook(q)
        assert codebook.tables.num_symbols == 2 * reach + 2
        coded = encode_lattice(q, Levels.constant(0.5, q.shape), codebook, lane_symbols=100)
        np.testing.assert_array_equal(decode_indices([coded])[0], q)
        sizes.append((rans._push_lanes._cache_size(), batch_module._decode_call._cache_size()))
    assert sizes[0] == sizes[1] == sizes[2]


def test_compiled_calls_are_shared_and_cut(make, compiled, monkeypatch):
    """Twelve tensors of one row length and two codebooks, in calls of a few lanes: still the same integers."""
    monkeypatch.setattr(batch_module, "MAX_CALL_SYMBOLS", 2_000)
    codebooks = {states: make["codebook"](states) for states in (1, 8)}
    indices = [make["path"]((5 + 2 * i, 24), (1, 8)[i % 2], seed=i) for i in range(12)]
    tensors = [
        encode_lattice(q, make["levels"](q.shape, seed=i), codebooks[(1, 8)[i % 2]], lane_symbols=96)
        for i, q in enumerate(indices)
    ]
    for q, together in zip(indices, decode_indices(tensors)):
        np.testing.assert_array_equal(together, q)


@pytest.mark.parametrize("num_states", [1, 8])
def test_matrices_coded_together_have_the_bytes_of_matrices_coded_alone(num_states, make, request, monkeypatch):
    codebook = make["codebook"](num_states)
    shapes = [(9, 24), (2, 31), (30, 24), (5, 6), (0, 4), (17, 24)]
    matrices = [
        Lattice(make["path"](shape, num_states, seed=i), make["levels"](shape)) for i, shape in enumerate(shapes)
    ]
    alone = [encode_lattice(m.q, m.levels, codebook, lane_symbols=96) for m in matrices]
    for symbols in (1 << 20, 300):
        monkeypatch.setattr(lane_coding, "ENCODE_SYMBOLS", symbols)
        together = encode_lattices(matrices, codebook, lane_symbols=96)
        assert [coded.sections for coded in together] == [coded.sections for coded in alone]
        assert [coded.spec for coded in together] == [coded.spec for coded in alone]
    request.getfixturevalue("compiled")
    monkeypatch.setattr(lane_coding, "ENCODE_SYMBOLS", 1 << 20)
    assert encode_lattices(matrices, codebook, lane_symbols=96)[2].sections == alone[2].sections
    assert encode_lattices([], codebook) == []


def test_threads_change_nothing(make, compiled, monkeypatch):
    monkeypatch.setattr(batch_module, "MIN_THREAD_SYMBOLS", 1)
    q = make["path"]((60, 24), 8)
    coded = encode_lattice(q, make["levels"](q.shape), make["codebook"](8), lane_symbols=96)
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


def test_a_damaged_lane_is_noticed_by_both_coders(make, request):
    q = make["path"]((8, 24), 8)
    coded = encode_lattice(q, make["levels"](q.shape), make["codebook"](8), lane_symbols=96)
    words = bytearray(coded.sections["indices"])
    words[5] ^= 16
    broken = dataclasses.replace(coded, sections={**coded.sections, "indices": bytes(words)})
    for _ in range(2):
        with pytest.raises(FormatError, match="lanes do not end in the state"):
            decode_indices([broken])
        request.getfixturevalue("compiled")


def many_tensors(make):
    rng = np.random.default_rng(5)
    codebooks = {states: make["codebook"](states) for states in (1, 8)}
    tensors, indices = [], []
    for i in range(7):
        shape, states = tuple(rng.integers(1, 40, 2).tolist()), int(rng.choice([1, 8]))
        indices.append(make["path"](shape, states, seed=i))
        levels = make["levels"](shape, seed=i)
        tensors.append(encode_lattice(indices[-1], levels, codebooks[states], lane_symbols=60))
    return tensors, indices


def test_together_is_as_alone(make):
    tensors, indices = many_tensors(make)
    for q, together in zip(indices, decode_indices(tensors)):
        np.testing.assert_array_equal(together, q)
    for coded, w in zip(tensors[:4], decode_tensors(tensors)):
        np.testing.assert_array_equal(decode_tensor(coded), w)


def test_a_tensor_may_be_cut_over_several_calls(make, monkeypatch):
    tensors, indices = many_tensors(make)
    monkeypatch.setattr(batch_module, "MAX_CALL_SYMBOLS", 600)
    for q, together in zip(indices, decode_indices(tensors)):
        np.testing.assert_array_equal(together, q)


def test_every_device_decodes_the_same_integers(make, compiled):
    q = make["path"]((20, 30), 8)
    coded = encode_lattice(q, make["levels"]((20, 30)), make["codebook"](8), lane_symbols=90)
    assert len(jax.devices()) == 4
    for device in jax.devices()[::3]:
        with jax.default_device(device):
            np.testing.assert_array_equal(decode_indices([coded])[0], q)


def test_double_precision_changes_nothing(make, compiled):
    q = make["path"]((6, 9), 8)
    arguments = q, make["levels"]((6, 9)), make["codebook"](8)
    plain = encode_lattice(*arguments)
    with jax.enable_x64(True):
        wide = encode_lattice(*arguments)
        decoded = decode_tensor(plain)
    assert wide.sections == plain.sections
    np.testing.assert_array_equal(decoded, decode_tensor(plain))


def test_coded_size_is_near_the_ideal(make):
    """Against the code length that the tables promise, with lanes of a common length."""
    codebook = make["codebook"](1, [1.0])
    q = make["path"]((128, 256), 1, spread=1.0)
    coded = encode_lattice(q, Levels.constant(1.0, (128, 256)), codebook)
    freq, offset = np.asarray(codebook.tables.freq)[0], int(codebook.tables.offset[0])
    bits = -np.log2(freq[q - offset] / 2**codebook.tables.precision).sum()
    lanes = len(coded.sections["lanes"])
    assert 8 * len(coded.sections["indices"]) <= bits + 64
    assert lanes <= 7 * 2
    assert 8 * coded.num_bytes <= bits * 1.005 + 64 * 2 + 8 * 12


def test_huge_runs_of_zeros_stay_within_the_bound_on_expansion(make):
    q = np.zeros((4, 70_000), np.int32)
    coded = encode_lattice(q, Levels.constant(1.0, q.shape), make["codebook"](1, [0.02]))
    assert len(coded.sections["padding"]) > 0
    assert q.size <= MAX_ELEMENTS_PER_BYTE * coded.num_bytes < q.size + MAX_ELEMENTS_PER_BYTE
    np.testing.assert_array_equal(decode_indices([coded])[0], q)


def test_equal_input_gives_equal_bytes(make):
    arguments = make["path"]((9, 14), 8), make["levels"]((9, 14)), make["codebook"](8)
    assert encode_lattice(*arguments).sections == encode_lattice(*arguments).sections


def test_what_is_no_path_is_refused(make):
    q = make["path"]((4, 9), 8)
    q[2, 5] += 1
    with pytest.raises(ValueError, match="not paths of the 8-state trellis"):
        encode_lattice(q, make["levels"]((4, 9)), make["codebook"](8))


def test_levels_of_another_matrix_are_refused(make):
    with pytest.raises(ValueError, match=r"levels are for a matrix \(3, 9\)"):
        encode_lattice(make["path"]((4, 9), 1), make["levels"]((3, 9)), make["codebook"](1))


def test_a_lost_codebook_is_named(make, kinds):
    orphan = dataclasses.replace(kinds["trellis.0"], codebook=None, place="tensor 'q'")
    with pytest.raises(FormatError, match="tensor 'q' has no codebook"):
        decode_tensor(orphan)
    other = dataclasses.replace(kinds["trellis.0"], codebook=make["codebook"](8, [0.3, 7.0]))
    with pytest.raises(FormatError, match="damaged"):
        decode_tensor(other)


@pytest.mark.parametrize(("rows", "cols", "per_lane"), [(10, 3, 4), (1, 1, 1), (5, 0, 2), (0, 5, 1), (12, 7, 12)])
def test_lanes_cover_every_row_once(rows, cols, per_lane):
    lanes = Lanes(rows=rows, cols=cols, rows_per_lane=per_lane)
    assert lanes.lengths().sum() == rows * cols
    x = np.arange(rows * cols).reshape(rows, cols)
    if lanes.count:
        flat = lanes.split(x, 0, lanes.count)
        valid = np.arange(lanes.steps)[None, :] < lanes.lengths()[:, None]
        np.testing.assert_array_equal(flat[valid], x.ravel())


@given(st.integers(1, 10**9), st.integers(0, 5))
def test_buckets_hold_and_waste_little(size, mantissa_bits):
    rounded = bucket(size, mantissa_bits=mantissa_bits)
    assert size <= rounded < size * (1 + 2.0**-mantissa_bits) + 1
    assert bucket(rounded, mantissa_bits=mantissa_bits) == rounded
    assert size <= bucket(size, coarse_below=100) <= 2 * size
    assert flat_bucket(size) >= size


def test_the_decoder_compiles_for_every_accelerator(make, lowers_everywhere):
    q = make["path"]((6, 20), 8)
    codebook = make["codebook"](8)
    _, lanes, streams = lattice_module.read_lattice(
        encode_lattice(q, make["levels"](q.shape), codebook, lane_symbols=40)
    )

    def decode(streams, tables, contexts, cols):
        return batch_module._decode_call(
            streams, tables, contexts, cols, num_states=8, num_steps=lanes.steps, dtype="int32"
        )

    contexts = jnp.zeros((lanes.count, lanes.steps), jnp.uint8)
    lowers_everywhere(decode, streams, codebook.tables, contexts, jnp.int32(20))


@pytest.mark.parametrize("num_states", [1, 8])
def test_rows_may_be_scaled_without_touching_the_indices(num_states, make):
    q = make["path"]((9, 14), num_states)
    coded = encode_lattice(q, make["levels"]((9, 14)), make["codebook"](num_states))
    factors = np.exp(np.random.default_rng(5).normal(0, 0.1, 9))
    scaled = with_row_factors(coded, factors)
    np.testing.assert_array_equal(decode_indices([scaled])[0], q)
    assert scaled.sections["indices"] == coded.sections["indices"]
    half_a_level = 2 ** (1 / 64)
    ratio = decode_tensor(scaled)[:, :1] / np.where(q[:, :1] == 0, np.nan, decode_tensor(coded)[:, :1])
    error = np.abs(np.log(ratio / factors[:, None]))
    assert np.nanmax(error) <= np.log(half_a_level) + 1e-6
    again = with_row_factors(scaled, 1 / factors)
    np.testing.assert_allclose(decode_tensor(again), decode_tensor(coded), rtol=0.03)


@pytest.mark.parametrize("right", [None, hadamard(14)])
@pytest.mark.parametrize("shape", [(9, 14), (3, 3, 14), (0, 14)])
def test_an_offset_is_added_to_every_row_before_transforms_are_undone(shape, right, make):
    matrix = (int(np.prod(shape[:-1])), 14)
    q, levels, codebook = make["path"](matrix, 8), make["levels"](matrix), make["codebook"](8)
    offset = np.random.default_rng(3).normal(0, 0.1, 14).astype(np.float32)
    plain = encode_lattice(q.reshape(shape), levels, codebook, right=right)
    coded = encode_lattice(q.reshape(shape), levels, codebook, right=right, offset=offset)
    assert coded.num_bytes <= plain.num_bytes + 2 * 14  # padding may have become needless
    np.testing.assert_array_equal(decode_indices([coded])[0].reshape(matrix), q)
    moved = stored_offset(offset) if right is None else np.asarray(right.inverse(jnp.asarray(stored_offset(offset))))
    np.testing.assert_allclose(decode_tensor(coded), decode_tensor(plain) + moved, atol=2e-6)


@pytest.mark.parametrize("offset", [np.zeros(13), np.full(14, np.inf), np.full(14, 1e6)])
def test_offsets_that_a_file_cannot_hold_are_refused(offset, make):
    with pytest.raises(ValueError, match="14 columns"):
        encode_lattice(make["path"]((2, 14), 1), make["levels"]((2, 14)), make["codebook"](1), offset=offset)


def test_a_damaged_offset_is_named(make):
    q, levels, codebook = make["path"]((2, 14), 1), make["levels"]((2, 14)), make["codebook"](1)
    coded = encode_lattice(q, levels, codebook, offset=np.zeros(14))
    nan = np.full(14, np.nan, "<f2").tobytes()
    for data, cause in ((b"", "'offset' holds 0 bytes"), (nan, "offset is not finite")):
        with pytest.raises(FormatError, match=cause):
            decode_tensor(dataclasses.replace(coded, sections={**coded.sections, "offset": data}))


def test_row_factors_that_make_levels_shorter_leave_enough_bytes(make):
    shape = (64, 70_000)
    zeros, flat = np.zeros(shape, np.int32), make["levels"](shape)
    ragged = dataclasses.replace(flat, step_rows=np.random.default_rng(0).integers(-40, 41, 64))
    coded = encode_lattice(zeros, ragged, make["codebook"](1))
    step_row, _ = ragged.steps()
    even = with_row_factors(coded, 1 / step_row, row_resolution=0)
    np.testing.assert_array_equal(decode_indices([even])[0], zeros)


def test_row_factors_that_make_no_step_are_refused(make):
    coded = encode_lattice(make["path"]((2, 3), 1), make["levels"]((2, 3)), make["codebook"](1))
    with pytest.raises(ValueError, match=r"2\*\*14|float32"):
        with_row_factors(coded, np.array([1e-300, 1.0]))
    for resolution in (-1, 65, 1.5, True):
        spec = {**with_row_factors(coded, np.ones(2)).spec, "row_resolution": resolution}
        with pytest.raises(FormatError, match="row_resolution"):
            decode_tensor(dataclasses.replace(coded, spec=spec))
