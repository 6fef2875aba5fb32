"""What learning finds in pure noise: the control that stands beside every learned gain."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from occ_jax.learned.losses import scale_field


def gaussian_control(w: Float[Array, "rows columns"], *, key: Key[Array, ""]) -> Float[Array, "rows columns"]:
    r"""Independent Gaussian entries with the scales of the rows and columns of a matrix.

    .. math::

        \tilde w_{ij} = \alpha_i \beta_j\, \epsilon_{ij}, \qquad \epsilon_{ij} \sim \mathcal N(0, 1)

    In its own axes it has the rate of ``w``; whatever learning gains on it, it has fitted to noise.

    Args:
        w: the matrix.
        key: source of randomness.

    Example:
        >>> w = jnp.outer(jnp.asarray([1.0, 8.0]), jnp.ones(1000))
        >>> made = gaussian_control(w, key=jax.random.key(0))
        >>> bool(abs(made[1].std() / made[0].std() - 8) < 1)
        True
    """
    size = jnp.sqrt(jnp.mean(jnp.square(w)))
    rows, columns = scale_field(w / jnp.where(size > 0, size, 1.0))
    rows = rows * jnp.square(size)
    return (jnp.sqrt(rows * columns) * jax.random.normal(key, w.shape, rows.dtype)).astype(w.dtype)
