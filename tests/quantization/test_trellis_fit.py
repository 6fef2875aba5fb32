"""The trellis at work: distance from the rate-distortion limit, and streams that decode to what was encoded."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occ_jax.entropy.streams import pack, unpack
from occ_jax.quantization.codebook import estimate, gather_statistics, reconstruct, search_tables, symbol, table_index
from occ_jax.quantization.scales import scale_classes
from occ_jax.quantization.trellis import fit, gaussian_codebook, gaussian_statistics
from occ_jax.quantization.trellis_coding import (
    decode_indices,
    encode_indices,
    indices_from_symbols,
    is_path,
    lane_lengths,
    rows_per_lane,
    states_along,
    symbols_and_contexts,
    to_lanes,
)
from occ_jax.quantization.ungerboeck import STATE_COUNTS
from occ_jax.quantization.viterbi import search


def code_length(q, classes, codebook):
    tables, num_states = search_tables(codebook), codebook.num_states
    column = np.asarray(symbol(q, num_states)) - int(tables.first)
    return np.asarray(tables.bits)[np.asarray(table_index(q, classes, num_states)), column]


def distance_from_limit(t, q, classes, codebook):
    """Bits above the Gaussian R(D), and its standard error over the rows."""
    bits = code_length(q, classes, codebook).mean(1)
    error = np.square(np.asarray(reconstruct(q, classes, codebook) - t, np.float64)).mean(1)
    power = np.square(np.asarray(t, np.float64)).mean(1)
    gap = bits.mean() + 0.5 * np.log2(error.mean() / power.mean())
    influence = bits + (error / error.mean() - power / power.mean()) / (2 * np.log(2))
    return gap, influence.std() / np.sqrt(len(bits))


# At high rate: scalar 0.2546 (log2(pi e / 6) / 2); trellises as measured on 4 M samples by benchmarks/gaussian.py.
@pytest.mark.parametrize(
    ("num_states", "sigma", "expected"),
    [(1, 3.0, 0.2546), (4, 2.0, 0.090), (8, 2.0, 0.075), (8, 0.8, 0.075)],
)
def test_distance_from_the_rate_distortion_function(num_states, sigma, expected):
    t = jnp.asarray(np.random.default_rng(7).standard_normal((128, 1024)) * sigma, jnp.float32)
    classes = jnp.zeros(t.shape, jnp.int32)
    codebook, q = fit(t, classes, num_states=num_states, num_classes=1, num_iterations=5)
    gap, standard_error = distance_from_limit(t, q, classes, codebook)
    assert standard_error < 0.002
    assert gap == pytest.approx(expected, abs=0.003 + 3 * standard_error)


def test_the_alternation_lowers_the_lagrangian():
    t = jnp.asarray(np.random.default_rng(0).standard_normal((32, 500)), jnp.float32)
    classes = jnp.zeros(t.shape, jnp.int32)
    codebook, costs = estimate(gaussian_statistics(np.array([1.0]), 8), 8), []
    for _ in range(6):
        q = search(t, classes, search_tables(codebook), num_states=8, lmbda=0.36)
        codebook = estimate(gather_statistics(t, q, classes, 8, 1), 8)
        error = np.square(np.asarray(reconstruct(q, classes, codebook) - t)).mean()
        costs.append(error + 0.36 * code_length(q, classes, codebook).mean())
    assert all(after < before + 1e-4 for before, after in itertools.pairwise(costs))
    assert costs[-1] < costs[0] - 5e-4


def test_a_class_of_almost_no_bits_gets_a_point_near_zero_in_odd_states_too():
    sigmas = np.array([0.3, 2.0])
    codebook = gaussian_codebook(sigmas, num_states=8, num_iterations=3, rows_per_class=8)
    t = jnp.asarray(np.random.default_rng(1).standard_normal((64, 100)) * 0.3, jnp.float32)
    classes = jnp.zeros(t.shape, jnp.int32)
    q = search(t, classes, search_tables(codebook), num_states=8, lmbda=0.36)
    assert code_length(q, classes, codebook).mean() < 0.05
    assert np.square(np.asarray(reconstruct(q, classes, codebook) - t)).mean() < 1.1 * 0.3**2


def test_a_fit_that_cannot_be_is_refused():
    t, classes = jnp.zeros((1, 4)), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="3 states"):
        fit(t, classes, num_states=3, num_classes=1)
    with pytest.raises(ValueError, match="at least one iteration"):
        fit(t, classes, num_states=4, num_classes=1, num_iterations=0)


def random_path(shape, num_states, seed=0):
    """Indices along random paths, and levels of their classes."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-2, 5, shape[0]), rng.integers(0, 4, shape[1])
    row_level, column_level = (jnp.asarray(level, jnp.int32) for level in levels)
    q = indices_from_symbols(jnp.asarray(np.rint(rng.standard_normal(shape) * 2), jnp.int32), num_states)
    return q, row_level, column_level


