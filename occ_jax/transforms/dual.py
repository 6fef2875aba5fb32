"""What happens to the other factor of a product when one factor changes its coordinates."""

import jax

from .._pytree import replace
from .base import AlongAxis, Blockwise, Chain, Inverse, Transform
from .kronecker import Kronecker
from .scaling import Scaling
from .stacked import BlockDiagonal


def dual(transform: Transform) -> Transform:
    r"""The transform that keeps inner products: :math:`T^{-\top}`.

    .. math::

        \langle T^{-\top} a,\; T b \rangle = \langle a, b \rangle

    If the inputs of a matrix go through ``T``, its rows go through the dual and its outputs stay; so do gradients of a
    vector that goes through ``T``. An orthonormal transform is its own dual.

    Raises:
        ValueError: no dual is known of the class.

    Example:
        >>> import jax.numpy as jnp
        >>> print(dual(Scaling(jnp.ones(2))).forward(jnp.ones(2)))
        [0.5 0.5]
    """
    if transform.is_orthonormal:
        return transform
    match transform:
        case Scaling():
            return Scaling(-transform.log2_scale)
        case Chain():
            return Chain(tuple(dual(link) for link in transform.transforms))
        case Kronecker():
            return Kronecker(tuple(dual(factor) for factor in transform.transforms), transform.sizes)
        case BlockDiagonal():
            return BlockDiagonal(jax.vmap(dual)(transform.transform), transform.size)
        case Inverse() | AlongAxis() | Blockwise():
            return replace(transform, transform=dual(transform.transform))
    raise ValueError(f"no dual is known of {type(transform).__name__}: use rotations and scalings")
