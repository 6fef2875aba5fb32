"""Rotations of planes that a rotary position code also turns."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass, static_field
from .base import Transform


@pytree_dataclass
class PlaneRotation(Transform):
    r"""A rotation of each pair of entries half a vector apart.

    .. math::

        y_k + i\, y_{k + n - h} = e^{i \theta_k} (x_k + i\, x_{k + n - h}), \qquad k < h = \lfloor n / 2 \rfloor

    One sweep's last layer of a butterfly, for every size; an odd one keeps its middle entry. Rotary position codes turn
    the same planes, so with them it commutes: queries and keys may be expressed in it without any change of their
    products.

    Args:
        angles: :math:`\theta` in radians; the side information.
        size: length ``n`` of the vectors.

    Example:
        >>> quarter_turn = PlaneRotation(jnp.full(1, jnp.pi / 2), 2)
        >>> print(quarter_turn.forward(jnp.asarray([1.0, 0.0])).round(3) + 0.0)
        [0. 1.]

    References:
        Su et al., RoFormer, arXiv:2104.09864 (section 3.2, in the layout of half vectors).
    """

    angles: Float[Array, " half"]
    size: int = static_field()

    def __post_init__(self) -> None:
        if self.size < 1 or jnp.shape(self.angles) != (self.size // 2,):
            raise ValueError(
                f"A plane rotation of size {self.size} takes {max(self.size, 0) // 2} angles, "
                f"got shape {jnp.shape(self.angles)}."
            )

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Turn every plane."""
        return self._turn(x, self.angles)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Turn every plane back."""
        return self._turn(y, -self.angles)

    def _turn(self, x: Float[Array, "*batch n"], angles: Float[Array, " half"]) -> Float[Array, "*batch n"]:
        if x.shape[-1] != self.size:
            raise ValueError(
                f"A plane rotation of size {self.size} got vectors of length {x.shape[-1]}: make one of that size."
            )
        dtype = np.promote_types(np.promote_types(x.dtype, angles.dtype), jnp.float32)
        half, shape = self.size // 2, (1,) * (x.ndim - 1) + angles.shape
        cos, sin = (f(angles.astype(dtype)).reshape(shape) for f in (jnp.cos, jnp.sin))
        wide = x.astype(dtype)
        real, middle, imaginary = jnp.split(wide, [half, self.size - half], axis=-1)
        parts = [cos * real - sin * imaginary, middle, sin * real + cos * imaginary]
        return jnp.concatenate(parts, axis=-1).astype(x.dtype)
