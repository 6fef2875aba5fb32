r"""Successive feedback inside the trellis: per-survivor processing, for many rows at once.

In units of the steps, quantizing column :math:`j` leaves a residual :math:`r_j = t_j - \hat t_j`, and feedback moves
the columns after it,

.. math::

    t_k \leftarrow t_k - r_j C_{jk}, \qquad
    \text{cost} = \sum_j m_j r_j^2 + \lambda \, \mathrm{bits}(q_j)

A path of the trellis therefore changes the values that it will meet, and every state keeps its own copy of them. What
this costs is decided by three distances:

* inside a block of a few columns the copies move with the survivors from state to state, at every column;
* the last few blocks are not decided yet: each survivor's residuals in them move once for each block, and act on
  the values of the next block by a matrix product;
* blocks further back are decided. By then all survivors agree on them but for rare exceptions, which are dropped. They
  act by one matrix product for all survivors.

References:
    Raheli, Polydoros & Tzou, Per-survivor processing: a general approach to MLSE in uncertain environments, IEEE
    Trans. Communications, 1995.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32

from occ_jax.quantization.codebook import SearchTables
from occ_jax.quantization.ungerboeck import num_parities, predecessors
from occ_jax.quantization.viterbi import best_in_subset


class Columns(NamedTuple):
    """What is known of the columns.

    Attributes:
        coupling: :math:`C`, strictly upper triangular, below as many rows of zeros as there are undecided columns (none
            with one state).
        weight: :math:`m`; zero for columns that only fill up the last block.
        level: scale level of each column.
    """

    coupling: Float32[Array, "padded columns"]
    weight: Float32[Array, " columns"]
    level: Int32[Array, " columns"]


class Window(NamedTuple):
    """The blocks that are not decided, oldest first in ``residual`` and ``end``.

    Attributes:
        residual: residuals of each survivor (state and row), side by side so that they move as one.
        end: state in which each survivor ended each block.
        q: indices that led to each state, from each block's own search. A ring, block ``i`` in slot ``i % slots``, with
            one slot more than there are blocks: the newest is written before the oldest is read, so nothing is copied.
    """

    residual: Float32[Array, "survivors columns"]
    end: Int32[Array, "blocks states rows"]
    q: Int32[Array, "slots block states rows"]


_product = partial(jnp.matmul, precision="highest")


def _flat(state: Int32[Array, "states rows"]) -> Int32[Array, "states rows"]:
    """Number of the survivor that is in ``state[s, n]`` of row ``n``."""
    num_rows = state.shape[1]
    return state * num_rows + jnp.arange(num_rows, dtype=jnp.int32)[None, :]


def _at_state(x: Array, state: Int32[Array, "states rows"]) -> Array:
    """``x[..., state[s, n], n]`` for every entry of ``state``."""
    return x.reshape(*x.shape[:-2], -1).at[..., _flat(state)].get(mode="clip")


def _extend(
    num_states: int, tables: SearchTables, lmbda: Array, class_of: Callable[[Array], Array]
) -> Callable[[Any, Any], Any]:
    """The step from one column to the next, for ``lax.scan``."""
    before = predecessors(num_states)
    parity = jnp.arange(num_states, dtype=jnp.int32)[:, None] % num_parities(num_states)

    def branches(metric, t, weight, level) -> Iterator[tuple[Array, Array, Array]]:
        classes = class_of(level)[None, :]
        rate = lmbda / jnp.where(weight > 0, weight, jnp.inf)  # columns that only fill up cost nothing
        for bit in range(2):
            cost, q, residual = best_in_subset(t, 2 * bit + parity, classes, tables, rate, num_states)
            yield metric + weight * cost, q, residual

    def extend(carry, column):
        metric, origin, values = carry
        index, coupling, weight, level = column
        t = lax.dynamic_index_in_dim(values, index, keepdims=False)
        zero, one = branches(metric, t, weight, level)
        from_zero, from_one = zero[0][before[:, 0]], one[0][before[:, 1]]
        is_one = from_one < from_zero

        def survive(of_zero, of_one):
            chosen = jnp.broadcast_to(is_one, of_zero.shape)
            return jnp.where(chosen, of_one[..., before[:, 1], :], of_zero[..., before[:, 0], :])

        metric = jnp.minimum(from_zero, from_one)
        q, residual = survive(zero[1], one[1]), survive(zero[2], one[2])
        origin, values = survive(origin, origin), survive(values, values)
        values = values - coupling[:, None, None] * residual[None]
        values = lax.dynamic_update_index_in_dim(values, residual, index, axis=0)
        return (metric, origin, values), q

    return extend


def _trace(q: Array, state: Int32[Array, " rows"], num_states: int) -> Int32[Array, "block rows"]:
    """Indices of a block along the path that ends in ``state``: an index tells its subset, hence its origin."""
    before = jnp.asarray(predecessors(num_states), jnp.int32)

    def back(state, q):
        chosen = _at_state(q, state[None])[0]
        return before[state, (chosen >> 1) & 1], chosen

    return lax.scan(back, state, q, reverse=True)[1]


def decide_rows(
    t: Float32[Array, "columns rows"],
    row_level: Int32[Array, " rows"],
    columns: Columns,
    tables: SearchTables,
    lmbda: Float32[Array, ""],
    *,
    block: int,
    class_shift: int,
) -> tuple[Int32[Array, "columns rows"], Float32[Array, "columns rows"]]:
    """What :func:`search_rows` does with one state: every column is decided at once, and nothing has to be kept.

    Args:
        t: values, in steps; ``block`` divides their number.
        row_level: scale level of each row.
        columns: what is known of the columns.
        tables: the codebook.
        lmbda: squared steps that one bit is worth.
        block: columns in a block: within it errors act one by one, from earlier blocks by one product.
        class_shift: ``shift`` of the scale classes.
    """

    def decide(values, column):
        index, coupling, weight, level = column
        t = lax.dynamic_index_in_dim(values, index, keepdims=False)
        classes = jnp.clip((row_level + level) >> class_shift, 0, tables.num_tables - 1)
        rate = lmbda / jnp.where(weight > 0, weight, jnp.inf)
        _, q, residual = best_in_subset(t, 0, classes, tables, rate, 1)
        return values - coupling[:, None] * residual[None], (q, residual)

    def visit(carry, first):
        _, residuals = carry
        coupling, values = (
            lax.dynamic_slice_in_dim(x, first, block, axis=axis) for x, axis in ((columns.coupling, 1), (t, 0))
        )
        inside, *of_block = (
            lax.dynamic_slice_in_dim(x, first, block) for x in (coupling, columns.weight, columns.level)
        )
        each = (jnp.arange(block, dtype=jnp.int32), inside, *of_block)
        _, made = lax.scan(decide, values - _product(coupling.T, residuals), each)
        return tuple(lax.dynamic_update_slice_in_dim(x, of, first, axis=0) for x, of in zip(carry, made)), None

    start = jnp.zeros(t.shape, jnp.int32), jnp.zeros(t.shape, jnp.float32)
    (q, residuals), _ = lax.scan(visit, start, block * jnp.arange(t.shape[0] // block, dtype=jnp.int32))
    return q, residuals


def search_rows(
    t: Float32[Array, "columns rows"],
    row_level: Int32[Array, " rows"],
    columns: Columns,
    tables: SearchTables,
    lmbda: Float32[Array, ""],
    *,
    num_states: int,
    block: int,
    delay: int,
    class_shift: int,
) -> tuple[Int32[Array, "columns rows"], Float32[Array, "columns rows"]]:
    """Indices and residuals, in steps, of rows that are searched together.

    Args:
        t: values, in steps; ``block`` divides their number.
        row_level: scale level of each row.
        columns: what is known of the columns.
        tables: the codebook.
        lmbda: squared steps that one bit is worth.
        num_states: states of the trellis.
        block: columns in a block.
        delay: blocks that stay undecided; with one state none do.
        class_shift: ``shift`` of the scale classes.
    """
    if num_states == 1:
        return decide_rows(t, row_level, columns, tables, lmbda, block=block, class_shift=class_shift)
    num_columns, num_rows = t.shape
    num_classes = tables.num_tables // num_parities(num_states)

    def class_of(level):
        return jnp.clip((row_level + level) >> class_shift, 0, num_classes - 1)

    extend = _extend(num_states, tables, lmbda, class_of)
    states = jnp.broadcast_to(jnp.arange(num_states, dtype=jnp.int32)[:, None], (num_states, num_rows))

    def visit(carry, first):
        metric, window, residuals, q = carry
        coupling = lax.dynamic_slice_in_dim(columns.coupling, first, block, axis=1)
        near = lax.dynamic_slice_in_dim(coupling, first, delay * block)
        inside = lax.dynamic_slice_in_dim(coupling, first + delay * block, block)
        values = lax.dynamic_slice_in_dim(t, first, block) - _product(coupling[:num_columns].T, residuals)
        # Apart from its transposition, which the compiler would merge into a product several times slower on a CPU.
        of_window = lax.optimization_barrier(_product(window.residual, near))
        values = values[:, None, :] - of_window.T.reshape(block, num_states, num_rows)
        of_block = (lax.dynamic_slice_in_dim(x, first, block) for x in (columns.weight, columns.level))
        index = jnp.arange(block, dtype=jnp.int32)
        carry, newest = lax.scan(extend, (metric, states, values), (index, inside, *of_block))
        metric, origin, residual = carry

        moved, end = window.residual[_flat(origin).reshape(-1)], _at_state(window.end, origin)
        best = jnp.argmin(metric, axis=0).astype(jnp.int32)[None]
        oldest = _at_state(end[0], best)
        metric = jnp.where(end[0] == oldest, metric - metric.min(axis=0, keepdims=True), jnp.inf)
        ring = lax.dynamic_update_index_in_dim(window.q, newest, (first // block) % (delay + 1), axis=0)
        leaving = lax.dynamic_index_in_dim(ring, (first // block + 1) % (delay + 1), keepdims=False)
        residuals = lax.dynamic_update_slice_in_dim(residuals, moved[_flat(best)[0], :block].T, first, axis=0)
        q = lax.dynamic_update_slice_in_dim(q, _trace(leaving, oldest[0], num_states), first, axis=0)
        window = Window(
            jnp.concatenate([moved[:, block:], residual.reshape(block, -1).T], axis=1),
            jnp.concatenate([end[1:], states[None]]),
            ring,
        )
        return (metric, window, residuals, q), None

    def zeros(*shape, dtype=jnp.float32):
        return jnp.zeros((*shape, num_rows), dtype)

    start = (
        jnp.where(states == 0, 0.0, jnp.inf).astype(jnp.float32),
        Window(
            jnp.zeros((num_states * num_rows, delay * block), jnp.float32),
            zeros(delay, num_states, dtype=jnp.int32),
            zeros(delay + 1, block, num_states, dtype=jnp.int32),
        ),
        zeros(num_columns),
        zeros(num_columns, dtype=jnp.int32),
    )
    num_blocks = num_columns // block
    (metric, window, residuals, q), _ = lax.scan(visit, start, block * jnp.arange(num_blocks, dtype=jnp.int32))
    best = jnp.argmin(metric, axis=0).astype(jnp.int32)[None]
    slots = (num_blocks - delay + jnp.arange(delay, dtype=jnp.int32)) % (delay + 1)  # oldest first
    ends = _at_state(window.end, best)[:, 0]
    last_q = jax.vmap(partial(_trace, num_states=num_states))(window.q[slots], ends)
    last_residuals = window.residual[_flat(best)[0]].T
    # What comes out first are the blocks before the first column.
    q = jnp.concatenate([q, last_q.reshape(delay * block, num_rows)])[delay * block :]
    return q, jnp.concatenate([residuals, last_residuals])[delay * block :]
