"""What a transform is, and the combinators that make new transforms out of given ones."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass, static_field


class Transform(abc.ABC):
    r"""An invertible linear change of coordinates along the last axis.

    .. math::

        y = T x, \qquad x = T^{-1} y, \qquad x, y \in \mathbb{R}^n

    A transform is a pytree: its array fields are side information that a decoder needs, its static fields are
    configuration. Every transform maps arrays of any leading shape to arrays of the same shape and dtype, so that
    ``t.inverse(t.forward(x))`` is ``x`` up to rounding. Half precisions are computed in float32.
    """

    @property
    @abc.abstractmethod
    def is_orthonormal(self) -> bool:
        """Whether ``T`` keeps norms, so that a squared error is the same in both coordinate systems."""

    @abc.abstractmethod
    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Coefficients ``y = T x`` of every vector along the last axis."""

    @abc.abstractmethod
    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Vectors ``x = T^-1 y`` of the coefficients along the last axis."""


@pytree_dataclass
class Identity(Transform):
    """The original coordinates: ``y = x``.

    Example:
        >>> Identity().forward(jnp.arange(3.0))
        Array([0., 1., 2.], dtype=float32)
    """

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``x`` itself."""
        return x

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``y`` itself."""
        return y


@pytree_dataclass
class Chain(Transform):
    r"""Transforms one after the other, the first one first: :math:`T = T_p \cdots T_2 T_1`.

    Example:
        >>> from occ_jax.transforms import DCT, hadamard
        >>> t = Chain((DCT(), hadamard(4)))
        >>> print(t.forward(jnp.ones(4)).round(3))
        [1. 1. 1. 1.]
    """

    transforms: tuple[Transform, ...]

    @property
    def is_orthonormal(self) -> bool:
        """True when every link is."""
        return all(t.is_orthonormal for t in self.transforms)

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply every link, from the first to the last."""
        for t in self.transforms:
            x = t.forward(x)
        return x

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Undo every link, from the last to the first."""
        for t in reversed(self.transforms):
            y = t.inverse(y)
        return y


@pytree_dataclass
class Inverse(Transform):
    """A transform with its two directions exchanged: synthesis becomes analysis.

    Example:
        >>> from occ_jax.transforms import DCT
        >>> print(Inverse(DCT()).forward(jnp.asarray([2.0, 0.0, 0.0, 0.0])).round(3))
        [1. 1. 1. 1.]
    """

    transform: Transform

    @property
    def is_orthonormal(self) -> bool:
        """As the transform inside."""
        return self.transform.is_orthonormal

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The inverse of the transform inside."""
        return self.transform.inverse(x)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The forward direction of the transform inside."""
        return self.transform.forward(y)


@pytree_dataclass
class AlongAxis(Transform):
    """A transform of another axis than the last, as the columns of a weight.

    Args:
        transform: what to apply.
        axis: the axis that it acts on, counted as NumPy counts.

    Example:
        >>> from occ_jax.transforms import DCT
        >>> print(AlongAxis(DCT(), axis=0).forward(jnp.ones((4, 2))).round(3)[0])
        [2. 2.]
    """

    transform: Transform
    axis: int = static_field(default=-1)

    @property
    def is_orthonormal(self) -> bool:
        """As the transform inside."""
        return self.transform.is_orthonormal

    def forward(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Apply the transform along ``axis``."""
        return jnp.moveaxis(self.transform.forward(jnp.moveaxis(x, self.axis, -1)), -1, self.axis)

    def inverse(self, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Undo the transform along ``axis``."""
        return jnp.moveaxis(self.transform.inverse(jnp.moveaxis(y, self.axis, -1)), -1, self.axis)


@pytree_dataclass
class Blockwise(Transform):
    r"""One transform for each group of ``size`` consecutive entries: :math:`I_{n / s} \otimes T`.

    Attention heads, blocks of a feed-forward layer and channel groups are such groups.

    Args:
        transform: what to apply to each group; it acts on vectors of length ``size``.
        size: entries in a group; it divides the length of the axis.

    Example:
        >>> from occ_jax.transforms import hadamard
        >>> print(Blockwise(hadamard(2), 2).forward(jnp.ones(4)).round(3))
        [1.414 0.    1.414 0.   ]
    """

    transform: Transform
    size: int = static_field()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"A block holds at least one entry, got size={self.size}.")

    @property
    def is_orthonormal(self) -> bool:
        """As the transform inside."""
        return self.transform.is_orthonormal

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Apply the transform to every group. Raises ValueError when ``size`` does not divide ``n``."""
        return self.transform.forward(self._split(x)).reshape(x.shape)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Undo the transform in every group. Raises ValueError when ``size`` does not divide ``n``."""
        return self.transform.inverse(self._split(y)).reshape(y.shape)

    def _split(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch blocks size"]:
        if x.shape[-1] % self.size:
            raise ValueError(
                f"Blocks of {self.size} do not divide an axis of {x.shape[-1]}: choose a divisor, or pad the axis."
            )
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.size, self.size)


def identity() -> Identity:
    """The original coordinates."""
    return Identity()


def chain(*transforms: Transform) -> Transform:
    """Transforms one after the other, the first one first; nested chains are flattened, identities dropped.

    Example:
        >>> chain(identity(), identity())
        Identity()
    """
    links: list[Transform] = []
    for t in transforms:
        links.extend(t.transforms if isinstance(t, Chain) else (t,))
    links = [t for t in links if not isinstance(t, Identity)]
    if not links:
        return Identity()
    return links[0] if len(links) == 1 else Chain(tuple(links))


def inverse(transform: Transform) -> Transform:
    """The inverse transform; the inverse of an inverse is what one began with.

    Example:
        >>> inverse(inverse(identity()))
        Identity()
    """
    return transform.transform if isinstance(transform, Inverse) else Inverse(transform)


def along_axis(transform: Transform, axis: int) -> AlongAxis:
    """``transform`` applied along ``axis`` in place of the last axis."""
    return AlongAxis(transform, axis)


def blockwise(transform: Transform, size: int) -> Blockwise:
    """``transform`` applied to each group of ``size`` consecutive entries of the last axis."""
    return Blockwise(transform, size)
