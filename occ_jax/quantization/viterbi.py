r"""The encoder's search: the path of least distortion plus rate, for many rows at once.

In units of the step, a row :math:`t` gets the path of indices :math:`q` that minimises

.. math::

    \sum_n (t_n - \hat t(q_n))^2 + \lambda \, \mathrm{bits}(q_n)

Of each subset only the integer next to :math:`t_n` and the one after it towards zero can be best (bits grow away from
zero), so a sample has four branch costs whatever the number of states, and a state is one comparison of two sums.
Rows are the vector axis; decisions are kept as one bit for each state and sample.

References:
    Viterbi, Error bounds for convolutional codes, IEEE Trans. Information Theory, 1967; Forney, The Viterbi
    algorithm, Proc. IEEE, 1973.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from occ_jax.quantization.base import to_index
from occ_jax.quantization.codebook import SearchTables, entry_bits, entry_shift, symbol, table_index
from occ_jax.quantization.row_parallel import Devices, over_rows
from occ_jax.quantization.ungerboeck import PARITY_CHECKS, check_num_states, predecessors

_FARTHEST = 2.0**30
"""Steps from zero beyond which a value is searched as if it were there: its square stays finite, its index an int32."""

_CACHED_METRICS = 1 << 15
"""States times rows that are searched together: their metrics and the copies of them stay in a core's cache."""


def best_in_subset(
    t: Float32[Array, "..."],
    subset: Int32[Array, "..."] | int,
    classes: Int32[Array, "..."],
    tables: SearchTables,
    lmbda: Float32[Array, "..."],
    num_states: int,
) -> tuple[Float32[Array, "..."], Int32[Array, "..."], Float32[Array, "..."]]:
    """Cost, index and reconstruction error of the best member of ``subset`` (an index modulo 4) for each value."""
    modulus = 1 if num_states == 1 else 4
    subset = jnp.asarray(subset, jnp.int32)
    near = subset + modulus * to_index(jnp.round((t - subset.astype(t.dtype)) * (1 / modulus)))
    inner = near - jnp.where(near > 0, modulus, -modulus)
    num_columns = tables.entries.shape[1]

    def price(q):
        column = jnp.clip(symbol(q, num_states) - tables.first, 0, num_columns - 1)
        where = table_index(q, classes, num_states) * num_columns + column
        entry = tables.entries.reshape(-1).at[where].get(mode="promise_in_bounds")
        residual = (t - q.astype(t.dtype)) - entry_shift(entry)
        return residual * residual + lmbda * entry_bits(entry), residual

    (cost, residual), (inner_cost, inner_residual) = price(near), price(inner)
    better = inner_cost < cost
    cost = jnp.minimum(cost, inner_cost)
    return cost, jnp.where(better, inner, near), jnp.where(better, inner_residual, residual)


def pack_bits(bits: Bool[Array, "states rows"]) -> UInt8[Array, "bytes rows"]:
    """Eight states (or all four) to a byte, lowest state in the lowest bit."""
    group = min(bits.shape[0], 8)
    grouped = bits.reshape(-1, group, bits.shape[1]).astype(jnp.uint8)
    packed = grouped[:, 0]
    for i in range(1, group):
        packed |= grouped[:, i] << i
    return packed


def bit_of_state(packed: UInt8[Array, "bytes rows"], state: Int32[Array, " rows"]) -> Int32[Array, " rows"]:
    """The bit that :func:`pack_bits` put down for one state of each row."""
    byte = packed[0] if packed.shape[0] == 1 else jnp.take_along_axis(packed, (state >> 3)[None, :], axis=0)[0]
    return (byte.astype(jnp.int32) >> (state & 7)) & 1


def step_back(state: Int32[Array, " rows"], bit: Int32[Array, " rows"], num_states: int) -> Int32[Array, " rows"]:
    """State before ``state``, when subset bit ``bit`` led to it: inverse of ``step_state``."""
    h0, h1 = PARITY_CHECKS[num_states]
    parity = state // (num_states // 2)
    return 2 * (state ^ (parity * (h0 >> 1)) ^ (bit * (h1 >> 1))) + parity


