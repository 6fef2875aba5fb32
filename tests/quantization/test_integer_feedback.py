"""Integers in groups with feedback are GPTQ with groups; without feedback they are rounded to the nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.codec import decode_indices, decode_tensor, encode_affine
from occ_jax.quantization.affine import fit_affine
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.integer_feedback import quantize_integers

ROWS, COLUMNS = 10, 40


def problem(rows=ROWS, columns=COLUMNS, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.eye(columns) + 0.3 * rng.standard_normal((columns, columns)) * np.exp2(rng.standard_normal(columns))
    x = rng.standard_normal((4 * columns, columns)) @ mixing
    return rng.standard_normal((rows, columns)).astype(np.float32), x.T @ x / len(x)


def gptq(w, hessian, bits, group_size, damping=0.01):
    """GPTQ as published, in float64, one column after the other over the whole matrix, scales made group by group."""
    h = hessian + damping * np.mean(np.diagonal(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w, q = np.array(w, np.float64), np.zeros(w.shape, int)
    w_hat = np.zeros(w.shape)
    for j in range(w.shape[1]):
        if j % group_size == 0:
            group = w[:, j : j + group_size]
            low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
            exact = (high - low) / (2**bits - 1)
            scale = exact.astype(np.float16)
            scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float64)
            zero = np.rint(-low / scale)
        q[:, j] = np.clip(np.rint(w[:, j] / scale) + zero, 0, 2**bits - 1)
        w_hat[:, j] = scale * (q[:, j] - zero)
        w[:, j:] -= np.outer((w[:, j] - w_hat[:, j]) / upper[j, j], upper[j, j:])
    return q, w_hat


@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 8), (4, 40), (3, 1000)])
def test_it_is_gptq_with_groups(bits, group_size):
    w, hessian = problem(seed=bits)
    result = quantize_integers(w, prepare_hessian(hessian), bits=bits, group_size=group_size)
    q, w_hat = gptq(w, hessian, bits, group_size)
    np.testing.assert_array_equal(result.q, q)
    np.testing.assert_allclose(result.quantizer.dequantize(result.q), w_hat, rtol=1e-6)


def test_without_a_factor_or_without_correlation_it_rounds_to_the_nearest():
    w, hessian = problem()
    expected = fit_affine(jnp.asarray(w), 3, group_size=16)
    for factor in (None, prepare_hessian(np.diag(np.diagonal(hessian)))):
        result = quantize_integers(w, factor, bits=3, group_size=16)
        np.testing.assert_array_equal(result.q, expected.quantize(jnp.asarray(w)))
        np.testing.assert_array_equal(result.quantizer.scale, expected.scale)
        np.testing.assert_array_equal(result.quantizer.zero_point, expected.zero_point)


def test_feedback_lowers_the_weighted_error():
    w, hessian = problem()

    def distortion(factor):
        result = quantize_integers(w, factor, bits=3, group_size=16)
        error = w - np.asarray(result.quantizer.dequantize(result.q))
        return np.einsum("ij,jk,ik", error, hessian, error)

    assert distortion(prepare_hessian(hessian)) < 0.7 * distortion(None)


def test_devices_share_the_rows_and_change_nothing():
    w, hessian = problem(rows=7)
    factor = prepare_hessian(hessian)
    alone = quantize_integers(w, factor, bits=3, group_size=16)
    shared = quantize_integers(w, factor, bits=3, group_size=16, devices=tuple(jax.devices()))
    jax.tree.map(np.testing.assert_array_equal, alone, shared)


def test_a_file_holds_it():
    w, hessian = problem()
    result = quantize_integers(w, prepare_hessian(hessian), bits=3, group_size=16)
    coded = encode_affine(np.asarray(result.q), result.quantizer)
    np.testing.assert_array_equal(decode_indices([coded])[0], result.q)
    np.testing.assert_array_equal(decode_tensor(coded), result.quantizer.dequantize(result.q))
    assert len(coded.sections["indices"]) == 3 * w.size // 8
    assert len(coded.sections["scales"]) == 2 * ROWS * 3, "the last group of 8 columns has a scale too"


def test_what_cannot_be_quantized_is_refused():
    w, hessian = problem()
    factor = prepare_hessian(hessian)
    with pytest.raises(ValueError, match="finite"):
        quantize_integers(np.full_like(w, np.nan), factor, bits=3, group_size=16)
    with pytest.raises(ValueError, match="group_size is 0"):
        quantize_integers(w, factor, bits=3, group_size=0)
    with pytest.raises(ValueError, match="bits is 9"):
        quantize_integers(w, None, bits=9, group_size=16)
    with pytest.raises(ValueError, match="own order"):
        quantize_integers(w, prepare_hessian(hessian, order=np.arange(COLUMNS)[::-1]), bits=3, group_size=16)
    with pytest.raises(ValueError, match="39 columns"):
        quantize_integers(w, prepare_hessian(hessian[1:, 1:]), bits=3, group_size=16)


def test_clipping_at_two_bits_leaves_less_error_than_whole_ranges():
    w, hessian = problem(rows=64, columns=256, seed=5)
    factor = prepare_hessian(hessian)

    def error(clip):
        result = quantize_integers(w, factor, bits=2, group_size=128, clip=clip)
        left = w - np.asarray(result.quantizer.dequantize(result.q), np.float64)
        return np.trace(left @ hessian @ left.T)

    assert error(clip=True) < 0.6 * error(clip=False)


def test_at_eight_bits_there_is_little_to_clip():
    w, hessian = problem()
    full, clipped = (
        quantize_integers(w, prepare_hessian(hessian), bits=8, group_size=16, clip=clip).quantizer.scale
        for clip in (False, True)
    )
    np.testing.assert_allclose(clipped.astype(np.float32), full.astype(np.float32), rtol=0.2)
