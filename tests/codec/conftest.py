"""Small coded tensors of every kind, and the plain decoder that was written from docs/format.md alone."""

import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.codec import CodedTensor, Levels, encode_lattice, encode_raw, encode_tensor, write_container
from occ_jax.quantization import Uniform, fit_affine
from occ_jax.quantization.codebook import Codebook, estimate
from occ_jax.quantization.trellis import gaussian_statistics
from occ_jax.quantization.trellis_coding import indices_from_symbols
from occ_jax.transforms import DCT, blockwise, random_hadamard, random_rotation

SIGMAS = np.array([0.5, 1.0, 2.0, 4.0])


def small_codebook(num_states: int, sigmas=SIGMAS) -> Codebook:
    """Tables of Gaussian classes, with reconstruction points that are not the indices."""
    codebook = estimate(gaussian_statistics(np.asarray(sigmas), num_states), num_states)
    shifts = np.zeros(codebook.shifts.shape, np.int8)
    freq = np.asarray(codebook.tables.freq)[:, :-1]
    column = np.arange(-4, 5)[None, :] - np.asarray(codebook.tables.offset)[:, None]
    inside = (column >= 0) & (column < freq.shape[1])
    used = inside & (np.take_along_axis(freq, np.clip(column, 0, freq.shape[1] - 1), 1) > 0)
    shifts[used] = (7 * np.arange(used.sum()) % 41 - 20).astype(np.int8)
    return Codebook(codebook.tables, jnp.asarray(shifts), num_states)


def random_path(shape: tuple[int, int], num_states: int, *, spread: float = 1.2, seed: int = 0) -> np.ndarray:
    """Indices whose every row is a path of the trellis."""
    k = np.rint(np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.int32)
    return np.array(indices_from_symbols(jnp.asarray(k), num_states))


def random_levels(shape: tuple[int, int], *, seed: int = 0, class_shift: int = 1) -> Levels:
    rng = np.random.default_rng(seed)
    return Levels(
        base=0.02,
        step_rows=rng.integers(-9, 9, shape[0]).astype(np.int32),
        step_cols=rng.integers(-9, 9, shape[1]).astype(np.int32),
        class_rows=rng.integers(0, 5, shape[0]).astype(np.int32),
        class_cols=rng.integers(-2, 4, shape[1]).astype(np.int32),
        class_shift=class_shift,
    )


def every_kind() -> dict[str, CodedTensor]:
    """One small tensor of every codec, with and without a trellis, levels and stored transforms."""
    w = np.random.default_rng(3).standard_normal((12, 20)).astype(np.float32)
    trellis, scalar = small_codebook(8), small_codebook(1)
    q = random_path((9, 14), 8)
    q[4] = 0
    heavy = random_path((6, 33), 1)
    heavy[2, 5], heavy[5, 0] = 2**31 - 1, -(2**31)
    key = jax.random.key(0)
    return {
        "affine": encode_tensor(w, fit_affine(jnp.asarray(w), 3, group_size=8)),
        "affine.dct": encode_tensor(
            w, fit_affine(2 * jnp.asarray(w), 4, group_size="channel", symmetric=True), right=DCT()
        ),
        "escapes": encode_lattice(heavy, random_levels((6, 33)), scalar, lane_symbols=40),
        "norm": encode_raw(w[0], "bfloat16"),
        "offset": encode_lattice(q[:2], random_levels((2, 14)), trellis, right=DCT(), offset=w[0, :14]),
        "rotated": encode_tensor(
            w,
            Uniform(jnp.array(0.25)),
            left=random_hadamard(12, key=key),
            right=blockwise(random_rotation(5, key=key), 5),
        ),
        "trellis.0": encode_lattice(q, random_levels((9, 14)), trellis, lane_symbols=30),
        "trellis.1": encode_lattice(q[:3], random_levels((3, 14), seed=1), trellis),
    }


@pytest.fixture(scope="session")
def kinds() -> dict[str, CodedTensor]:
    return every_kind()


@pytest.fixture
def model() -> dict[str, object]:
    """What a file says of its model."""
    return {"name": "é", "rates": [1, 2.5], "nested": {"coordinates": "hadamard"}}


@pytest.fixture
def path(kinds, model, tmp_path) -> Path:
    """A file with tensors of every kind."""
    target = tmp_path / "model.occ.safetensors"
    write_container(target, kinds, model=model, producer="test 1")
    return target


@pytest.fixture(scope="session")
def plain_decoder() -> ModuleType:
    return load_beside(__file__, "plain_decoder.py")


def load_beside(origin: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), Path(origin).with_name(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make():
    """The makers above, for tests (which cannot import their neighbours)."""
    return {
        "codebook": small_codebook,
        "path": random_path,
        "levels": random_levels,
        "every_kind": every_kind,
    }
