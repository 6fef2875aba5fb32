r"""Successive feedback for integers with shared scales: GPTQ in groups, as others publish it, for comparison.

The columns are visited in their own order. When the visit reaches a group, the group's range is taken from the weights
as the errors before it have moved them; then every column is rounded and its error goes to the columns after it,

.. math::

    W_{:, k} \leftarrow W_{:, k} - (W_{:, j} - \hat W_{:, j}) \, U_{jk} / U_{jj}, \qquad k > j, \quad H^{-1} = U^\top U

within the group at once and to all later groups by one matrix product.

References:
    Frantar et al., GPTQ, arXiv:2210.17323, section 3.3 and section 4 (grids per group, "static groups" off).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.affine import Affine, fit_affine
from occ_jax.quantization.hessian import HessianFactor
from occ_jax.quantization.row_parallel import Devices, over_rows


@pytree_dataclass
class IntegerResult:
    """Indices of a matrix, and the quantizer (scales and zero points) that turns them into weights."""

    q: Int32[Array, "rows columns"]
    quantizer: Affine


def quantize_integers(
    w: Float[np.ndarray, "rows columns"] | Float[Array, "rows columns"],
    factor: HessianFactor | None,
    *,
    bits: int,
    group_size: int,
    clip: bool = False,
    devices: Devices = None,
) -> IntegerResult:
    r"""Asymmetric integers in groups along the rows, with feedback or, without a factor, rounded to the nearest.

    Args:
        w: weights.
        factor: of the inputs' second moment, by :func:`~occ_jax.quantization.hessian.prepare_hessian`, in the
            columns' own order (a group is a run of neighbouring columns). ``None`` for no feedback.
        bits: width of an index, 2 to 8.
        group_size: columns that share a scale; the last group may be shorter.
        clip: take the part of each group's range that makes the smallest error, instead of all of it. An error counts
            what later columns cannot make up for, :math:`1 / U_{jj}^2`.
        devices: devices to share the rows between; the result does not depend on them.

    Returns:
        Indices and quantizer; :func:`~occ_jax.codec.integers.encode_affine` stores them.

    Raises:
        ValueError: weights that are not a finite matrix, a factor of another size or order, or an impossible width or
            group size.

    Example:
        >>> w = np.array([[0.0, 3.0, -1.0, 0.5]], np.float32)
        >>> result = quantize_integers(w, None, bits=2, group_size=4)
        >>> print(result.q, result.quantizer.zero_point)
        [[1 3 0 1]] [[1]]
    """
    w = np.asarray(w, np.float32)
    if w.ndim != 2 or not np.isfinite(w).all():
        raise ValueError(f"weights of shape {w.shape} are no matrix of finite numbers: there is no nearest index")
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}: take 1 or more coefficients per scale")
    group_size = min(group_size, w.shape[1])
    if factor is None:
        quantizer = fit_affine(jnp.asarray(w), bits, group_size=group_size, clip=clip)
        return IntegerResult(quantizer.quantize(jnp.asarray(w)), quantizer)
    if not np.array_equal(factor.order, np.arange(w.shape[1])):
        raise ValueError(
            f"groups are runs of the {w.shape[1]} columns in their own order: the factor has {factor.order.size} "
            "columns in an order of its own"
        )
    coupling = np.triu(factor.upper / factor.diagonal[:, None], 1)
    cost = np.square(factor.diagonal.min() / factor.diagonal)
    arrays = jnp.asarray(w), jnp.asarray(coupling, jnp.float32), jnp.asarray(cost, jnp.float32)
    q, scale, zero_point = _quantize(*arrays, bits=bits, group_size=group_size, clip=clip, devices=devices)
    return IntegerResult(q, Affine(scale, zero_point, bits=bits, group_size=group_size))


@partial(jax.jit, static_argnames=("bits", "group_size", "clip", "devices"))
def _quantize(w, coupling, cost, bits, group_size, clip, devices):
    padding = -w.shape[1] % group_size
    coupling = jnp.pad(coupling, ((0, padding), (0, padding)))
    cost = jnp.pad(cost, (0, padding))

    def run(w, shared):
        coupling, cost = shared
        # Columns first: a step of the scan touches contiguous memory. Padding of zeros never widens a range.
        columns = jnp.pad(w, ((0, 0), (0, padding))).T
        groups = coupling.reshape(-1, group_size, len(coupling))
        visit = partial(_visit_group, bits=bits, group_size=group_size, clip=clip)
        each = jnp.arange(len(groups)) * group_size, groups, cost.reshape(-1, group_size)
        _, (q, scale, zero_point) = lax.scan(visit, columns, each)
        return q.reshape(len(columns), -1).T[:, : w.shape[1]], scale.T, zero_point.T

    return over_rows(run, devices)(w, (coupling, cost))


def _visit_group(columns, group, *, bits, group_size, clip):
    """Quantize one group of columns, and pass its errors on to all columns behind it."""
    start, coupling, cost = group
    block = lax.dynamic_slice_in_dim(columns, start, group_size)
    quantizer = fit_affine(block.T, bits, group_size=group_size, clip=clip, weights=cost[None, :])
    inner = lax.dynamic_slice_in_dim(coupling, start, group_size, axis=1)

    def visit_column(block, position):
        column = block[position][:, None]
        q = quantizer.quantize(column)
        error = (column - quantizer.dequantize(q))[:, 0]
        return block - inner[position][:, None] * error[None, :], (q[:, 0], error)

    _, (q, errors) = lax.scan(visit_column, block, jnp.arange(group_size))
    assert quantizer.zero_point is not None
    # The group itself is not read again, so that it does no harm to move it too.
    moved = columns - jnp.matmul(coupling.T, errors, precision=lax.Precision.HIGHEST)
    return moved, (q, quantizer.scale[:, 0], quantizer.zero_point[:, 0])
