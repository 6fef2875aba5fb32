r"""Second moments of rows, added up over batches without losing small contributions.

A batch of a few thousand rows is summed by one matrix product in the caller's dtype; the sums of batches are added
with compensation, so that the result of many batches is as accurate as that of one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax._pytree import pytree_dataclass

_HIGHEST = jax.lax.Precision.HIGHEST  # second moments are factorised later: no bfloat16 or TF32 passes


def gram(x: Float[Array, "*rows d"]) -> Float[Array, "d d"]:
    r"""Sum of outer products :math:`\sum_t x_t x_t^\top`, symmetric to rounding.

    Of the blocks off the diagonal only those above it are multiplied, down to a quarter of the width: 5/8 of the
    full product.

    Example:
        >>> print(gram(jnp.array([[1.0, 2.0], [3.0, 4.0]])))
        [[10. 14.]
         [14. 20.]]
    """
    return _gram(x.reshape(-1, x.shape[-1]), smallest=max(256, x.shape[-1] // 2))


def _gram(x: Float[Array, "rows d"], smallest: int) -> Float[Array, "d d"]:
    width = x.shape[1]
    if width < smallest:
        return jnp.matmul(x.T, x, precision=_HIGHEST)
    left, right = x[:, : width // 2], x[:, width // 2 :]
    mixed = jnp.matmul(left.T, right, precision=_HIGHEST)
    top = jnp.concatenate([_gram(left, smallest), mixed], axis=1)
    return jnp.concatenate([top, jnp.concatenate([mixed.T, _gram(right, smallest)], axis=1)])


@pytree_dataclass
class CompensatedSum:
    r"""A running sum and what rounding has lost of it so far (Kahan).

    The error of ``n`` additions is that of about two, independent of ``n``.

    Attributes:
        total: the sum.
        lost: what has been added to ``total`` beyond the terms, to be taken off the next one.

    References:
        Kahan, Further remarks on reducing truncation errors, CACM 8(1), 1965.
    """

    total: Float[Array, "..."]
    lost: Float[Array, "..."]

    def add(self, term: Float[Array, "..."]) -> "CompensatedSum":
        """The sum with one more term."""
        term = term - self.lost
        total = self.total + term
        return CompensatedSum(total, (total - self.total) - term)

    def mean(self, count: int) -> Float[np.ndarray, "..."]:
        """The sum over ``count``, divided in float64 on the host, in the dtype of the sum."""
        total = np.asarray(self.total, np.float64) - np.asarray(self.lost, np.float64)
        return np.asarray(total / count, self.total.dtype)


def zero_sum(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> CompensatedSum:
    """A sum without terms.

    Example:
        >>> ones = zero_sum((), jnp.float32).add(jnp.float32(2**24)).add(jnp.float32(1)).add(jnp.float32(1))
        >>> print(ones.mean(1) - 2**24)
        2.0
    """
    return CompensatedSum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def positive(fisher: Float[Array, " n"]) -> Float[Array, " n"]:
    """Fisher information of rows, of which none is left out altogether: a thousandth of the mean at least.

    Where it is zero for all rows it says nothing, and all are alike.

    Example:
        >>> positive(jnp.array([2000.0, 0.0])).tolist()
        [2000.0, 1.0]
    """
    return jnp.where(fisher.any(), jnp.maximum(fisher, 1e-3 * fisher.mean()), 1.0)
