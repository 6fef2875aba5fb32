r"""The second moment of a layer's inputs, factored once in float64 for feedback.

References:
    Frantar et al., GPTQ, arXiv:2210.17323, section 3.3 (damping, Cholesky form).
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.linalg import LinAlgError, cholesky, get_lapack_funcs

from occ_jax._pytree import pytree_dataclass

DAMPING = 0.01
"""Share of the mean diagonal that is added to a second moment by default, as GPTQ does."""

_ROWS = 256  # of a matrix that is compared with its transpose, at a time


@pytree_dataclass
class HessianFactor:
    r"""Upper triangular :math:`U` with :math:`(H_{\mathrm{order}} + \text{damping})^{-1} = U^\top U`, on the host.

    Attributes:
        upper: :math:`U`, rows and columns in the order in which the columns of the weights are visited.
        order: the column that is visited at each position.
    """

    upper: Float64[np.ndarray, "columns columns"]
    order: Int[np.ndarray, " columns"]

    @property
    def diagonal(self) -> Float64[np.ndarray, " columns"]:
        r""":math:`U_{jj}` by position: 1 over the standard deviation of an input when those visited later are known."""
        return np.diagonal(self.upper)

    @property
    def relative_steps(self) -> Float64[np.ndarray, " columns"]:
        """Steps by water-filling, up to one constant for all layers, in the columns' own order."""
        steps = np.empty_like(self.diagonal)
        steps[self.order] = self.diagonal
        return steps


def prepare_hessian(
    hessian: Float[np.ndarray, "columns columns"],
    *,
    damping: float = DAMPING,
    order: Int[np.ndarray, " columns"] | None = None,
) -> HessianFactor:
    r"""Damp and factor a second moment.

    With :math:`J` the reversal of the order, :math:`J H J = L L^\top` gives :math:`H = A A^\top` with
    :math:`A = J L J` upper triangular, and :math:`U = A^{-1} = J L^{-1} J`: no inverse of :math:`H` is formed.

    Args:
        hessian: :math:`H = E[x x^\top]`, symmetric.
        damping: times the mean of the diagonal, what is added to the diagonal.
        order: the columns as they are to be visited; ``np.argsort(-np.diagonal(hessian))`` visits the loudest first.
            Their own order when left out.

    Raises:
        ValueError: ``hessian`` is not finite, not symmetric, zero or singular, or ``order`` is not a permutation.

    Example:
        >>> factor = prepare_hessian(np.array([[2.0, 1.0], [1.0, 2.0]]), damping=0.0)
        >>> np.round(factor.upper.T @ factor.upper @ np.array([[2.0, 1.0], [1.0, 2.0]]), 6) + 0.0
        array([[1., 0.],
               [0., 1.]])
    """
    h = np.array(hessian, np.float64)
    if h.ndim != 2 or h.shape[0] != h.shape[1] or h.size == 0:
        raise ValueError(f"a second moment is a square matrix, got shape {h.shape}")
    if not np.isfinite(h).all():
        raise ValueError(
            f"{int((~np.isfinite(h)).sum())} entries of the second moment are NaN or infinite: collect it again"
        )
    if _symmetrize(h) > 1e-3 * max(h.max(), -h.min()):
        raise ValueError("the second moment is not symmetric: pass the mean of x x^T")
    in_order = order is None
    order = np.arange(len(h)) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(h))):
        raise ValueError(f"the column order is not a permutation of {len(h)} columns")
    if not damping >= 0:
        raise ValueError(f"damping is {damping}: take 0 or more, 0.01 is usual")
    diagonal = np.diagonal(h)
    dead = np.flatnonzero(diagonal <= 0)
    if diagonal.max() <= 0:
        raise ValueError(f"none of {len(h)} channels ever carries a signal: collect the second moment from other text")
    if damping == 0 and dead.size:
        raise ValueError(
            f"{dead.size} input channels never carry a signal (first: {dead[:5].tolist()}): damp the second moment, "
            "or collect it from more text"
        )
    damp(h, damping)
    ordered = h if in_order else h[np.ix_(order, order)]
    try:
        lower = cholesky(ordered[::-1, ::-1], lower=True, check_finite=False)
    except LinAlgError as error:
        raise ValueError(
            f"the second moment of {len(h)} inputs is singular at a damping of {damping}: "
            "collect it from more text or raise the damping"
        ) from error
    (invert_triangular,) = get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert_triangular(lower, lower=1, overwrite_c=1)
    return HessianFactor(np.ascontiguousarray(inverse[::-1, ::-1]), order)


def damp(moment: Float[np.ndarray, "d d"], damping: float = DAMPING) -> Float[np.ndarray, "d d"]:
    """Add a share of the mean diagonal to the diagonal, in place; returns the same array.

    Example:
        >>> print(damp(np.diag([1.0, 3.0]), 0.5))
        [[2. 0.]
         [0. 4.]]
    """
    moment[np.diag_indices_from(moment)] += damping * np.diagonal(moment).mean()
    return moment


def _symmetrize(h: Float64[np.ndarray, "d d"]) -> float:
    """Replace a matrix by its symmetric part, in place and a few rows at a time; the largest change, doubled."""
    largest = 0.0
    for first in range(0, len(h), _ROWS):
        rows, others = h[first : first + _ROWS, first:], h[first:, first : first + _ROWS].T
        largest = max(largest, float(np.abs(rows - others).max()))
        mean = (rows + others) / 2
        rows[:] = mean
        others[:] = mean
    return largest
