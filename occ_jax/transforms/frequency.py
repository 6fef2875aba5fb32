"""Frequency transforms: coordinates for an ordered axis, where neighbours are alike."""

import jax.numpy as jnp
import jax.scipy.fft
import numpy as np
from jaxtyping import Array, Float

from .._pytree import pytree_dataclass
from .base import Transform


@pytree_dataclass
class DCT(Transform):
    r"""Orthonormal type-II discrete cosine transform along the last axis.

    .. math::

        y_k = s_k \sum_{j=0}^{n-1} x_j \cos\left(\frac{\pi (2j + 1) k}{2n}\right)

    with :math:`s_0 = \sqrt{1/n}` and :math:`s_{k>0} = \sqrt{2/n}`: orthonormal, so a squared error is the same on
    coefficients and on the signal. For a first-order autoregressive source with correlation near one it approaches
    the Karhunen-Loève transform. :math:`O(n \log n)`.

    Example:
        >>> print(DCT().forward(jnp.ones(4)).round(3))
        [2. 0. 0. 0.]

    References:
        Ahmed, Natarajan & Rao, Discrete cosine transform, IEEE Trans. Computers C-23, 1974.
    """

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Cosine coefficients, the mean first."""
        return jax.scipy.fft.dct(_at_least_float32(x), norm="ortho").astype(x.dtype)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Signals that have these cosine coefficients."""
        return jax.scipy.fft.idct(_at_least_float32(y), norm="ortho").astype(y.dtype)


@pytree_dataclass
class RealFFT(Transform):
    r"""Discrete Fourier transform of real vectors, packed into as many real coefficients.

    .. math::

        y = \left(\hat x_0,\ \sqrt2 \operatorname{Re} \hat x_1,\ \sqrt2 \operatorname{Im} \hat x_1,\ \ldots,\
        \hat x_{n/2}\right), \qquad
        \hat x_k = \frac{1}{\sqrt n} \sum_{j=0}^{n-1} x_j e^{-2\pi i jk/n}

    where the last entry exists for even :math:`n` only. The missing half of the spectrum is its complex conjugate;
    the factor :math:`\sqrt2` accounts for it and makes the transform orthonormal. :math:`O(n \log n)`.

    Example:
        >>> print(RealFFT().forward(jnp.asarray([1.0, 0.0, -1.0, 0.0])).round(3))
        [0.    1.414 0.    0.   ]

    References:
        Sorensen, Jones, Heideman & Burrus, Real-valued fast Fourier transform algorithms, IEEE Trans. ASSP 35, 1987.
    """

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Real and imaginary parts by rising frequency, the mean first."""
        spectrum = jnp.fft.rfft(_at_least_float32(x), norm="ortho")
        parts = jnp.stack([spectrum.real, spectrum.imag], axis=-1).reshape(*x.shape[:-1], 2 * spectrum.shape[-1])
        # The imaginary parts of the first and, for even n, of the last frequency are zero: leave them out.
        y = jnp.concatenate([parts[..., :1], parts[..., 2 : x.shape[-1] + 1]], axis=-1)
        return (y * _pair_weights(y)).astype(x.dtype)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Real vectors that have this packed spectrum."""
        n = y.shape[-1]
        parts = _at_least_float32(y)
        parts = parts / _pair_weights(parts)
        zero = jnp.zeros_like(parts[..., :1])
        parts = jnp.concatenate([parts[..., :1], zero, parts[..., 1:], *([zero] if n % 2 == 0 else [])], axis=-1)
        pairs = parts.reshape(*y.shape[:-1], n // 2 + 1, 2)
        spectrum = jax.lax.complex(pairs[..., 0], pairs[..., 1])
        return jnp.fft.irfft(spectrum, n=n, norm="ortho").astype(y.dtype)


def _pair_weights(y: Float[Array, "*batch n"]) -> Float[Array, "*ones n"]:
    """Square root of the number of spectral lines that a packed coefficient stands for."""
    n = y.shape[-1]
    weights = np.full(n, np.sqrt(2.0))
    weights[:1] = 1.0
    if n % 2 == 0:
        weights[-1] = 1.0
    return jnp.asarray(weights, y.dtype).reshape((1,) * (y.ndim - 1) + (n,))


def _at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x.astype(np.promote_types(x.dtype, jnp.float32))
