"""The uniform scalar quantizer: round to the nearest multiple of a step."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.quantization.base import Quantizer, to_index, uniform_noise


@pytree_dataclass
class Uniform(Quantizer):
    r"""Mid-tread uniform quantizer.

    .. math::

        q = \operatorname{round}(y / \Delta), \qquad \hat y = \Delta q

    so that :math:`|y - \hat y| \le \Delta / 2`, and the mean squared error tends to :math:`\Delta^2 / 12` at high
    rate. With an ideal entropy coder it lies :math:`\tfrac12 \log_2 \tfrac{2 \pi e}{12} = 0.2546` bit above the
    rate-distortion function of any source with a density. Ties go to the even index.

    Args:
        step: the step :math:`\Delta > 0`; a scalar, or an array of the rank of ``y`` that broadcasts against it.

    Example:
        >>> quantizer = Uniform(jnp.array(0.5))
        >>> q = quantizer.quantize(jnp.array([-0.6, 0.2, 1.3]))
        >>> print(q, quantizer.dequantize(q))
        [-1  0  3] [-0.5  0.   1.5]

    References:
        Gish & Pierce, Asymptotically Efficient Quantizing, IEEE Trans. Information Theory, 1968.
    """

    step: Float[Array, "..."]

    def quantize(self, y: Float[Array, "..."]) -> Int32[Array, "..."]:
        """``round(y / step)``."""
        return to_index(jnp.round(y / self.step.astype(y.dtype)))

    def dequantize(self, q: Int32[Array, "..."]) -> Float[Array, "..."]:
        """``step * q``."""
        return self.step * q.astype(self.step.dtype)

    def relax(self, y: Float[Array, "..."], *, key: Key[Array, ""]) -> Float[Array, "..."]:
        """``y / step`` plus uniform noise of one step's width."""
        return uniform_noise(y / self.step.astype(y.dtype), key=key)
