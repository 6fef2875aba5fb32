r"""Feedback across rows: later rows make up for the errors of earlier ones, as later columns do within a row.

Let :math:`G` be the second moment of the gradients of a layer's outputs, damped, and :math:`H` that of its inputs. If
the two are independent, errors :math:`E = W - \hat W` cost :math:`\operatorname{tr}(G E H E^\top)`. Rows are visited in
groups. With :math:`G^{-1} = V^\top V`, :math:`V` upper triangular in the order of the visit, a group :math:`b` whose
targets leave :math:`R_b = W_b - \hat W_b`, and the rows :math:`\ell` behind it,

.. math::

    W_\ell \leftarrow W_\ell - K_b^\top R_b, \quad K_b = V_{bb}^{-1} V_{b \ell}, \qquad
    \operatorname{tr}(G E H E^\top) = \sum_b \operatorname{tr}(C_b R_b H R_b^\top), \quad
    C_b = (V_{bb}^\top V_{bb})^{-1}

exactly: what a group leaves costs :math:`C_b \preceq G_{bb}`, however its rows are quantized, so any search of single
rows serves, and the steps of rows follow the diagonal of :math:`C_b`. Within a group rows do not see each other. Groups
are interleaved, as neighbouring outputs (of one attention head, say) have more in common than distant ones.

References:
    Tseng, Sun & De Sa, Model-preserving adaptive rounding (YAQA), arXiv:2505.22988, section 3.2 (rounding with a
    Kronecker-factored Hessian).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Float64, Int, Int32
from scipy.linalg import solve_triangular

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.hessian import prepare_hessian

LARGEST_GROUP = 48
"""Rows that are searched together at most: enough for the search to be efficient."""

LEAST_GROUPS = 24
"""So that most rows see most others. Rows of a group are this far apart or more: in steps of a power of two the two
outputs of a head that one angle of the position code turns would share a group."""


@pytree_dataclass
class OutputFactor:
    r"""How rows make up for each other; groups are filled up to one size by rows that do not exist.

    Attributes:
        order: the rows of each group; the number of rows stands for one that does not exist.
        coupling: :math:`K_b`, columns in the order of the visit and zero up to the group's own.
        weights: diagonal of :math:`C_b`, in the rows' own order: what an error in a row costs when it is made.
    """

    order: Int[Array, "groups size"] | Int[np.ndarray, "groups size"]
    coupling: Float32[Array, "groups size padded"] | Float32[np.ndarray, "groups size padded"]
    weights: Float64[np.ndarray, " rows"] | Float[Array, " rows"]


def prepare_outputs(
    fisher: Float[np.ndarray, "rows rows"], *, damping: float = 0.1, group: int | None = None
) -> OutputFactor:
    r"""Damp and factor the second moment of the gradients of a layer's outputs.

    Args:
        fisher: :math:`G`, symmetric.
        damping: times the mean of the diagonal, what is added to the diagonal. There are far fewer gradients than
            inputs to average over, so more than for a second moment of inputs.
        group: rows that are quantized together, at most; a group of all rows is no feedback. When left out, as many
            as leave :data:`LEAST_GROUPS`, up to :data:`LARGEST_GROUP`.

    Raises:
        ValueError: no rows in a group, or a matrix that cannot be factored
            (:func:`~occ_jax.quantization.hessian.prepare_hessian`).

    Example:
        >>> fisher = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> print(prepare_outputs(fisher, damping=0.0, group=1).weights)
        [1.5 2. ]
        >>> print(prepare_outputs(fisher, damping=0.0, group=2).weights)
        [2. 2.]
    """
    num_rows = len(fisher)
    group = min(LARGEST_GROUP, -(-num_rows // LEAST_GROUPS)) if group is None else group
    if group < 1:
        raise ValueError(f"a group of {group} rows: take 1 or more")
    num_groups = -(-num_rows // group)
    members = [np.arange(first, num_rows, num_groups) for first in range(num_groups)]
    size = len(members[0])
    upper = prepare_hessian(fisher, damping=damping, order=np.concatenate(members)).upper
    order = np.full((num_groups, size), num_rows, np.int32)
    coupling = np.zeros((num_groups, size, num_groups * size), np.float32)
    weights = np.empty(num_rows)
    place = np.concatenate([g * size + np.arange(len(rows)) for g, rows in enumerate(members)])
    start = 0
    for rows, ordered, coupled in zip(members, order, coupling, strict=True):
        own, later = slice(start, start + len(rows)), slice(start + len(rows), num_rows)
        inverse = solve_triangular(upper[own, own], np.eye(len(rows)))
        ordered[: len(rows)] = rows
        coupled[: len(rows), place[later]] = inverse @ upper[own, later]
        weights[rows] = np.einsum("ij,ij->i", inverse, inverse)
        start = later.start
    return OutputFactor(order=order, coupling=coupling, weights=weights)


Rows = tuple[Float32[Array, "rows columns"], Int32[Array, " rows"]]
"""Values in steps, and the scale level of each row."""

Search = Callable[[Rows], tuple[Int32[Array, "rows columns"], Float32[Array, "rows columns"]]]
"""Indices of some rows, and the residuals that they left when they were chosen."""


def search_groups(
    search: Search,
    rows: Rows,
    step_row: Float32[Array, " rows"],
    coupling: Float32[Array, "columns columns"],
    outputs: OutputFactor,
) -> tuple[Int32[Array, "rows columns"], Float32[Array, "rows columns"]]:
    """Search one group of rows after the other, and pass on to all later rows what each has left.

    Args:
        search: of single rows, with feedback along the columns.
        rows: all of them.
        step_row: factor of each row's step.
        coupling: of the columns, strictly upper triangular, in steps: what a residual takes off later columns.
        outputs: how rows make up for each other.
    """
    num_rows = rows[0].shape[0]
    t, level = (jnp.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1))[outputs.order] for x in rows)
    step = jnp.pad(step_row, (0, 1), constant_values=1.0)[outputs.order]
    relative = jnp.asarray(outputs.coupling) * step[:, :, None] / step.reshape(1, 1, -1)

    def visit(targets: Array, group: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        index, level, relative = group
        q, residual = search((lax.dynamic_index_in_dim(targets, index, keepdims=False), level))
        # Residuals are of values that earlier columns have moved; what is left of the targets is more.
        left = residual + jnp.matmul(residual, coupling, precision="highest")
        moved = jnp.matmul(relative.T, left, precision="highest")
        return targets - moved.reshape(targets.shape), (q, residual)

    index = jnp.arange(t.shape[0], dtype=jnp.int32)
    _, found = lax.scan(visit, t, (index, level, relative))
    place = jnp.zeros(num_rows + 1, jnp.int32).at[outputs.order.reshape(-1)].set(jnp.arange(step.size, dtype=jnp.int32))
    q, residual = (x.reshape(step.size, -1)[place[:-1]] for x in found)
    return q, residual
