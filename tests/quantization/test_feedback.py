"""Feedback is GPTQ where there is one state, and the trellis with exact feedback where there are more."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feedback_problems import COLUMNS, ROWS, correlated_hessian, plain_codebook, problem, shifted_codebook, weights_of

from occ_jax.quantization import feedback
from occ_jax.quantization.codebook import estimate, reconstruct, search_tables
from occ_jax.quantization.feedback import quantize_with_feedback
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.output_feedback import prepare_outputs
from occ_jax.quantization.scales import scale_classes
from occ_jax.quantization.trellis import gaussian_statistics
from occ_jax.quantization.trellis_coding import is_path
from occ_jax.quantization.ungerboeck import next_states


def gptq(w, hessian, step, damping):
    """GPTQ as published: inverse Hessian, upper Cholesky factor, one column after the other, in float64."""
    h = hessian + damping * np.mean(np.diagonal(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w, q = np.array(w, np.float64), np.zeros(w.shape, int)
    for j in range(w.shape[1]):
        q[:, j] = np.rint(w[:, j] / step)
        error = (w[:, j] - step * q[:, j]) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
    return q


@pytest.mark.parametrize("order", ["natural", "loudest first"])
def test_one_state_without_rate_is_gptq(order):
    hessian = correlated_hessian(COLUMNS)
    w = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    visit = np.arange(COLUMNS) if order == "natural" else np.argsort(-np.diagonal(hessian))
    result = quantize_with_feedback(
        w,
        prepare_hessian(hessian, order=visit),
        search_tables(plain_codebook(1)),
        step_row=np.ones(ROWS),
        step_column=np.full(COLUMNS, 0.25),
        row_level=np.zeros(ROWS, int),
        column_level=np.zeros(COLUMNS, int),
        num_states=1,
        lmbda=0.0,
    )
    assert np.array_equal(result.q[:, visit], gptq(w[:, visit], hessian[np.ix_(visit, visit)], 0.25, 0.01))


@pytest.mark.parametrize("num_states", [1, 8])
def test_residuals_are_the_errors_of_the_weighted_distortion(num_states):
    w, factor, codebook, arguments = problem(num_states)
    result = quantize_with_feedback(w, factor, search_tables(codebook), **arguments)
    assert is_path(result.q, num_states)
    error = w - weights_of(result, codebook, arguments)
    columns_error = np.linalg.solve(factor.upper.T, error.T).T  # E = (W - W_hat) U^-1
    scale = arguments["step_column"] / factor.diagonal
    expected = columns_error / scale / arguments["step_row"][:, None]
    assert np.allclose(result.residual, expected, atol=2e-4)
    damped = correlated_hessian(COLUMNS) + 0.01 * np.mean(np.diagonal(correlated_hessian(COLUMNS))) * np.eye(COLUMNS)
    assert np.trace(error @ damped @ error.T) == pytest.approx(np.square(columns_error).sum(), rel=1e-6)


def brute_force(w, factor, codebook, arguments, lmbda):
    """Least cost of all subset paths of each row, feedback recomputed for each in float64."""
    tables = search_tables(codebook)
    bits, first = np.asarray(tables.bits), int(tables.first)
    classes = np.asarray(scale_classes(arguments["row_level"], arguments["column_level"], codebook.num_classes))
    points = np.arange(-12, 12)
    relative = arguments["step_column"] / factor.diagonal
    weight = np.square(relative / np.exp(np.log(relative).mean()))
    following, best = next_states(codebook.num_states), np.full(len(w), np.inf)
    for row, path in itertools.product(range(len(w)), itertools.product(range(2), repeat=w.shape[1])):
        values, state, total = w[row].astype(np.float64) / arguments["step_row"][row], 0, 0.0
        for j, bit in enumerate(path):
            q = points[points % 4 == 2 * bit + state % 2]
            table = 2 * classes[row, j] + state % 2
            recon = np.asarray(reconstruct(jnp.asarray(q), jnp.full(q.shape, classes[row, j]), codebook))
            residual = values[j] / arguments["step_column"][j] - recon
            cost = weight[j] * residual**2 + lmbda * bits[table, (q >> 1) - first]
            pick = cost.argmin()
            total += cost[pick]
            error = residual[pick] * arguments["step_column"][j]
            values[j:] -= error / factor.upper[j, j] * factor.upper[j, j:]
            state = following[state, bit]
        best[row] = min(best[row], total)
    return best


def test_as_many_states_as_paths_find_the_best_path():
    """Eight steps through 256 states: paths do not meet before the end, so survivors are all paths."""
    w, factor, codebook, arguments = problem(256, columns=6, rows=3)
    result = quantize_with_feedback(w, factor, search_tables(codebook), lmbda=0.3, **arguments)
    classes = np.asarray(scale_classes(arguments["row_level"], arguments["column_level"], codebook.num_classes))
    tables, q = search_tables(codebook), np.asarray(result.q)
    bits = np.asarray(tables.bits)[2 * classes + q % 2, (q >> 1) - int(tables.first)]
    relative = arguments["step_column"] / factor.diagonal
    weight = np.square(relative / np.exp(np.log(relative).mean()))
    cost = (weight * np.square(np.asarray(result.residual)) + 0.3 * bits).sum(1)
    assert cost == pytest.approx(brute_force(w, factor, codebook, arguments, 0.3), abs=5e-3)


def test_without_coupling_it_is_the_plain_search():
    from occ_jax.quantization.viterbi import search

    w = np.random.default_rng(4).standard_normal((9, 100)).astype(np.float32) * 2
    codebook = shifted_codebook(8)
    result = quantize_with_feedback(
        w,
        prepare_hessian(np.eye(100), damping=0.0),
        search_tables(codebook),
        step_row=np.ones(9),
        step_column=np.ones(100),
        row_level=np.ones(9, int),
        column_level=np.zeros(100, int),
        num_states=8,
    )
    classes = jnp.ones(w.shape, jnp.int32)
    plain = search(jnp.asarray(w), classes, search_tables(codebook), num_states=8, lmbda=0.36)
    assert jnp.array_equal(result.q, plain)


@pytest.mark.parametrize("delay", [0, 30])
def test_rows_stay_paths_however_soon_they_are_decided(delay):
    w, factor, codebook, arguments = problem(16, columns=50)
    result = quantize_with_feedback(w, factor, search_tables(codebook), delay=delay, **arguments)
    assert is_path(result.q, 16)
    error = w - weights_of(result, codebook, arguments)
    expected = np.linalg.solve(factor.upper.T, error.T).T * factor.diagonal / arguments["step_column"]
    assert np.allclose(result.residual, expected / arguments["step_row"][:, None], atol=2e-4)


def test_more_states_and_later_decisions_cost_less():
    w, factor, _, arguments = problem(1, columns=128, rows=64)
    arguments["row_level"][:], arguments["column_level"][:] = 1, 0

    def lagrangian(num_states, **options):
        codebook = estimate(gaussian_statistics(np.array([0.7, 2.5]), num_states), num_states)
        tables = search_tables(codebook)
        arguments["num_states"] = num_states
        result = quantize_with_feedback(w, factor, tables, lmbda=0.36, **options, **arguments)
        q = np.asarray(result.q)
        parity = q % 2 if num_states > 1 else 0
        k = q >> 1 if num_states > 1 else q
        bits = np.asarray(tables.bits)[codebook.num_parities + parity, k - int(tables.first)]
        return float(np.log2(np.square(result.residual).mean()) / 2 + bits.mean())

    eight = lagrangian(8)
    assert lagrangian(1) > eight + 0.15
    assert lagrangian(8, delay=0) > eight


def test_one_and_four_devices_agree():
    w, factor, codebook, arguments = problem(8)
    one = quantize_with_feedback(w, factor, search_tables(codebook), **arguments)
    four = quantize_with_feedback(w, factor, search_tables(codebook), devices=tuple(jax.devices()[:4]), **arguments)
    assert jnp.array_equal(one.q, four.q)


def test_one_compilation_serves_all_matrices_of_a_shape():
    feedback._quantize.clear_cache()
    for seed in range(3):
        w, factor, codebook, arguments = problem(4, columns=16, rows=8, seed=seed)
        quantize_with_feedback(w, factor, search_tables(codebook), lmbda=0.1 * seed, **arguments)
    assert feedback._quantize._cache_size() == 1


@pytest.mark.parametrize("outputs", [None, prepare_outputs(correlated_hessian(6), group=2)])
def test_it_lowers_to_every_backend(lowers_everywhere, outputs):
    tables = search_tables(shifted_codebook(8))
    n = 40

    def run(w, levels, upper, steps, tables, outputs):
        rows, level = jnp.ones(6, jnp.float32), jnp.zeros(n, jnp.int32)
        return feedback._quantize(
            w, rows, steps, levels, upper, steps, level, tables, jnp.float32(0.3), outputs, 8, 16, 2, 0, None
        )

    ones = jnp.ones((6, n), jnp.float32)
    lowers_everywhere(run, ones, jnp.zeros(6, jnp.int32), jnp.eye(n, dtype=jnp.float32), ones[0], tables, outputs)


def test_it_is_the_same_in_64_bit_mode():
    w, factor, codebook, arguments = problem(8)
    narrow = quantize_with_feedback(w, factor, search_tables(codebook), **arguments)
    with jax.enable_x64(True):
        wide = quantize_with_feedback(w, factor, search_tables(codebook), **arguments)
    assert wide.q.dtype == jnp.int32
    assert wide.residual.dtype == jnp.float32
    assert np.array_equal(narrow.q, wide.q)


def test_what_cannot_be_quantized_is_refused():
    w, factor, codebook, arguments = problem(4, columns=16, rows=3)
    tables = search_tables(codebook)
    with pytest.raises(ValueError, match="1 weights are NaN or infinite"):
        quantize_with_feedback(np.where(w == w[1, 1], np.nan, w), factor, tables, **arguments)
    narrower = {name: arguments[name][:15] for name in ("step_column", "column_level")}
    with pytest.raises(ValueError, match="do not fit a factor of 16 columns"):
        quantize_with_feedback(w[:, :15], factor, tables, **(arguments | narrower))
    with pytest.raises(ValueError, match="6 states"):
        quantize_with_feedback(w, factor, tables, **{**arguments, "num_states": 6})
    with pytest.raises(ValueError, match="after 0 columns or more"):
        quantize_with_feedback(w, factor, tables, delay=-1, **arguments)