@pytest.mark.parametrize("num_states", STATE_COUNTS)
def test_the_decoder_walks_the_trellis(num_states):
    q, row_level, column_level = random_path((13, 37), num_states)
    assert is_path(q, num_states)
    classes = scale_classes(row_level, column_level, 3, shift=1)
    statistics = gather_statistics(q.astype(jnp.float32), q, classes, num_states, 3)
    tables = estimate(statistics, num_states).tables
    streams = encode_indices(q, classes, tables, num_states=num_states, rows=4)
    lengths = np.asarray(lane_lengths(13, 37, 4))
    received = unpack(pack(streams), lengths)
    decoded = decode_indices(received, tables, row_level, column_level, num_states=num_states, rows=4, class_shift=1)
    assert jnp.array_equal(decoded, q)
    ideal = code_length(q, classes, estimate(statistics, num_states)).sum()
    assert 8 * len(pack(streams)) <= 1.005 * ideal + 80 * len(lengths)


def test_escapes_travel_too():
    q, row_level, column_level = random_path((3, 20), 8)
    k = symbol(q, 8).at[1, 7].set(2**30 - 1).at[2, 0].set(-(2**30))
    q = indices_from_symbols(k, 8)
    classes = scale_classes(row_level, column_level, 2)
    tables = estimate(gaussian_statistics(np.array([1.0, 3.0]), 8), 8).tables
    streams = encode_indices(q, classes, tables, num_states=8)
    assert jnp.array_equal(decode_indices(streams, tables, row_level, column_level, num_states=8), q)


def test_damaged_streams_are_refused():
    q, row_level, column_level = random_path((5, 40), 4)
    classes = scale_classes(row_level, column_level, 2)
    tables = estimate(gaussian_statistics(np.array([1.0, 3.0]), 4), 4).tables
    streams = encode_indices(q, classes, tables, num_states=4)
    broken = jax.tree.map(lambda x: x, streams)
    object.__setattr__(broken, "states", streams.states ^ jnp.uint32(5))
    with pytest.raises(ValueError, match="corrupted"):
        decode_indices(broken, tables, row_level, column_level, num_states=4)


def test_indices_that_are_no_path_are_refused():
    q, row_level, column_level = random_path((5, 40), 8)
    classes = scale_classes(row_level, column_level, 2)
    tables = estimate(gaussian_statistics(np.array([1.0, 3.0]), 8), 8).tables
    wrong = q.at[3, 20].add(1)
    assert not is_path(wrong, 8)
    assert is_path(wrong, 1)
    with pytest.raises(ValueError, match="not paths of the 8-state trellis"):
        encode_indices(wrong, classes, tables, num_states=8)


@pytest.mark.parametrize("num_states", [1, 4, 256])
def test_symbols_lose_nothing(num_states):
    q, _, _ = random_path((7, 50), num_states, seed=num_states)
    k, contexts = symbols_and_contexts(q, jnp.full(q.shape, 3), num_states)
    assert jnp.array_equal(indices_from_symbols(k, num_states), q)
    if num_states > 1:
        assert jnp.array_equal(contexts, 6 + (states_along(q, num_states) & 1))


def test_lanes_hold_whole_rows():
    x = jnp.arange(21, dtype=jnp.int32).reshape(7, 3)
    lanes = to_lanes(x, 3)
    assert lanes.shape == (3, 9)
    assert lanes[2].tolist() == [18, 19, 20, 0, 0, 0, 0, 0, 0]
    assert lane_lengths(7, 3, 3).tolist() == [9, 9, 3]
    assert rows_per_lane(16384) == 1
    assert rows_per_lane(0) == 16384
