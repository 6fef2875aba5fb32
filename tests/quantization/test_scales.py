"""Scale classes: integers in, integers out, and close to what real-valued scales would cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.quantization.scales import (
    CLASS_SHIFT,
    CLASSES_PER_OCTAVE,
    LARGEST_LEVEL,
    NUM_CLASSES,
    class_sigmas,
    fit_class_levels,
    from_levels,
    log2_levels,
    scale_classes,
)


def scaled_gaussian(rows, columns, spread, seed=0, mean=2.0):
    rng = np.random.default_rng(seed)
    scale = mean * np.exp2(spread * rng.standard_normal((rows, 1)) + spread * rng.standard_normal((1, columns)))
    return jnp.asarray(rng.standard_normal((rows, columns)) * scale, jnp.float32), scale


def gaussian_code_length(t, sigma):
    """Bits of a Gaussian code of scale sigma, up to what does not depend on sigma."""
    return float(np.mean(np.log2(sigma) + np.square(np.asarray(t, np.float64) / sigma) / (2 * np.log(2))))


def test_sigmas_are_a_grid_of_quarter_octaves():
    sigmas = class_sigmas()
    assert len(sigmas) == NUM_CLASSES
    assert np.allclose(sigmas[CLASSES_PER_OCTAVE:] / sigmas[:-CLASSES_PER_OCTAVE], 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-LARGEST_LEVEL, LARGEST_LEVEL), min_size=1, max_size=5),
    st.lists(st.integers(-LARGEST_LEVEL, LARGEST_LEVEL), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_classes_are_floored_clipped_sums(rows, columns, shift):
    expected = [[min(max((a + b) // 2**shift, 0), 10) for b in columns] for a in rows]
    assert scale_classes(np.array(rows), np.array(columns), 11, shift=shift).tolist() == expected


@pytest.mark.parametrize("resolution", [1, 4, 8])
def test_levels_are_the_nearest_of_their_grid(resolution):
    x = jnp.asarray(np.exp(np.random.default_rng(0).uniform(-9, 9, 500)), jnp.float32)
    octaves_off = jnp.log2(from_levels(log2_levels(x, resolution), resolution) / x)
    assert float(jnp.abs(octaves_off).max()) <= 0.5 / resolution + 1e-4
    assert log2_levels(jnp.array([0.0, jnp.inf]), resolution).tolist() == [-LARGEST_LEVEL, LARGEST_LEVEL]


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0])
def test_classes_cost_less_than_a_hundredth_of_a_bit(spread):
    t, scale = scaled_gaussian(300, 400, spread, mean=8.0)
    row_level, column_level = fit_class_levels(t)
    sigma = class_sigmas()[np.asarray(scale_classes(row_level, column_level, shift=CLASS_SHIFT))]
    assert gaussian_code_length(t, sigma) - gaussian_code_length(t, scale) < 0.01


def test_finer_levels_cost_less():
    t, _ = scaled_gaussian(200, 200, 0.8, mean=8.0)
    lengths = []
    for shift in (0, 1, 3):
        levels = fit_class_levels(t, shift=shift)
        lengths.append(gaussian_code_length(t, class_sigmas()[np.asarray(scale_classes(*levels, shift=shift))]))
    assert lengths[0] > lengths[1] > lengths[2] - 2e-4


def test_a_factor_on_all_values_moves_only_the_rows():
    t, _ = scaled_gaussian(30, 40, 0.5, mean=8.0)
    row_level, column_level = fit_class_levels(t)
    moved_rows, moved_columns = fit_class_levels(t * 4)
    assert jnp.array_equal(moved_columns, column_level)
    assert jnp.array_equal(moved_rows, row_level + 2 * (CLASSES_PER_OCTAVE << CLASS_SHIFT))


def test_zeros_fall_in_the_class_of_no_bits():
    t, _ = scaled_gaussian(10, 12, 0.2)
    t = t.at[3].set(0.0).at[:, 5].set(0.0)
    classes = scale_classes(*fit_class_levels(t), shift=CLASS_SHIFT)
    assert int(classes[3].max()) == 0
    assert int(classes[0, 5]) == 0
    zeros = scale_classes(*fit_class_levels(jnp.zeros((3, 4))), shift=CLASS_SHIFT)
    assert int(zeros.max()) == 0


def test_a_stack_of_matrices_is_fitted_one_by_one():
    stack = jnp.stack([scaled_gaussian(20, 30, 0.5, seed)[0] for seed in range(3)])
    rows, columns = fit_class_levels(stack)
    for i, t in enumerate(stack):
        alone = fit_class_levels(t)
        assert int(jnp.abs(rows[i] - alone[0]).max()) <= 1  # sums may round differently in another order
        assert int(jnp.abs(columns[i] - alone[1]).max()) <= 1
    assert scale_classes(rows, columns, shift=1).shape == stack.shape


def test_jit_and_every_backend(lowers_everywhere):
    t, _ = scaled_gaussian(16, 24, 0.5)
    lowers_everywhere(fit_class_levels, t)
    levels = fit_class_levels(t)
    lowers_everywhere(scale_classes, *levels)
    with jax.enable_x64(True):
        wide = fit_class_levels(t)
    assert wide[0].dtype == jnp.int32
    assert np.array_equal(levels[0], wide[0])
