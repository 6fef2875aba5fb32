r"""Products with a Kronecker product of small matrices, as few passes over memory as the machine allows.

.. math::

    y = (F_1 \otimes F_2 \otimes \cdots \otimes F_p)\, x

A vector of length :math:`n = r_1 r_2 \cdots r_p` costs :math:`2 n (r_1 + \cdots + r_p)` operations in place of
:math:`2 n^2`. With factors of 16 to 32 the arithmetic is cheaper than moving the data, so what counts is the number
of times that an array goes through main memory: on a CPU all factors are applied to one cache-sized group of rows
before the next group is touched; accelerators get the whole array at once.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._pytree import pytree_dataclass, static_field
from .base import Transform

# Entries of x that a CPU works on at a time: 512 KiB in float32, with its products within a second-level cache.
_CHUNK = 2**17


@pytree_dataclass
class Kronecker(Transform):
    r"""Transforms of the axes of a vector that is read as an array: :math:`T = T_1 \otimes T_2 \otimes \cdots`.

    .. math::

        y = (T_1 \otimes T_2)\, x \quad\Leftrightarrow\quad Y = T_1 X T_2^\top,
        \qquad x = \operatorname{vec}(X),\ X \in \mathbb{R}^{n_1 \times n_2}

    Two dense rotations of sizes :math:`n_1, n_2` mix all :math:`n_1 n_2` entries with
    :math:`\tfrac12 (n_1^2 + n_2^2)` parameters.

    Args:
        transforms: one for each axis, the slowest first.
        sizes: lengths of the axes; they multiply to the length of the vectors.

    Example:
        >>> from occ_jax.transforms import hadamard, identity
        >>> print(Kronecker((hadamard(2), identity()), (2, 2)).forward(jnp.ones(4)).round(3))
        [1.414 1.414 0.    0.   ]

    References:
        Van Loan, The ubiquitous Kronecker product, J. Comput. Appl. Math. 123, 2000.
        Sun et al., FlatQuant, 2024, arXiv:2410.09426 (learned Kronecker transforms of weights and activations).
    """

    transforms: tuple[Transform, ...]
    sizes: tuple[int, ...] = static_field()

    def __post_init__(self) -> None:
        if not self.sizes or len(self.transforms) != len(self.sizes) or min(self.sizes) < 1:
            raise ValueError(
                f"A Kronecker product takes one positive size for each transform, got {len(self.transforms)} "
                f"transforms and sizes {self.sizes}."
            )

    @property
    def is_orthonormal(self) -> bool:
        """True when every factor is."""
        return all(t.is_orthonormal for t in self.transforms)

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply every factor along its axis."""
        return self._along_each(x, [t.forward for t in self.transforms])

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Undo every factor along its axis."""
        return self._along_each(y, [t.inverse for t in self.transforms])

    def _along_each(self, x: Float[Array, "*batch n"], maps: Sequence[Callable[[Array], Array]]) -> Array:
        if x.shape[-1] != math.prod(self.sizes):
            raise ValueError(
                f"A Kronecker product of sizes {' x '.join(map(str, self.sizes))} got vectors of length "
                f"{x.shape[-1]}: the sizes must multiply to that length."
            )
        lead = x.ndim - 1
        y = x.reshape(*x.shape[:-1], *self.sizes)
        for axis, f in enumerate(maps, start=lead):
            y = jnp.moveaxis(f(jnp.moveaxis(y, axis, -1)), -1, axis)
        return y.reshape(x.shape)


def kronecker(transforms: Sequence[Transform], sizes: Sequence[int]) -> Kronecker:
    """The Kronecker product of transforms of vectors of these lengths, the slowest axis first."""
    return Kronecker(tuple(transforms), tuple(sizes))


def kronecker_apply(
    factors: Sequence[np.ndarray],
    x: Float[Array, "*batch n"],
    *,
    before: Real[Array, " n"] | None = None,
    after: Real[Array, " n"] | None = None,
) -> Float[Array, "*batch n"]:
    r"""Multiply vectors by a Kronecker product between two diagonal matrices.

    .. math::

        y = \operatorname{diag}(a)\, (F_1 \otimes \cdots \otimes F_p)\, \operatorname{diag}(b)\, x

    Args:
        factors: square matrices :math:`F_1, \ldots, F_p`, the slowest index first; their sizes multiply to ``n``.
        x: vectors along the last axis.
        before: the diagonal :math:`b`, ones when None.
        after: the diagonal :math:`a`, ones when None.

    Returns:
        The products, in the dtype of ``x``. Float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: when the sizes of the factors do not multiply to ``n``.

    Example:
        >>> swap = np.asarray([[0.0, 1.0], [1.0, 0.0]])
        >>> print(kronecker_apply([np.eye(2), swap], jnp.arange(4.0)))
        [1. 0. 3. 2.]

    References:
        Van Loan, The ubiquitous Kronecker product, J. Comput. Appl. Math. 123, 2000.
    """
    n = x.shape[-1]
    sizes = [f.shape[0] for f in factors]
    if math.prod(sizes) != n:
        raise ValueError(
            f"Factors of sizes {' x '.join(map(str, sizes))} do not act on vectors of length {n}: "
            "the sizes must multiply to that length."
        )
    dtype = np.promote_types(x.dtype, jnp.float32)
    matrices = [jnp.asarray(f, dtype) for f in factors]
    diagonals = [jnp.ones((n,), dtype) if d is None else d.astype(dtype) for d in (before, after)]

    def product(rows: Float[Array, "rows n"], scaled: tuple[bool, bool]) -> Float[Array, "rows n"]:
        y = rows.astype(dtype)
        y = y * diagonals[0][None, :] if scaled[0] else y
        y = _apply_factors(matrices, y)
        y = y * diagonals[1][None, :] if scaled[1] else y
        return y.astype(x.dtype)

    whole = partial(product, scaled=(before is not None, after is not None))
    rows = x.reshape(-1, n)
    if rows.size <= 2 * _CHUNK:
        return whole(rows).reshape(x.shape)
    return jax.lax.platform_dependent(rows, cpu=partial(_in_chunks, whole), default=whole).reshape(x.shape)


def _apply_factors(matrices: Sequence[Float[Array, "_ _"]], rows: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
    """The last factor is one tall product; each other factor acts on an axis whose entries lie ``stride`` apart."""
    y, stride = rows, 1
    for matrix in reversed(matrices):
        r = matrix.shape[0]
        if stride == 1:
            y = jnp.matmul(y.reshape(-1, r), matrix.T, precision="highest")
        else:
            y = y.reshape(-1, r, stride)
            # One matrix for each block: a batched product needs no transposition of y, which costs more than it.
            y = jnp.matmul(jnp.broadcast_to(matrix[None], (y.shape[0], r, r)), y, precision="highest")
        stride *= r
    return y.reshape(rows.shape)


def _in_chunks(f, rows: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
    """``f`` on one cache-sized group of rows after the other."""
    count, n = rows.shape
    most = max(1, _CHUNK // n)
    # A size that divides the rows saves the copy that joins the remainder.
    size = next((c for c in range(most, most // 4, -1) if count % c == 0), most)
    whole = count // size * size
    y = jax.lax.map(f, rows[:whole].reshape(-1, size, n)).reshape(whole, n)
    return y if whole == count else jnp.concatenate([y, f(rows[whole:])])
