r"""Successive feedback: every column is quantized in the light of the errors made on the columns before it.

Let :math:`H` be the second moment of a layer's inputs, damped, and :math:`H^{-1} = U^\top U` with :math:`U` upper
triangular. Writing :math:`E` for the errors that are made column by column, in units of the diagonal of :math:`U`,

.. math::

    W - \hat W = E U, \qquad
    \operatorname{tr} (W - \hat W) H (W - \hat W)^\top = \lVert E \rVert^2

so the columns' errors neither mix nor differ in cost once column :math:`j` has a step proportional to :math:`U_{jj}`:
that is reverse water-filling, and one constant for all steps of all layers sets the rate of every weight. With nearest
rounding this is GPTQ, which is LDLQ, which is Babai's nearest plane; here each row is a path of a trellis that is
chosen for :math:`\lVert E \rVert^2` plus :math:`\lambda` times its real code length.

References:
    Frantar et al., GPTQ, arXiv:2210.17323. Chee et al., QuIP (LDLQ), arXiv:2307.13304, section 3.
    WaterSIC, arXiv:2603.04956 (steps by water-filling and an entropy coder).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Int32

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.codebook import SearchTables
from occ_jax.quantization.hessian import HessianFactor
from occ_jax.quantization.output_feedback import OutputFactor, search_groups
from occ_jax.quantization.row_parallel import Devices, over_rows
from occ_jax.quantization.survivors import Columns, search_rows
from occ_jax.quantization.trellis import HIGH_RATE_LMBDA
from occ_jax.quantization.ungerboeck import check_num_states

DELAYS = {1: 0, 4: 48, 8: 96, 16: 96, 32: 128, 64: 128, 128: 160, 256: 160}
"""Columns after which a path is decided, by number of states: until then survivors may differ."""

_BLOCK = 16

_CACHED_VALUES = 1 << 17
"""Block length times states times rows that are searched together: the survivors' values stay in a core's cache."""

_CACHED_RESIDUALS = 1 << 19
"""Rows times columns that are decided together, with one state."""


@pytree_dataclass
class FeedbackResult:
    r"""Indices of a matrix, and the residual :math:`t - \hat t(q)` that each left when it was chosen, in steps."""

    q: Int32[Array, "rows columns"]
    residual: Float32[Array, "rows columns"]


@partial(jax.jit, static_argnames=("num_states", "block", "delay", "class_shift", "devices"))
def _quantize(
    w,
    step_row,
    step,
    row_level,
    upper,
    relative,
    column_level,
    tables,
    lmbda,
    outputs,
    num_states,
    block,
    delay,
    class_shift,
    devices,
):
    num_columns = w.shape[1]
    padding = -num_columns % block
    t = w / step_row[:, None] / step[None, :]
    coupling = jnp.triu(relative[:, None] * upper / step[None, :], 1)
    weight = jnp.square(relative / jnp.exp(jnp.mean(jnp.log(relative))))
    padded = jnp.pad(coupling, ((delay * block, padding), (0, padding)))
    columns = Columns(padded, jnp.pad(weight, (0, padding)), jnp.pad(column_level, (0, padding)))
    search = partial(search_rows, num_states=num_states, block=block, delay=delay, class_shift=class_shift)

    def run(rows, shared):
        t, row_level = rows
        num_rows = t.shape[0]
        num_chunks = -(-num_rows // _rows_together(num_columns, block, num_states))
        chunk = -(-num_rows // num_chunks)
        fill = chunk * num_chunks - num_rows
        t = jnp.pad(t, ((0, fill), (0, padding))).reshape(num_chunks, chunk, -1)
        row_level = jnp.pad(row_level, (0, fill)).reshape(num_chunks, chunk)
        q, residual = lax.map(lambda rows: search(rows[0].T, rows[1], *shared), (t, row_level))
        return tuple(x.mT.reshape(num_rows + fill, -1)[:num_rows, :num_columns] for x in (q, residual))

    shared = columns, tables, lmbda
    if outputs is None:
        return FeedbackResult(*over_rows(run, devices)((t, row_level), shared))
    return FeedbackResult(*search_groups(lambda rows: run(rows, shared), (t, row_level), step_row, coupling, outputs))


def _rows_together(num_columns: int, block: int, num_states: int) -> int:
    """Rows that are searched together: what is read again at every column, or at every block, stays in the cache."""
    if num_states == 1:
        return max(256, _CACHED_RESIDUALS // num_columns)
    return max(32, _CACHED_VALUES // (block * num_states))


def quantize_with_feedback(
    w: Float[np.ndarray, "rows columns"] | Float[Array, "rows columns"],
    factor: HessianFactor,
    tables: SearchTables,
    *,
    step_row: Float[np.ndarray, " rows"],
    step_column: Float[np.ndarray, " columns"],
    row_level: Int[np.ndarray, " rows"],
    column_level: Int[np.ndarray, " columns"],
    num_states: int,
    class_shift: int = 0,
    lmbda: float | None = None,
    delay: int | None = None,
    outputs: OutputFactor | None = None,
    devices: Devices = None,
) -> FeedbackResult:
    r"""Quantize a matrix, column after column, each row a path of the trellis.

    Minimises, greedily along the columns and by the Viterbi algorithm along the trellis,

    .. math::

        \sum_{ij} \Big(\frac{\Delta^{col}_j}{U_{jj}}\Big)^2 r_{ij}^2 \Big/ \gamma^2 + \lambda \, \mathrm{bits}(q_{ij})

    with :math:`\gamma` the geometric mean of :math:`\Delta^{col}_j / U_{jj}`, so that :math:`\lambda` is in squared
    steps per bit. One compilation serves all matrices of one shape.

    Args:
        w: weights. Matrices that share their inputs may be stacked row over row.
        factor: of the inputs' second moment, by :func:`~occ_jax.quantization.hessian.prepare_hessian`.
        tables: the codebook, unfolded by :func:`~occ_jax.quantization.codebook.search_tables`.
        step_row: factor of each row's step.
        step_column: factor of each column's step, about proportional to ``factor.diagonal``.
        row_level: scale level of each row, see :func:`~occ_jax.quantization.scales.scale_classes`.
        column_level: scale level of each column.
        num_states: states of the trellis; 1 is scalar quantization.
        class_shift: ``shift`` of the scale classes.
        lmbda: squared steps that one bit is worth; the high-rate slope when left out. 0 ignores the rate.
        delay: columns after which a path is decided, :data:`DELAYS` when left out.
        outputs: how rows make up for each other, by :func:`~occ_jax.quantization.output_feedback.prepare_outputs`;
            without it they are independent.
        devices: devices to share the rows between, in equal parts; the result does not depend on them.
            With ``outputs`` rows wait for each other, and there can be but one.

    Returns:
        Indices and residuals in the column order of ``w``. The paths of the trellis follow ``factor.order``.

    Raises:
        ValueError: there is no trellis of so many states, shapes that do not fit, or weights that are not finite.
    """
    check_num_states(num_states)
    w = np.asarray(w, np.float32)
    num_columns = factor.order.size
    shapes = (step_row.shape + step_column.shape, row_level.shape + column_level.shape)
    if w.ndim != 2 or w.shape[1] != num_columns or any(shape != w.shape for shape in shapes):
        raise ValueError(
            f"weights {w.shape} do not fit a factor of {num_columns} columns, steps {shapes[0]} and levels {shapes[1]}"
        )
    if not np.isfinite(w).all():
        raise ValueError(
            f"{int((~np.isfinite(w)).sum())} weights are NaN or infinite: there is no nearest index for them"
        )
    if outputs is not None:
        if outputs.weights.size != len(w):
            raise ValueError(f"the factor of the outputs has {outputs.weights.size} rows, the weights have {len(w)}")
        if devices is not None and len(devices) > 1:
            raise ValueError(f"rows that make up for each other cannot be shared by {len(devices)} devices: give one")
    delay = DELAYS[num_states] if delay is None else delay
    if delay < 0:
        raise ValueError(f"a path is decided after 0 columns or more, got {delay}")
    order = factor.order
    in_order = np.array_equal(order, np.arange(num_columns))
    step = np.asarray(step_column, np.float64)[order]
    result = _quantize(
        jnp.asarray(w if in_order else w[:, order]),
        jnp.asarray(step_row, jnp.float32),
        jnp.asarray(step, jnp.float32),
        jnp.asarray(row_level, jnp.int32),
        jnp.asarray(factor.upper, jnp.float32),
        jnp.asarray(step / factor.diagonal, jnp.float32),
        jnp.asarray(np.asarray(column_level)[order], jnp.int32),
        tables,
        jnp.asarray(HIGH_RATE_LMBDA[num_states] if lmbda is None else lmbda, jnp.float32),
        outputs,
        num_states=num_states,
        block=_BLOCK,
        delay=0 if num_states == 1 else max(1, -(-delay // _BLOCK)),
        class_shift=class_shift,
        devices=devices,
    )
    if in_order:
        return result
    inverse = np.argsort(order)
    return jax.tree.map(lambda x: x[:, inverse], result)
