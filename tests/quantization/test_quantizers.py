"""One battery over every quantizer: fixed points, error bounds, shapes, relaxation, extremes, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.quantization import Affine, DeadZone, Quantizer, Uniform, fit_affine

SHAPE = (6, 40)
Y = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

QUANTIZERS = {
    "uniform": Uniform(jnp.array(0.25)),
    "uniform-rows": Uniform(jnp.linspace(0.1, 0.6, 6)[:, None]),
    "uniform-cols": Uniform(jnp.linspace(0.1, 0.6, 40)[None, :]),
    "deadzone-third": DeadZone(jnp.array(0.25), jnp.array(1 / 3)),
    "deadzone-sixth": DeadZone(jnp.array(0.5), jnp.array(1 / 6)),
    "deadzone-half": DeadZone(jnp.linspace(0.1, 0.6, 6)[:, None], jnp.full((6, 1), 0.5)),
    **{
        f"int{bits}-{group}-{'symmetric' if symmetric else 'asymmetric'}": fit_affine(
            jnp.asarray(Y), bits, group_size=group, symmetric=symmetric
        )
        for bits, group, symmetric in (
            (2, 16, False),
            (2, 7, True),
            (3, 7, True),
            (3, 16, False),
            (4, 16, False),
            (4, "tensor", True),
            (8, "channel", False),
            (8, 16, True),
        )
    },
}


def each(quantizers):
    return pytest.mark.parametrize("quantizer", list(quantizers.values()), ids=list(quantizers))


def step_of(quantizer: Quantizer) -> np.ndarray:
    if isinstance(quantizer, Affine):
        return np.repeat(np.asarray(quantizer.scale, np.float32), quantizer.group_size, axis=-1)[:, : SHAPE[1]]
    assert isinstance(quantizer, Uniform | DeadZone)
    return np.asarray(quantizer.step, np.float32)


def worst_error_in_steps(quantizer: Quantizer) -> float:
    return float(np.max(1 - quantizer.rounding)) if isinstance(quantizer, DeadZone) else 0.5


@each(QUANTIZERS)
def test_reconstruction_points_are_fixed_points(quantizer):
    q = quantizer.quantize(jnp.asarray(Y))
    assert q.dtype == jnp.int32
    assert q.shape == SHAPE
    np.testing.assert_array_equal(quantizer.quantize(quantizer.dequantize(q)), q)


@each(QUANTIZERS)
def test_error_stays_within_its_bound(quantizer):
    y_hat = quantizer.dequantize(quantizer.quantize(jnp.asarray(Y)))
    bound = worst_error_in_steps(quantizer) * step_of(quantizer)
    assert np.all(np.abs(Y - np.asarray(y_hat)) <= bound * 1.00001 + 1e-6)


@each(QUANTIZERS)
def test_order_is_kept(quantizer):
    """Along every coefficient's own axis of values, a larger input never gets a smaller index."""
    ramp = jnp.linspace(-4, 4, 101)[:, None, None] * jnp.ones((1, *SHAPE))
    q = jax.vmap(quantizer.quantize)(ramp)
    assert np.all(np.diff(np.asarray(q), axis=0) >= 0)


@each(QUANTIZERS)
def test_zero_is_reconstructed_exactly(quantizer):
    zero = jnp.zeros(SHAPE, jnp.float32)
    np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(zero)), zero)


@each(QUANTIZERS)
def test_relaxation_follows_the_index_in_expectation(quantizer):
    """For a signal spread evenly over several steps inside the range, the mean of ``relax - index`` is zero."""
    reach = np.minimum(np.abs(Y).max(), 1.0)
    y = jnp.asarray(np.random.default_rng(1).uniform(0, reach, (200, *SHAPE)), jnp.float32)
    z = jax.vmap(lambda x, key: quantizer.relax(x, key=key))(y, jax.random.split(jax.random.key(2), 200))
    q = jax.vmap(quantizer.quantize)(y)
    step = np.broadcast_to(step_of(quantizer), SHAPE)
    # The zero bin holds the only difference, at most 1/8 step times the share of the signal that falls in it.
    allowed = 0.04 + 0.13 * np.minimum(step / reach, 1.0)
    assert np.abs(np.mean(np.asarray(z) - np.asarray(q), axis=(0, 2))).max() < allowed.max()
    assert np.std(np.asarray(z) - np.asarray(q)) < 0.8


@each(QUANTIZERS)
def test_relaxation_has_a_gradient_in_steps(quantizer):
    y = jnp.asarray(Y) * 0.5
    gradient = jax.grad(lambda x: jnp.sum(quantizer.relax(x, key=jax.random.key(0))))(y)
    assert np.all(np.isfinite(gradient))
    inside = np.asarray(gradient) * step_of(quantizer)
    # 1 where the stand-in is y / step plus noise; less in a dead zone; 0 where integers saturate.
    assert np.all((inside > -1e-6) & (inside < 1 + 1e-5))
    assert np.median(inside) > 0.5


