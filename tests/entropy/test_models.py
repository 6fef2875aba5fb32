"""One battery for every entropy model: SciPy, mass one, derivatives, tails, tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from compiled import OPTIMIZED
from jax.test_util import check_grads

from occ_jax.entropy import (
    Categorical,
    DiscretizedGaussian,
    DiscretizedLaplace,
    EntropyModel,
    GeneralizedGaussian,
    cost_bits,
    fit_gaussian,
    fit_generalized_gaussian,
    fit_laplace,
)
from occ_jax.entropy.fitting import MIN_SCALE, generalized_gaussian_ratio
from occ_jax.entropy.gamma_tail import log_gammaincc


def f32(x):
    return jnp.float32(x)


CONTINUOUS = {
    "gaussian": (lambda s: DiscretizedGaussian(f32(s), f32(0.25)), lambda s: scipy.stats.norm(0.25, s)),
    "laplace": (lambda s: DiscretizedLaplace(f32(s), f32(-0.5)), lambda s: scipy.stats.laplace(-0.5, s)),
    "heavy": (lambda s: GeneralizedGaussian(f32(s), f32(0.6)), lambda s: scipy.stats.gennorm(0.6, scale=s)),
    "flat": (lambda s: GeneralizedGaussian(f32(s), f32(3.0)), lambda s: scipy.stats.gennorm(3.0, scale=s)),
}
SCALES = [1e-3, 0.05, 0.7, 10.0, 1000.0]
MODELS: dict[str, EntropyModel] = {name: make(1.3) for name, (make, _) in CONTINUOUS.items()}
MODELS["categorical"] = Categorical(jnp.array([0.1, 1.0, 2.0, 0.5, -1.0]), jnp.int32(-2))


@jax.jit
def jit_bits(model, z):
    return model.bits(z)


def unit_masses(density, z: np.ndarray, center: float) -> np.ndarray:
    """Mass of the unit intervals around ``z``, from the lower tail, where SciPy's differences are accurate."""
    mirrored = center - np.abs(z - center)
    return density.cdf(mirrored + 0.5) - density.cdf(mirrored - 0.5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_bits_are_those_of_scipy(name):
    make, reference = CONTINUOUS[name]
    z = np.linspace(-30, 30, 241).astype(np.float32)
    bits_of = jax.jit(lambda model: model.bits(jnp.asarray(z)))
    for scale in SCALES:
        with np.errstate(divide="ignore"):
            expected = -np.log2(unit_masses(reference(scale), z.astype(np.float64), reference(scale).mean()))
        seen = expected < 60  # SciPy's own differences lose their digits beyond
        np.testing.assert_allclose(bits_of(make(scale))[seen], expected[seen], atol=2e-3, err_msg=f"scale {scale}")


@pytest.mark.parametrize("name", CONTINUOUS)
def test_bits_integrate_to_one(name):
    """Whatever the offset of the lattice, the masses of its points sum to one."""
    model = MODELS[name]
    z = jnp.arange(-400.0, 401.0)[None, :] + jnp.array([0.0, 0.3, 0.5])[:, None]
    np.testing.assert_allclose(jnp.exp2(-jit_bits(model, z)).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_tails_have_finite_bits_and_gradients(name):
    make, _ = CONTINUOUS[name]
    z = jnp.array([0.0, 0.5, -0.5, 0.25, 1e3, 1e6, 1e20, 1e38, -1e38], jnp.float32)
    both = jax.jit(lambda model: (model.bits(z), jax.grad(lambda m, z: m.bits(z).sum(), argnums=(0, 1))(model, z)))
    for scale in SCALES:
        bits, gradients = both(make(scale))
        assert (bits >= 0).all(), scale
        for leaf in jax.tree.leaves((bits, gradients)):
            assert jnp.isfinite(leaf).all(), (scale, leaf)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_finite_differences(name):
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, MODELS[name])
        z = jnp.array(
            [-3.7, -0.9, 0.1, 0.3, 1.6, 7.0] if name != "categorical" else [-1.7, -0.4, 0.3, 1.6], jnp.float64
        )

        @jax.jit
        def total(leaves, z):
            floats = iter(leaves)
            tree = jax.tree.map(lambda x: next(floats) if x.dtype == jnp.float64 else x, model)
            return tree.bits(z).sum()

        leaves = [x for x in jax.tree.leaves(model) if x.dtype == jnp.float64]
        check_grads(total, (leaves, z), order=1, modes=["rev"], eps=1e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_bits_are_wide(dtype):
    for model in MODELS.values():
        assert jax.eval_shape(model.bits, jnp.zeros(3, dtype)).dtype == jnp.float32


@pytest.mark.parametrize("name", MODELS)
def test_table_costs_what_the_model_says(name):
    model = MODELS[name]
    table = model.freq_table(14)
    values = np.asarray(table.offset) + np.arange(table.num_symbols - 1)
    p = np.exp2(-np.asarray(jit_bits(model, jnp.asarray(values, jnp.int32)), np.float64))
    excess = (p * (np.asarray(cost_bits(table))[:-1] + np.log2(p))).sum()
    assert abs(excess) < 1e-3
    assert 1 - p.sum() < 0.01
    assert int(np.asarray(table.freq, np.int64).sum()) == 1 << 14


def test_a_wide_model_leaves_its_tails_to_the_escape():
    table = DiscretizedGaussian(f32(1000.0), f32(7.0)).freq_table(12)
    assert int(table.offset) < 7 < int(table.offset) + table.num_symbols
    assert table.freq[-1] > 100
    assert DiscretizedGaussian(f32(1e-3), f32(-5.0)).freq_table(8).freq.tolist() == [255, 1]


def test_a_table_needs_scalars():
    with pytest.raises(ValueError, match="scalar parameters"):
        DiscretizedLaplace(jnp.ones(3), jnp.zeros(3)).freq_table()


def test_models_broadcast_and_vectorise():
    stacked = jax.vmap(DiscretizedGaussian)(jnp.array([0.5, 2.0]), jnp.zeros(2))
    z = jnp.arange(5.0)
    rows = jax.jit(jax.vmap(lambda model: model.bits(z)))(stacked)
    np.testing.assert_allclose(rows[1], jit_bits(DiscretizedGaussian(f32(2.0), f32(0.0)), z), rtol=1e-6)


def test_models_lower_everywhere(lowers_everywhere):
    for model in MODELS.values():
        lowers_everywhere(lambda m, z: jax.value_and_grad(lambda z: m.bits(z).sum())(z), model, jnp.ones(4))


def test_categorical_interpolates_and_escapes():
    model = Categorical.from_counts(np.array([4, 2, 2]), offset=3)
    np.testing.assert_allclose(model.bits(jnp.array([3.0, 3.5, 4.0, 5.5, 100.0, -100.0])), [1, 1.5, 2, 10, 18, 17])
    assert int(model.center()) == 3


@pytest.mark.parametrize("a", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_log_gammaincc_is_that_of_scipy(a):
    x = np.geomspace(1e-3, 600, 60).astype(np.float32)
    expected = np.log(scipy.special.gammaincc(a, x.astype(np.float64)))
    log_tail = jax.jit(log_gammaincc, compiler_options=OPTIMIZED)
    np.testing.assert_allclose(log_tail(f32(a), jnp.asarray(x)), expected, rtol=2e-5, atol=5e-4)
    deep = a * np.log(1e6) - 1e6 - scipy.special.gammaln(a) - np.log(1e6)
    np.testing.assert_allclose(log_tail(f32(a), f32(1e6)), deep, rtol=1e-6)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
def test_fit_generalized_gaussian_recovers_its_parameters(shape):
    samples = scipy.stats.gennorm(shape, scale=3.0).rvs(200_000, random_state=np.random.default_rng(0))
    model = jax.jit(fit_generalized_gaussian)(jnp.asarray(samples, jnp.float32))
    np.testing.assert_allclose(float(model.shape), shape, rtol=0.03)
    np.testing.assert_allclose(float(model.scale), 3.0, rtol=0.03)


def test_fits_undo_rounding():
    rng = np.random.default_rng(1)
    gaussian = np.round(rng.normal(3.0, 0.8, 200_000)).astype(np.int32)
    laplace = np.round(rng.laplace(0.0, 0.9, 200_000)).astype(np.int32)
    np.testing.assert_allclose(float(jax.jit(fit_gaussian)(jnp.asarray(gaussian)).scale), 0.8, rtol=0.01)
    np.testing.assert_allclose(float(jax.jit(fit_laplace)(jnp.asarray(laplace)).scale), 0.9, rtol=0.02)


def test_fits_of_constant_data_are_proper():
    for fit in (fit_gaussian, fit_laplace, fit_generalized_gaussian):
        model = jax.jit(fit)(jnp.zeros(5))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
        assert float(jit_bits(model, f32(0.0))) < 0.01
        assert float(model.scale) < 10 * MIN_SCALE


def test_ratio_of_known_shapes():
    np.testing.assert_allclose(generalized_gaussian_ratio(jnp.array([1.0, 2.0])), [0.5, 2 / np.pi], rtol=1e-5)
