"""Integer formats against an independent NumPy loop, with their bounds, side information and bad arguments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize_scalar

from occ_jax.quantization import Affine, fit_affine

WIDTHS = (2, 3, 4, 8)


def affine_reference(row: np.ndarray, bits: int, group: int, symmetric: bool) -> np.ndarray:
    """Quantize and dequantize one row with plain Python loops, given exactly representable scales."""
    out = np.empty_like(row)
    for start in range(0, len(row), group):
        part = row[start : start + group].astype(np.float64)
        low, high = min(part.min(), 0.0), max(part.max(), 0.0)
        exact = max(-low, high) / (2 ** (bits - 1) - 0.5) if symmetric else (high - low) / (2**bits - 1)
        scale = np.float16(np.float32(exact))
        if float(scale) < exact:
            scale = np.nextafter(scale, np.float16(np.inf))
        scale = float(scale) if exact > 0 else 1.0
        zero = 0 if symmetric else round(-low / scale)
        smallest, largest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
        for i, value in enumerate(part):
            index = min(max(round(value / scale) + zero, smallest), largest)
            out[start + i] = scale * (index - zero)
    return out


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group", [1, 5, 37, 64])
def test_agrees_with_a_plain_loop(bits, group, symmetric):
    rng = np.random.default_rng(bits * 100 + group)
    y = (rng.standard_normal((3, 37)) * np.exp(rng.standard_normal((3, 1)))).astype(np.float32)
    quantizer = fit_affine(jnp.asarray(y), bits, group_size=group, symmetric=symmetric)
    got = np.asarray(quantizer.dequantize(quantizer.quantize(jnp.asarray(y))))
    expected = np.stack([affine_reference(row, bits, group, symmetric) for row in y])
    # Float32 and float64 may round a tie, or the last bit of a scale, differently: never by more than half a step.
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.51 * np.abs(y).max())
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.03


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 7), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(WIDTHS),
    st.sampled_from([3, "channel"]),
    st.booleans(),
)
def test_error_is_at_most_half_a_scale(y, bits, group, symmetric):
    quantizer = fit_affine(jnp.asarray(y), bits, group_size=group, symmetric=symmetric)
    y_hat = quantizer.dequantize(quantizer.quantize(jnp.asarray(y)))
    scale = np.repeat(np.asarray(quantizer.scale, np.float32), quantizer.group_size, axis=-1)[:, : y.shape[1]]
    assert np.all(np.abs(y - np.asarray(y_hat)) <= scale * 0.50001)


@pytest.mark.parametrize(("bits", "symmetric"), list(itertools.product(WIDTHS, [False, True])))
def test_indices_fill_the_range_and_stay_inside(bits, symmetric):
    y = jnp.linspace(-1, 1, 1001)[None, :]
    quantizer = fit_affine(y, bits, group_size="channel", symmetric=symmetric)
    q = np.asarray(quantizer.quantize(10 * y))
    assert (q.min(), q.max()) == quantizer.index_range
    # The outermost index lies exactly half a step inside or outside the data: rounding of the scale decides.
    assert len(np.unique(np.asarray(quantizer.quantize(y)))) >= 2**bits - 1


@pytest.mark.parametrize(
    ("group", "groups"), [(64, 9), (576, 1), (1000, 1), (100, 6), ("channel", 1), (1, 576)], ids=str
)
def test_side_information_is_counted(group, groups):
    y = jnp.ones((8, 576))
    assert fit_affine(y, 4, group_size=group).side_info_bits == 8 * groups * (16 + 4)
    assert fit_affine(y, 3, group_size=group, symmetric=True).side_info_bits == 8 * groups * 16


def test_one_scale_for_the_tensor_is_shared():
    y = jnp.arange(12.0).reshape(3, 4)
    quantizer = fit_affine(y, 8, group_size="tensor")
    assert quantizer.scale.shape == (1, 1)
    assert quantizer.side_info_bits == 24
    np.testing.assert_allclose(quantizer.dequantize(quantizer.quantize(y)), y, atol=11 / 255 / 2 * 1.001)


def test_group_of_zeros_stays_zero():
    y = jnp.concatenate([jnp.zeros((2, 4)), jnp.ones((2, 4))], axis=1)
    for symmetric in (False, True):
        quantizer = fit_affine(y, 4, group_size=4, symmetric=symmetric)
        assert np.asarray(quantizer.scale)[0, 0] == 1
        np.testing.assert_allclose(quantizer.dequantize(quantizer.quantize(y)), y, atol=0.07)
        np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(y))[:, :4], 0)


def test_scales_outside_float16_saturate():
    huge = fit_affine(jnp.array([1e9, -1e9]), 4, group_size="tensor")
    assert np.isfinite(np.asarray(huge.scale)).all()
    tiny = fit_affine(jnp.array([1e-12, 0.0]), 4, group_size="tensor")
    assert np.asarray(tiny.scale)[0] > 0
    np.testing.assert_allclose(tiny.dequantize(tiny.quantize(jnp.array([1e-12, 0.0]))), 0, atol=1e-7)


def test_higher_rank_groups_run_along_the_last_axis():
    y = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 10)), jnp.float32)
    quantizer = fit_affine(y, 4, group_size=4)
    assert quantizer.scale.shape == (2, 3, 3)
    by_hand = jax.vmap(lambda x: (a := fit_affine(x, 4, group_size=4)).dequantize(a.quantize(x)))(y)
    np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(y)), by_hand)


def test_wider_integers_are_never_worse():
    y = jnp.asarray(np.random.default_rng(5).standard_normal((16, 128)), jnp.float32)
    mse = []
    for bits in range(2, 9):
        quantizer = fit_affine(y, bits, group_size=32)
        mse.append(float(jnp.mean((y - quantizer.dequantize(quantizer.quantize(y))) ** 2)))
    assert all(narrow > 3 * wide for narrow, wide in itertools.pairwise(mse))


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_unknown_width_is_refused(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}"):
        fit_affine(jnp.ones(4), bits, group_size=2)
    with pytest.raises(ValueError, match=f"bits is {bits}"):
        Affine(jnp.ones(1, jnp.float16), None, bits=bits, group_size=2)


@pytest.mark.parametrize("group", [0, -4])
def test_group_without_coefficients_is_refused(group):
    with pytest.raises(ValueError, match="group_size is"):
        fit_affine(jnp.ones(4), 4, group_size=group)
    with pytest.raises(ValueError, match="group_size is"):
        Affine(jnp.ones(1, jnp.float16), None, bits=4, group_size=group)


@pytest.mark.parametrize("group", ["row", 2.5])
def test_unknown_group_is_refused(group):
    # TypeError where annotations are checked at run time, as here; ValueError elsewhere.
    with pytest.raises((ValueError, TypeError), match="group_size"):
        fit_affine(jnp.ones(4), 4, group_size=group)


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="scalar"):
        fit_affine(jnp.array(1.0), 4, group_size=1)


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_finds_the_best_range_of_a_gaussian(symmetric):
    y = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    clipped = fit_affine(jnp.asarray(y), 2, group_size="tensor", symmetric=symmetric, clip=True)
    zero = 2 if symmetric else int(clipped.zero_point.item())

    def distortion(scale):
        index = np.clip(np.rint(y / scale) + zero, 0, 3)
        return np.mean((y - scale * (index - zero)) ** 2)

    best = minimize_scalar(distortion, bounds=(0.3, 3.0), method="bounded")
    grid = float(fit_affine(jnp.asarray(y), 2, group_size="tensor", symmetric=symmetric).scale.item()) / 32
    assert abs(float(clipped.scale.item()) - best.x) < grid
    assert distortion(float(clipped.scale.item())) < 1.03 * best.fun


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [8, "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 4])
def test_no_group_is_worse_for_clipping(bits, group, symmetric):
    rng = np.random.default_rng(bits)
    y = jnp.asarray(rng.standard_t(3, (5, 20)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.1, 2.0, (1, 20)), jnp.float32)
    weighted = []
    for clip in (False, True):
        quantizer = fit_affine(y, bits, group_size=group, symmetric=symmetric, clip=clip, weights=weights)
        error = np.asarray(weights * (y - quantizer.dequantize(quantizer.quantize(y))) ** 2)
        size = 20 if isinstance(group, str) else group
        sums = np.add.reduceat(error, np.arange(0, 20, size), axis=1)
        weighted.append(sums.sum(0) if group == "tensor" else sums)
    full, clipped = weighted
    assert (clipped <= full * (1 + 1e-5)).all()
    assert clipped.sum() < full.sum()


def test_clipping_leaves_what_fits_and_zeros_alone():
    y = jnp.asarray([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    quantizer = fit_affine(y, 2, group_size=4, clip=True)
    np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(y)), y)