@each(QUANTIZERS)
def test_jit_and_vmap_change_nothing(quantizer):
    y = jnp.asarray(Y)
    q = quantizer.quantize(y)
    jitted = jax.jit(lambda a, x: (a.quantize(x), a.dequantize(a.quantize(x))))(quantizer, y)
    np.testing.assert_array_equal(jitted[0], q)
    np.testing.assert_array_equal(jitted[1], quantizer.dequantize(q))
    np.testing.assert_array_equal(jax.vmap(quantizer.quantize)(jnp.stack([y, -y]))[0], q)


LOWERED = ["uniform", "deadzone-third", "int4-16-asymmetric", "int3-7-symmetric"]


@pytest.mark.parametrize("name", LOWERED)
def test_every_method_lowers_to_every_accelerator(name, lowers_everywhere):
    quantizer = QUANTIZERS[name]

    def all_methods(y):
        q = quantizer.quantize(y)
        return q, quantizer.dequantize(q), quantizer.relax(y, key=jax.random.key(0))

    lowers_everywhere(all_methods, jnp.asarray(Y))


@each({name: QUANTIZERS[name] for name in (*LOWERED, "int8-channel-asymmetric")})
def test_huge_values_saturate_in_order(quantizer):
    y = jnp.broadcast_to(jnp.asarray([-np.inf, -3e38, -1e12, 0.0, 1e12, 3e38, np.inf], jnp.float32), (6, 7))
    y = jnp.pad(y, [(0, 0), (0, 33)])
    q = np.asarray(quantizer.quantize(y))[:, :7]
    assert np.all(np.diff(q, axis=1) >= 0)
    assert np.all(q[:, 0] < q[:, 3])
    assert np.all(q[:, 3] < q[:, 6])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (1, 1)])
def test_empty_and_tiny_shapes(shape):
    y = jnp.ones(shape)
    for quantizer in (Uniform(jnp.array(0.5)), fit_affine(y, 4, group_size=2), fit_affine(y, 4, group_size="tensor")):
        assert quantizer.dequantize(quantizer.quantize(y)).shape == shape


def test_float64_and_bfloat16_inputs():
    quantizer = Uniform(jnp.array(0.25, jnp.float32))
    assert quantizer.quantize(jnp.asarray(Y, jnp.bfloat16)).dtype == jnp.int32
    with jax.enable_x64(True):
        y = jnp.asarray(Y.astype(np.float64))
        assert y.dtype == jnp.float64
        for each_quantizer in (quantizer, QUANTIZERS["deadzone-third"], QUANTIZERS["int4-16-asymmetric"]):
            q = each_quantizer.quantize(y)
            assert q.dtype == jnp.int32
            np.testing.assert_array_equal(q, each_quantizer.quantize(jnp.asarray(Y)))


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**20), 2**20), st.floats(2**-10, 2**10, width=32))
def test_any_index_survives_the_round_trip(index, step):
    q = jnp.array([index], jnp.int32)
    for quantizer in (Uniform(jnp.float32(step)), DeadZone(jnp.float32(step), jnp.float32(1 / 3))):
        np.testing.assert_array_equal(quantizer.quantize(quantizer.dequantize(q)), q)


def test_uniform_mse_is_a_twelfth_of_the_squared_step():
    y = jnp.asarray(np.random.default_rng(3).standard_normal(200_000), jnp.float32)
    for step in (0.05, 0.2, 0.5):
        quantizer = Uniform(jnp.array(step))
        mse = float(jnp.mean((y - quantizer.dequantize(quantizer.quantize(y))) ** 2))
        assert mse == pytest.approx(step**2 / 12, rel=0.01)


def test_half_rounding_is_the_uniform_quantizer():
    step = jnp.array(0.3)
    y = jnp.asarray(Y)
    np.testing.assert_array_equal(DeadZone(step, jnp.array(0.5)).quantize(y), Uniform(step).quantize(y))


def test_zero_bin_widens_as_rounding_falls():
    y = jnp.linspace(-3, 3, 6001)
    for rounding in (0.5, 1 / 3, 1 / 6):
        zeros = DeadZone(jnp.array(1.0), jnp.array(rounding)).quantize(y) == 0
        assert float(jnp.sum(zeros)) / 1000 == pytest.approx(2 * (1 - rounding), abs=0.003)


def test_quantizer_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Quantizer()  # pyright: ignore[reportAbstractUsage]
