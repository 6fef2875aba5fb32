"""A transform of its own for each block of a vector."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass, static_field
from .base import Transform


@pytree_dataclass
class BlockDiagonal(Transform):
    r"""Transforms of one kind, each for its own group of ``size`` consecutive entries:
    :math:`\operatorname{diag}(T_1, T_2, \ldots)`.

    Heads of an attention layer are such groups. Made by :func:`block_diagonal`.

    Args:
        transform: the stack: one transform whose leaves have a leading axis of blocks.
        size: entries in a group.

    Example:
        >>> from occ_jax.transforms import Scaling
        >>> t = block_diagonal([Scaling(jnp.zeros(2)), Scaling(jnp.ones(2))], 2)
        >>> print(t.forward(jnp.ones(4)))
        [1. 1. 2. 2.]
    """

    transform: Transform
    size: int = static_field()

    def __post_init__(self) -> None:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.transform)}
        if self.size < 1 or len(lengths) > 1 or () in lengths:
            raise ValueError(f"Blocks of size {self.size} take a stack of transforms, got leading axes {lengths}.")

    @property
    def is_orthonormal(self) -> bool:
        """As the transforms inside."""
        return self.transform.is_orthonormal

    @property
    def num_blocks(self) -> int | None:
        """How many transforms there are; None where they have no parameters and any number will do."""
        leaves = jax.tree.leaves(self.transform)
        return leaves[0].shape[0] if leaves else None

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply to each group its transform. Raises ValueError for vectors of another length."""
        return self._map(lambda t, block: t.forward(block), x)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Undo in each group its transform. Raises ValueError for vectors of another length."""
        return self._map(lambda t, block: t.inverse(block), y)

    def blocks(self) -> list[Transform]:
        """The transforms one by one."""
        return [jax.tree.map(lambda leaf, i=i: leaf[i], self.transform) for i in range(self.num_blocks or 1)]

    def repeat(self, times: int) -> "BlockDiagonal":
        """Every transform for ``times`` groups in succession.

        Example:
            >>> from occ_jax.transforms import Scaling
            >>> block_diagonal([Scaling(jnp.zeros(1)), Scaling(jnp.ones(1))], 1).repeat(2).forward(jnp.ones(4)).tolist()
            [1.0, 1.0, 2.0, 2.0]
        """
        return BlockDiagonal(jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), self.transform), self.size)

    def _map(self, apply: Callable[[Transform, Array], Array], x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        count = self.num_blocks
        if x.shape[-1] % self.size or count not in (None, x.shape[-1] // self.size):
            raise ValueError(
                f"{count} blocks of {self.size} got vectors of length {x.shape[-1]}: make one transform for each group."
            )
        groups = jnp.moveaxis(x.reshape(*x.shape[:-1], x.shape[-1] // self.size, self.size), -2, 0)
        y = apply(self.transform, groups) if count is None else jax.vmap(apply)(self.transform, groups)
        return jnp.moveaxis(y, 0, -2).reshape(x.shape)


def block_diagonal(transforms: Sequence[Transform], size: int) -> BlockDiagonal:
    """One transform for each group of ``size`` consecutive entries, all of one structure.

    Raises:
        ValueError: there are none, or they differ in more than the values of their parameters.

    Example:
        >>> from occ_jax.transforms import DCT, hadamard
        >>> block_diagonal([DCT(), hadamard(2)], 2)
        Traceback (most recent call last):
        ValueError: blocks of a vector take transforms of one kind and shape, got DCT, Hadamard
    """
    structures = {(jax.tree.structure(t), tuple(np.shape(leaf) for leaf in jax.tree.leaves(t))) for t in transforms}
    if len(structures) != 1:
        kinds = ", ".join(type(t).__name__ for t in transforms) or "none"
        raise ValueError(f"blocks of a vector take transforms of one kind and shape, got {kinds}")
    return BlockDiagonal(jax.tree.map(lambda *leaves: jnp.stack(leaves), *transforms), size)
