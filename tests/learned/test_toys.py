"""Sources whose best coordinates are known: from the identity, training finds them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occ_jax.codec import Levels, encode_lattice, encode_tensor
from occ_jax.learned import RateDistortion, cayley, code_length, fit, load_transforms, save_transforms, scale_field_bits
from occ_jax.metrics import ar1_coding_gain
from occ_jax.quantization import Uniform
from occ_jax.quantization.codebook import estimate, gather_statistics
from occ_jax.quantization.scales import CLASS_SHIFT, NUM_CLASSES, fit_class_levels, scale_classes
from occ_jax.transforms import Rotation

KEY = jax.random.key(3)


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def rate_loss(family, scales, step_size):
    def loss(t, x, step):
        bits = code_length(t.forward(x) / step_size, key=step.key, family=family, scales=scales)
        return RateDistortion(bits, jnp.float32(0))

    return loss


def test_finds_the_klt_of_an_autoregressive_source():
    n, rho = 16, 0.9
    covariance = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    x = jnp.asarray(np.linalg.cholesky(covariance).T * np.sqrt(n), jnp.float32)

    def loss(t, x, _):
        return RateDistortion(scale_field_bits(t.forward(x), scales="columns"), jnp.float32(0))

    fitted = fit(cayley(n), loss, key=KEY, steps=1000, data=x, optimizer=adam(0.03, 1000), chunk=1000)
    q = np.asarray(fitted.params.rotation().matrix, np.float64)
    gain_bits = -np.log2(np.diag(q @ covariance @ q.T)).mean() / 2
    limit = np.log2(ar1_coding_gain(rho, n)) / 2
    assert limit - 0.02 < gain_bits < limit + 1e-4


def test_separates_two_mixed_laplacian_sources():
    sources = np.random.default_rng(0).laplace(size=(4096, 2))
    angle = 0.6
    mixing = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x = jnp.asarray(sources @ mixing.T, jnp.float32)
    loss = rate_loss("laplace", "columns", 0.1)
    fitted = fit(cayley(2), loss, key=KEY, steps=200, data=x, optimizer=adam(0.03, 200), chunk=200)
    through = np.abs(np.asarray(fitted.params.rotation().matrix) @ mixing)
    np.testing.assert_allclose(through.max(0), 1, atol=5e-4)
    assert fitted.log.bits[-20:].mean() < fitted.log.bits[:5].mean() - 0.03


@functools.cache
def hidden_rotation():
    """A sparse matrix, the same one rotated, what training made of that, and the log."""
    rng, n = np.random.default_rng(1), 16
    sparse = np.where(
        rng.random((2048, n)) < 0.15, 6 * rng.laplace(size=(2048, n)), 0.02 * rng.standard_normal((2048, n))
    )
    hidden = np.linalg.qr(rng.standard_normal((n, n)))[0]
    x = jnp.asarray(sparse @ hidden.T, jnp.float32)
    loss = rate_loss("laplace", "tensor", 0.5)
    fitted = fit(cayley(n), loss, key=KEY, steps=600, data=x, optimizer=adam(0.05, 600), chunk=600)
    return sparse.astype(np.float32), np.asarray(x), fitted


def coded_bytes(x) -> int:
    coded = encode_tensor(np.asarray(x), Uniform(jnp.array(0.5)))
    return sum(len(section) for section in coded.sections.values())


def test_undoes_a_hidden_rotation_of_a_sparse_matrix():
    sparse, rotated, fitted = hidden_rotation()
    undone = fitted.params.forward(jnp.asarray(rotated))
    assert coded_bytes(rotated) > 1.5 * coded_bytes(sparse)
    assert coded_bytes(undone) == pytest.approx(coded_bytes(sparse), rel=0.03)


def test_a_saved_rotation_is_as_good_as_the_learned_one(tmp_path):
    _, rotated, fitted = hidden_rotation()
    path = tmp_path / "learned.occ.safetensors"
    save_transforms(path, {"hidden": (fitted.params, 16)}, about={"steps": 600})
    read = load_transforms(path)["hidden"]
    assert isinstance(read, Rotation)
    again, before = (coded_bytes(t.forward(jnp.asarray(rotated))) for t in (read, fitted.params))
    assert again == pytest.approx(before, rel=2e-3)
    # And it is where another training may begin.
    np.testing.assert_allclose(cayley(16, start=read).rotation().matrix, read.matrix, atol=1e-6)


def test_the_rate_after_training_is_that_of_coded_bytes():
    """Rows and columns of many scales, coded with scale classes as any tensor of a file, side information included."""
    rng = np.random.default_rng(2)
    field = np.exp2(rng.normal(size=(384, 1)) + rng.normal(size=(1, 48)))
    turn = np.linalg.qr(np.eye(48) + 0.1 * rng.standard_normal((48, 48)))[0]
    w = jnp.asarray(4 * field * rng.standard_normal((384, 48)) @ turn, jnp.float32)
    loss = rate_loss("gaussian", "field", 1.0)
    fitted = fit(cayley(48), loss, key=KEY, steps=100, data=w, optimizer=adam(0.01, 100))
    t = fitted.params.forward(w)
    rows, columns = (np.asarray(level) for level in fit_class_levels(t))
    classes = scale_classes(jnp.asarray(rows), jnp.asarray(columns), NUM_CLASSES, shift=CLASS_SHIFT)
    q = jnp.round(t).astype(jnp.int32)
    codebook = estimate(gather_statistics(t, q, classes, 1, NUM_CLASSES), 1)
    zeros = [np.zeros(size, np.int32) for size in w.shape]
    levels = Levels(
        base=1.0, step_rows=zeros[0], step_cols=zeros[1], class_rows=rows, class_cols=columns, class_shift=CLASS_SHIFT
    )
    coded = encode_lattice(np.asarray(q), levels, codebook)
    bits = 8 * sum(len(section) for section in coded.sections.values()) / w.size
    assert fitted.log.bits[-10:].mean() == pytest.approx(bits, rel=0.03)
    assert fitted.log.bits[-10:].mean() < fitted.log.bits[0]
