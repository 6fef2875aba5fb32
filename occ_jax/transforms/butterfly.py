"""A network of plane rotations: an orthogonal transform with n log n parameters, of any size."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass, static_field
from .base import Transform


@pytree_dataclass
class Butterfly(Transform):
    r"""Layers of Givens rotations between entries at distances 1, 2, 4, ..., swept several times.

    .. math::

        \begin{pmatrix} y_i \\ y_{i + s} \end{pmatrix} =
        \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}
        \begin{pmatrix} x_i \\ x_{i + s} \end{pmatrix},
        \qquad \lfloor i / s \rfloor \text{ even},\ i + s < n

    for every stride :math:`s = 1, 2, 4, \ldots < n`. Where ``n`` is not a power of two some entries have no partner
    in a layer; every other sweep runs over the reversed vector, so that these are not the same ones twice. The
    transform is orthonormal for all angles and the identity for angles of zero. :math:`O(n \log n)` operations and
    about :math:`\tfrac12 n \log_2 n` angles for each sweep, against :math:`\tfrac12 n^2` of a dense rotation.

    Args:
        angles: :math:`\theta` in radians, one row for each sweep, strides ascending; the side information.
        size: length ``n`` of the vectors.

    Example:
        >>> quarter_turn = Butterfly(jnp.full((1, 1), jnp.pi / 2), 2)
        >>> print(quarter_turn.forward(jnp.asarray([1.0, 0.0])).round(3) + 0.0)
        [0. 1.]

    References:
        Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations, ICML 2019,
        arXiv:1903.05895.
    """

    angles: Float[Array, "sweeps pairs"]
    size: int = static_field()

    def __post_init__(self) -> None:
        shape = jnp.shape(self.angles)
        if self.size < 1 or len(shape) != 2 or shape[1] != num_pairs(self.size):
            raise ValueError(
                f"A butterfly of size {self.size} takes angles of shape (sweeps, {num_pairs(max(self.size, 1))}), "
                f"got {shape}."
            )

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Rotate through all layers, from the first sweep to the last."""
        rows, angles = self._prepare(x)
        for sweep in range(angles.shape[0]):
            layers = list(zip(*_layers(self.size)))
            rows = _sweep(rows, angles[sweep], layers, is_reversed=sweep % 2 == 1)
        return rows.astype(x.dtype).reshape(x.shape)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Rotate back, from the last layer to the first."""
        rows, angles = self._prepare(y)
        for sweep in reversed(range(angles.shape[0])):
            layers = list(zip(*_layers(self.size)))[::-1]
            rows = _sweep(rows, -angles[sweep], layers, is_reversed=sweep % 2 == 1)
        return rows.astype(y.dtype).reshape(y.shape)

    def _prepare(self, x: Float[Array, "*batch n"]) -> tuple[Float[Array, "rows n"], Float[Array, "sweeps pairs"]]:
        if x.shape[-1] != self.size:
            raise ValueError(
                f"A butterfly of size {self.size} got vectors of length {x.shape[-1]}: make one of that size."
            )
        dtype = np.promote_types(x.dtype, jnp.float32)
        return x.reshape(-1, self.size).astype(dtype), self.angles.astype(dtype)


def butterfly(n: int, *, sweeps: int = 2, dtype: DTypeLike = jnp.float32) -> Butterfly:
    """The butterfly of size ``n`` at the identity, to be trained.

    Args:
        n: length of the vectors.
        sweeps: passes over all strides.
        dtype: of the angles.

    Example:
        >>> butterfly(6, sweeps=1).angles.shape
        (1, 7)
    """
    if n < 1 or sweeps < 1:
        raise ValueError(f"A butterfly has at least one entry and one sweep, got n={n} and sweeps={sweeps}.")
    return Butterfly(jnp.zeros((sweeps, num_pairs(n)), dtype), n)


def num_pairs(n: int) -> int:
    """Rotations in one sweep over vectors of length ``n``.

    Example:
        >>> num_pairs(8), num_pairs(5)
        (12, 5)
    """
    return sum(_layers(n)[1])


def _layers(n: int) -> tuple[list[int], list[int]]:
    """Strides of a sweep, and the number of pairs at each."""
    strides = [2**k for k in range((n - 1).bit_length())]
    return strides, [n // (2 * s) * s + max(0, n % (2 * s) - s) for s in strides]


def _sweep(
    rows: Float[Array, "rows n"],
    angles: Float[Array, " pairs"],
    layers: list[tuple[int, int]],
    *,
    is_reversed: bool,
) -> Float[Array, "rows n"]:
    """Layers in the order given; the angles lie in ascending order of strides."""
    first = dict(zip(sorted(s for s, _ in layers), np.cumsum([0, *(count for _, count in sorted(layers))]).tolist()))
    rows = rows[:, ::-1] if is_reversed else rows
    for stride, count in layers:
        rows = _rotate(rows, angles[first[stride] : first[stride] + count], stride)
    return rows[:, ::-1] if is_reversed else rows


def _rotate(rows: Float[Array, "rows n"], angles: Float[Array, " count"], stride: int) -> Float[Array, "rows n"]:
    n = rows.shape[1]
    whole = n // (2 * stride) * 2 * stride
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    shape = (whole // (2 * stride), stride)
    blocks = rows[:, :whole].reshape(len(rows), shape[0], 2, stride)
    u, v = blocks[:, :, 0], blocks[:, :, 1]
    c, s = (a[: whole // 2].reshape(1, *shape) for a in (cos, sin))
    parts = [jnp.stack([c * u - s * v, s * u + c * v], axis=2).reshape(len(rows), whole)]
    if whole < n:
        # The last block is cut short: its first entries have partners, the middle ones have none.
        tail, paired = rows[:, whole:], max(0, n - whole - stride)
        u, v = tail[:, :paired], tail[:, stride : stride + paired]
        c, s = (a[None, whole // 2 :] for a in (cos, sin))
        parts += [c * u - s * v, tail[:, paired : min(stride, n - whole)], s * u + c * v]
    return jnp.concatenate(parts, axis=1)