def _subset_path(costs: Float32[Array, "length 4 rows"], num_states: int) -> Int32[Array, "length rows"]:
    """The subsets along the cheapest path from state 0."""
    num_rows = costs.shape[2]
    before = predecessors(num_states)

    def extend(metric, cost):
        cost = cost.reshape(2, 2, 1, num_rows) - metric[:1][None, None]  # state 0 is always reachable
        halves = (2, num_states // 2, num_rows)
        zero = metric[before[:, 0]].reshape(halves) + cost[0]
        one = metric[before[:, 1]].reshape(halves) + cost[1]
        decision = (one < zero).reshape(num_states, num_rows)
        return jnp.minimum(zero, one).reshape(num_states, num_rows), pack_bits(decision)

    start = jnp.where(np.arange(num_states)[:, None] == 0, jnp.zeros((1, num_rows), costs.dtype), jnp.inf)
    metric, decisions = lax.scan(extend, start, costs)

    def trace(state, packed):
        bit = bit_of_state(packed, state)
        state = step_back(state, bit, num_states)
        return state, 2 * bit + (state & 1)

    _, subsets = lax.scan(trace, jnp.argmin(metric, axis=0).astype(jnp.int32), decisions, reverse=True)
    return subsets


def _search_rows(t, classes, tables, lmbda, num_states):
    if num_states == 1:
        return best_in_subset(t, 0, classes, tables, lmbda, 1)[1]
    costs = [best_in_subset(t, subset, classes, tables, lmbda, num_states)[0] for subset in range(4)]
    subsets = _subset_path(jnp.stack(costs, axis=1), num_states)
    return best_in_subset(t, subsets, classes, tables, lmbda, num_states)[1]


def _search_in_chunks(t, classes, tables, lmbda, num_states):
    num_rows, length = t.shape
    # At least two: a loop that runs once is no loop to the compiler, and what goes into a loop has the rows last in
    # memory. Otherwise it merges the transposition into every one of the table lookups, at four times their cost.
    num_chunks = max(2, -(-num_rows // max(_CACHED_METRICS // num_states, 64)))
    chunk = -(-num_rows // num_chunks)

    def rows_last(x):
        padded = jnp.pad(x, ((0, num_chunks * chunk - num_rows), (0, 0)))
        return padded.reshape(num_chunks, chunk, length).transpose(0, 2, 1)

    def one(rows):
        t, classes = rows
        return _search_rows(t, classes, tables, lmbda, num_states)

    q = lax.map(one, (rows_last(t), rows_last(classes)))
    return q.transpose(0, 2, 1).reshape(-1, length)[:num_rows]


@partial(jax.jit, static_argnames=("num_states", "devices"))
def search(
    t: Float[Array, "rows length"],
    classes: Int32[Array, "rows length"],
    tables: SearchTables,
    *,
    num_states: int,
    lmbda: Float[Array, ""] | float,
    devices: Devices = None,
) -> Int32[Array, "rows length"]:
    """Indices of the best path for each row; every row starts in state 0 and ends in any state.

    Args:
        t: values, in steps.
        classes: scale class of each value.
        tables: the codebook, unfolded by :func:`~occ_jax.quantization.codebook.search_tables`.
        num_states: states of the trellis.
        lmbda: squared steps that one bit is worth.
        devices: devices to share the rows between, in equal parts; the result does not depend on them.
    """
    check_num_states(num_states)

    def run(rows, shared):
        t, classes = rows
        tables, lmbda = shared
        return _search_in_chunks(t, classes, tables, lmbda, num_states)

    rows = (jnp.clip(t.astype(jnp.float32), -_FARTHEST, _FARTHEST), classes)
    return over_rows(run, devices)(rows, (tables, jnp.asarray(lmbda, jnp.float32)))
