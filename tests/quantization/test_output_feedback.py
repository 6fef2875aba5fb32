"""Rows make up for each other exactly as the quadratic form of inputs and outputs says."""

import jax
import numpy as np
import pytest
from feedback_problems import correlated_hessian, plain_codebook, problem, weights_of

from occ_jax.quantization import feedback
from occ_jax.quantization.codebook import search_tables
from occ_jax.quantization.feedback import quantize_with_feedback
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.output_feedback import prepare_outputs
from occ_jax.quantization.trellis_coding import is_path

ROWS, COLUMNS = 22, 40


def damped(matrix, damping):
    return matrix + damping * np.mean(np.diagonal(matrix)) * np.eye(len(matrix))


def cost(error, fisher, hessian):
    return np.trace(fisher @ error @ hessian @ error.T)


def babai(w, fisher, hessian, step_row, step_column):
    """Nearest plane in the lattice of all weights, one weight after the other, in float64: rows outside, columns inside."""
    g, h = (np.linalg.cholesky(np.linalg.inv(m)).T for m in (fisher, hessian))
    # Whitened errors of all weights at once are a triangular matrix times the errors.
    whiten = np.kron(np.linalg.inv(g).T, np.linalg.inv(h).T)
    assert np.allclose(whiten, np.tril(whiten))
    step = np.outer(step_row, step_column).ravel()
    q, error = np.zeros(w.size, int), np.zeros(w.size)
    for i, value in enumerate(w.ravel()):
        shift = whiten[i, :i] @ error[:i] / whiten[i, i]
        q[i] = np.rint((value + shift) / step[i])
        error[i] = value - step[i] * q[i]
    return q.reshape(w.shape)


def test_one_row_at_a_time_is_babais_nearest_plane():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 8)).astype(np.float32)
    fisher, hessian = correlated_hessian(6, seed=1), correlated_hessian(8, seed=2)
    step_row, step_column = 0.1 * np.exp2(rng.uniform(-1, 1, 6)), np.exp2(rng.uniform(-1, 1, 8))
    result = quantize_with_feedback(
        w,
        prepare_hessian(hessian, damping=0.01),
        search_tables(plain_codebook(1)),
        step_row=step_row,
        step_column=step_column,
        row_level=np.zeros(6, int),
        column_level=np.zeros(8, int),
        num_states=1,
        lmbda=0.0,
        outputs=prepare_outputs(fisher, damping=0.02, group=1),
    )
    expected = babai(w.astype(np.float64), damped(fisher, 0.02), damped(hessian, 0.01), step_row, step_column)
    np.testing.assert_array_equal(result.q, expected)


@pytest.mark.parametrize("group", [1, 5, 8, 22])
def test_the_cost_of_a_matrix_is_the_sum_over_its_groups(group):
    fisher, hessian = correlated_hessian(ROWS, seed=1), correlated_hessian(COLUMNS, seed=2)
    factor = prepare_outputs(fisher, damping=0.1, group=group)
    rng = np.random.default_rng(0)
    targets = np.zeros((ROWS, COLUMNS))
    error, total, g = np.zeros((ROWS, COLUMNS)), 0.0, damped(fisher, 0.1)
    flat = factor.order.reshape(-1)
    upper = prepare_hessian(fisher, damping=0.1, order=flat[flat < ROWS]).upper
    start = 0
    for order, coupling in zip(factor.order, factor.coupling):
        real = order < ROWS
        rows, left = order[real], rng.standard_normal((real.sum(), COLUMNS))
        own = upper[start : (start := start + len(rows)), :][:, start - len(rows) : start]
        total += np.trace(np.linalg.inv(own.T @ own) @ left @ hessian @ left.T)
        error[rows] = left - targets[rows]  # what a target has moved by is an error made good
        behind = flat < ROWS
        targets[flat[behind]] -= coupling[real][:, behind].T @ left
        np.testing.assert_allclose(factor.weights[rows], np.diagonal(np.linalg.inv(own.T @ own)), rtol=1e-5)
    assert cost(error, g, hessian) == pytest.approx(total, rel=1e-4)


def test_a_group_of_all_rows_is_no_feedback():
    factor = prepare_outputs(correlated_hessian(ROWS), damping=0.1, group=ROWS)
    assert not factor.coupling.any()
    np.testing.assert_allclose(factor.weights, np.diagonal(damped(correlated_hessian(ROWS), 0.1)))


def test_smaller_groups_see_more():
    fisher = correlated_hessian(ROWS)
    means = [np.log(prepare_outputs(fisher, damping=0.1, group=group).weights).mean() for group in (1, 2, 4, 11, 22)]
    assert np.all(np.diff(means) > 0)
    exact = np.linalg.slogdet(damped(fisher, 0.1))[1] / ROWS
    assert means[0] == pytest.approx(exact)


@pytest.mark.parametrize("num_states", [1, 8])
def test_errors_cost_less_than_those_of_independent_rows(num_states):
    """At equal steps, against steps and rows that know of the diagonal alone."""
    w, factor, codebook, arguments = problem(num_states, columns=COLUMNS, rows=64)
    fisher, hessian = correlated_hessian(64, seed=3), damped(correlated_hessian(COLUMNS), 0.01)
    outputs = prepare_outputs(fisher, damping=0.01, group=8)
    spent = {}
    for name, weights, given in (("alone", np.diagonal(fisher), None), ("together", outputs.weights, outputs)):
        step = weights**-0.5
        arguments["step_row"] = 0.5 * step / np.exp(np.log(step).mean())
        result = quantize_with_feedback(w, factor, search_tables(codebook), outputs=given, **arguments)
        assert is_path(result.q, num_states)
        spent[name] = cost(w - weights_of(result, codebook, arguments), fisher, hessian)
    gain = np.exp(np.log(outputs.weights).mean() - np.log(np.diagonal(fisher)).mean())
    assert gain < 0.8
    assert spent["together"] < (1 + gain) / 2 * spent["alone"]


def test_residuals_are_those_of_the_moved_targets():
    w, factor, codebook, arguments = problem(8, columns=COLUMNS, rows=ROWS)
    outputs = prepare_outputs(correlated_hessian(ROWS), damping=0.1, group=ROWS)
    plain, grouped = (
        quantize_with_feedback(w, factor, search_tables(codebook), outputs=given, **arguments)
        for given in (None, outputs)
    )
    np.testing.assert_array_equal(plain.q, grouped.q)
    np.testing.assert_allclose(plain.residual, grouped.residual, atol=1e-6)


def test_it_is_compiled_once_for_a_shape():
    w, factor, codebook, arguments = problem(8, columns=COLUMNS, rows=ROWS)
    tables = search_tables(codebook)
    for seed in range(2):
        outputs = prepare_outputs(correlated_hessian(ROWS, seed=seed), group=5)
        quantize_with_feedback(w, factor, tables, outputs=outputs, **arguments)
        compiled = feedback._quantize._cache_size() if seed == 0 else compiled
    assert feedback._quantize._cache_size() == compiled


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outputs": prepare_outputs(np.eye(ROWS + 1))}, "23 rows, the weights have 22"),
        ({"outputs": prepare_outputs(np.eye(ROWS)), "devices": tuple(jax.devices()[:2])}, "2 devices"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    w, factor, codebook, arguments = problem(1, columns=COLUMNS, rows=ROWS)
    with pytest.raises(ValueError, match=says):
        quantize_with_feedback(w, factor, search_tables(codebook), **arguments, **change)


def test_a_group_needs_rows():
    with pytest.raises(ValueError, match="group of 0 rows"):
        prepare_outputs(np.eye(3), group=0)
