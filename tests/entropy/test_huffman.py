"""Prefix codes and empirical entropies against closed forms and each other."""

import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_jax.entropy import (
    HuffmanCode,
    canonical_codes,
    code_lengths,
    empirical_entropy_bits,
    entropy_bits,
    fit_huffman,
    histogram,
    value_counts,
)

QUICK = settings(max_examples=60, deadline=None)
VALUES = st.lists(st.integers(-20, 20), min_size=1, max_size=60).map(np.array)


def huffman_bits(counts) -> int:
    """Cost of an optimal code by Huffman's own merging: the sum of all merged weights."""
    heap = [int(c) for c in counts if c]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@QUICK
@given(VALUES)
def test_round_trip_at_the_optimal_cost(q):
    code = fit_huffman(q)
    np.testing.assert_array_equal(code.decode(code.encode(q), q.size), q)
    assert code.num_bits(q) == huffman_bits(value_counts(q)[1])
    entropy = empirical_entropy_bits(q) * q.size
    assert entropy - 1e-9 <= code.num_bits(q) <= entropy + q.size
    assert len(code.encode(q)) == -(-code.num_bits(q) // 8)


def test_lengths_are_limited_at_least_cost():
    fibonacci = np.array([1, 1, 2, 3, 5, 8, 13, 21, 34, 55])
    assert code_lengths(fibonacci).max() == 9
    limited = code_lengths(fibonacci, max_length=4)
    assert limited.max() == 4
    assert (0.5**limited).sum() <= 1
    assert (limited * fibonacci).sum() > huffman_bits(fibonacci)
    np.testing.assert_array_equal(code_lengths(np.ones(16, int), max_length=4), 4)
    with pytest.raises(ValueError, match="17 symbols do not fit codes of 4 bits"):
        code_lengths(np.ones(17, int), max_length=4)


def test_canonical_codes_are_prefix_free_and_ordered():
    lengths = code_lengths(np.array([5, 9, 12, 13, 16, 45, 0]))
    words = sorted(f"{code:0{n}b}" for code, n in zip(canonical_codes(lengths), lengths) if n)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(words))
    assert [len(word) for word in words] == sorted(len(word) for word in words)


def test_wrong_lengths_values_and_bits_are_refused():
    with pytest.raises(ValueError, match="no prefix code"):
        HuffmanCode(np.array([1, 1, 1]), 0)
    code = fit_huffman(np.array([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="has no code"):
        code.encode(np.array([3]))
    with pytest.raises(ValueError, match="are announced"):
        code.decode(code.encode(np.array([0, 1])), 50)
    with pytest.raises(ValueError, match="take 3 bits"):
        code.decode(code.encode(np.array([0, 1])) + b"\x00", 2)


def test_nothing_to_code():
    code = fit_huffman(np.zeros(0, int))
    assert code.encode(np.zeros(0, int)) == b""
    assert code.decode(b"", 0).size == 0


@QUICK
@given(VALUES)
def test_value_counts_are_numpys(q):
    values, counts = np.unique(q, return_counts=True)
    for seen, expected in zip(value_counts(q), (values, counts)):
        np.testing.assert_array_equal(seen, expected)


def test_value_counts_of_a_wide_range():
    values, counts = value_counts(np.array([-(2**31), 2**31 - 1, 0, 0], np.int32))
    assert (values.tolist(), counts.tolist()) == ([-(2**31), 0, 2**31 - 1], [1, 2, 1])
    assert value_counts(np.zeros(0, np.int32))[0].size == 0


def test_entropy_is_that_of_scipy():
    counts = np.array([3, 0, 9, 1])
    assert entropy_bits(counts) == pytest.approx(scipy.stats.entropy(counts, base=2))
    assert entropy_bits(np.zeros(3, int)) == 0


def test_conditional_entropy_is_joint_minus_context():
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 4, 5000)
    q = rng.integers(0, 3, 5000) * contexts
    joint = empirical_entropy_bits(7 * contexts + q * 100)
    expected = joint - empirical_entropy_bits(contexts)
    assert empirical_entropy_bits(q, contexts) == pytest.approx(expected)
    with pytest.raises(ValueError, match="as many contexts"):
        empirical_entropy_bits(q, contexts[:-1])


def test_histogram_counts_under_jit(lowers_everywhere):
    q = jnp.array([[3, -1, 3], [2**31 - 1, -(2**31), 0]])
    count = jax.jit(histogram, static_argnums=(1, 2))
    assert count(q, -1, 5).tolist() == [1, 1, 0, 0, 2]
    lowers_everywhere(lambda q: histogram(q, -1, 5), q)
