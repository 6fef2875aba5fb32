"""Small matrices to quantize with feedback: correlated inputs, codebooks, steps and scale levels."""

import jax.numpy as jnp
import numpy as np

from occ_jax.entropy import from_counts, stack
from occ_jax.quantization.codebook import REACH, Codebook, estimate, reconstruct
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.scales import scale_classes
from occ_jax.quantization.trellis import gaussian_statistics

ROWS, COLUMNS = 18, 72


def correlated_hessian(n, seed=0, samples=None):
    rng = np.random.default_rng(seed)
    mixing = np.eye(n) + 0.3 * rng.standard_normal((n, n)) * np.exp2(rng.standard_normal(n))
    x = rng.standard_normal((samples or 4 * n, n)) @ mixing
    return x.T @ x / len(x)


def plain_codebook(num_states):
    """Points on the integers."""
    tables = stack([from_counts(np.ones(40, int), -20)] * (1 if num_states == 1 else 2))
    return Codebook(tables, jnp.zeros((tables.freq.shape[0], 2 * REACH + 1), jnp.int8), num_states)


def shifted_codebook(num_states, sigmas=(0.7, 2.0)):
    codebook = estimate(gaussian_statistics(np.array(sigmas), num_states), num_states)
    shifts = np.tile(-3 * np.sign(np.arange(-REACH, REACH + 1)), (len(codebook.shifts), 1))
    return Codebook(codebook.tables, jnp.asarray(shifts, jnp.int8), num_states)


def problem(num_states, columns=COLUMNS, rows=ROWS, seed=0):
    """Arguments of a heteroscedastic matrix: weights, factor, codebook, steps and levels."""
    rng = np.random.default_rng(seed)
    factor = prepare_hessian(correlated_hessian(columns, seed))
    arguments = {
        "step_row": np.exp2(rng.integers(-4, 5, rows) / 8),
        "step_column": 0.5 * np.exp2(np.rint(8 * np.log2(factor.relative_steps / factor.diagonal.mean())) / 8),
        "row_level": rng.integers(0, 2, rows),
        "column_level": rng.integers(0, 2, columns),
        "num_states": num_states,
    }
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    return w, factor, shifted_codebook(num_states), arguments


def weights_of(result, codebook, arguments):
    classes = scale_classes(arguments["row_level"], arguments["column_level"], codebook.num_classes)
    t = np.asarray(reconstruct(result.q, classes, codebook), np.float64)
    return t * arguments["step_row"][:, None] * arguments["step_column"][None, :]
