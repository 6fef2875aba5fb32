r"""What the columns after it make of an error in a column, and what it costs then, with gradients that are cheap.

Successive feedback with :math:`H^{-1} = U^\top U` leaves of an error :math:`d` in column :math:`j` the cost
:math:`d^2 / U_{jj}^2`. It is a minimum over what the later columns do,

.. math::

    \frac{1}{U_{jj}^2} = \min_{v}\, v H v^\top, \qquad v_j = 1, \quad v_k = 0 \text{ for } k < j ,

which the row :math:`v = U_{j:} / U_{jj}` attains, so by the envelope theorem its gradient in :math:`H` is
:math:`v^\top v`: no derivative of a factorization is needed, and a sample of the columns gives an unbiased estimate.

References:
    Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323. Frantar & Alistarh, Optimal brain compression, 2022.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.lax.linalg import triangular_solve
from jaxtyping import Array, Float, Key

_SMALL = 128
"""Rows of a triangle that is inverted in one piece."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def column_costs(
    hessian: Float[Array, "d d"], key: Key[Array, ""] | None = None, share: float = 1.0
) -> Float[Array, " d"]:
    r""":math:`1 / U_{jj}^2` of every column.

    Args:
        hessian: :math:`H`, symmetric and positive definite: damp it first.
        key: source of the sample; without it the gradient is taken from all columns.
        share: part of the columns that the gradient is taken from, at random. The value is always exact.

    Example:
        >>> print(column_costs(jnp.asarray([[4.0, 1.0], [1.0, 1.0]])))
        [3. 1.]
    """
    return _forward(hessian, key, share)[0]


def _upper_root(hessian: Float[Array, "d d"]) -> Float[Array, "d d"]:
    r"""Upper triangular :math:`R` with :math:`H = R R^\top`, the inverse of the factor :math:`U`."""
    return jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]


def _inverse(root: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Inverse of an upper triangle, by halves: most of the work is products."""
    n = root.shape[0]
    if n <= _SMALL:
        return triangular_solve(root, jnp.eye(n, dtype=root.dtype), left_side=True, lower=False)
    first, last, beside = root[: n // 2, : n // 2], root[n // 2 :, n // 2 :], root[: n // 2, n // 2 :]
    first, last = _inverse(first), _inverse(last)
    beside = -jnp.matmul(jnp.matmul(first, beside, precision="highest"), last, precision="highest")
    return jnp.concatenate([jnp.concatenate([first, beside], 1), jnp.pad(last, ((0, 0), (n // 2, 0)))])


def regressions(hessian: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    r"""What later columns do about an error, :math:`\operatorname{diag}(U)^{-1} U`, and what it costs then.

    Args:
        hessian: :math:`H`, symmetric and positive definite.

    Returns:
        The regressions, one row for each column that errs, and the costs :math:`1 / U_{jj}^2`.

    Example:
        >>> rows, costs = regressions(jnp.asarray([[5.0, 2.0], [2.0, 4.0]]))
        >>> print(rows, costs)  # the second column regresses on the first
        [[ 1.  -0.5]
         [ 0.   1. ]] [4. 4.]
    """
    root = _upper_root(hessian)
    diagonal = jnp.diagonal(root)
    return diagonal[:, None] * _inverse(root), jnp.square(diagonal)


def _forward(hessian: Array, key: Array | None, share: float) -> tuple[Array, tuple[Array, Array | None]]:
    del share
    root = _upper_root(hessian)
    return jnp.square(jnp.diagonal(root)), (root, key)


def _backward(share: float, kept: tuple[Array, Array | None], cotangent: Array) -> tuple[Array, None]:
    root, key = kept
    n = root.shape[0]
    size = math.ceil(share * n)
    columns = jnp.arange(n) if size == n or key is None else jax.random.choice(key, n, (size,), replace=False)
    chosen = jax.nn.one_hot(columns, n, dtype=root.dtype) * jnp.diagonal(root)[columns, None]
    v = triangular_solve(root, chosen, left_side=False, lower=False)
    weights = cotangent[columns] * (n / columns.size)
    return jnp.matmul(v.T, weights[:, None] * v, precision="highest"), None


column_costs.defvjp(_forward, _backward)
