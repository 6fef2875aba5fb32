"""The fast Walsh-Hadamard transform, of every size and with random signs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Key

from .._pytree import pytree_dataclass
from .base import Transform
from .kronecker import kronecker_apply

# Up to this size a transform, or one factor of it, is a single product with its matrix.
_LARGEST_DENSE = 64
# log2 of the largest Sylvester factor: 32 x 32 products still run at the speed of memory.
_RADIX_BITS = 5
# The largest odd part that is multiplied out; beyond it the Hartley matrix is applied by the FFT.
_LARGEST_ODD = 128


@pytree_dataclass
class Hadamard(Transform):
    r"""Fast Walsh-Hadamard transform of any size, with a sign for each input.

    .. math::

        y = (C_m \otimes H_{2^k})\, (s \odot x), \qquad n = 2^k m,\ m \text{ odd}

    where :math:`H_{2^k}` is Sylvester's matrix with entries :math:`\pm 2^{-k/2}` and :math:`C_m` the discrete
    Hartley matrix :math:`C_{ij} = m^{-1/2} (\cos(2\pi ij/m) + \sin(2\pi ij/m))`; for a power of two it is the
    Hadamard transform proper. Both are symmetric and orthogonal, so the transform is orthonormal and without signs
    it is its own inverse. No entry exceeds :math:`\sqrt{2/n}` in magnitude: every output is a mixture of all
    inputs, hence close to Gaussian, and outliers are spread evenly. :math:`O(n \log n)` operations, computed as
    products with small Kronecker factors; a large odd part takes an FFT.

    Args:
        signs: +1 or -1 for each input, int8; the side information of the transform, one bit each.

    Example:
        >>> print(hadamard(4).forward(jnp.asarray([4.0, 0.0, 0.0, 0.0])))
        [2. 2. 2. 2.]

    References:
        Sylvester, Thoughts on inverse orthogonal matrices, Phil. Mag. 34, 1867.
        Bracewell, Discrete Hartley transform, J. Opt. Soc. Am. 73, 1983.
        Tseng et al., QuIP#, 2024, arXiv:2402.04396, section 3 (incoherence by random signs and Hadamard).
    """

    signs: Int8[Array, " n"]

    def __post_init__(self) -> None:
        if jnp.ndim(self.signs) != 1 or self.size == 0 or jnp.result_type(self.signs) != jnp.int8:
            raise ValueError(
                "Hadamard takes a vector of int8 signs, one for each input, got "
                f"{jnp.result_type(self.signs)} of shape {jnp.shape(self.signs)}."
            )

    @property
    def size(self) -> int:
        """Length ``n`` of the vectors that it transforms."""
        return self.signs.shape[-1]

    @property
    def is_orthonormal(self) -> bool:
        """Always true."""
        return True

    def forward(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Flip signs, then mix."""
        return self._mix(x, before=self.signs, after=None)

    def inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Mix, then flip signs."""
        return self._mix(y, before=None, after=self.signs)

    def _mix(self, x: Float[Array, "*batch n"], *, before, after) -> Float[Array, "*batch n"]:
        if x.shape[-1] != self.size:
            raise ValueError(
                f"Hadamard of size {self.size} got vectors of length {x.shape[-1]}: make one of that size."
            )
        factors, odd = _plan(self.size)
        if odd == 1:
            return kronecker_apply(factors, x, before=before, after=after)
        rows = x.reshape(-1, self.size).astype(np.promote_types(x.dtype, jnp.float32))
        rows = rows if before is None else rows * before.astype(rows.dtype)[None, :]
        blocks = kronecker_apply(factors, rows.reshape(-1, odd, self.size // odd))
        rows = _hartley_fft(blocks).reshape(rows.shape)
        rows = rows if after is None else rows * after.astype(rows.dtype)[None, :]
        return rows.reshape(x.shape).astype(x.dtype)


def hadamard(n: int) -> Hadamard:
    """The Walsh-Hadamard transform of size ``n`` without sign flips: nothing to store.

    Example:
        >>> print(hadamard(2).forward(jnp.eye(2)).round(4))
        [[ 0.7071  0.7071]
         [ 0.7071 -0.7071]]
    """
    return Hadamard(jnp.ones((_checked(n),), jnp.int8))


def random_hadamard(n: int, *, key: Key[Array, ""]) -> Hadamard:
    """The Walsh-Hadamard transform of size ``n`` with independent random signs.

    Example:
        >>> t = random_hadamard(576, key=jax.random.key(0))
        >>> t.size, t.signs.dtype.name
        (576, 'int8')
    """
    return Hadamard(jax.random.rademacher(key, (_checked(n),), jnp.int8))


def sylvester_matrix(exponent: int) -> np.ndarray:
    r"""Sylvester's Hadamard matrix of size :math:`2^k`, scaled to be orthogonal; symmetric, float64.

    .. math::

        H_{ij} = 2^{-k/2} (-1)^{\langle i, j \rangle}

    with the scalar product of the binary digits of ``i`` and ``j``.
    """
    index = np.arange(2**exponent)
    return (1.0 - 2.0 * (np.bitwise_count(index[:, None] & index[None, :]) % 2)) * 2.0 ** (-exponent / 2)


def hartley_matrix(size: int) -> np.ndarray:
    r"""Matrix of the discrete Hartley transform, scaled to be orthogonal; symmetric, float64.

    .. math::

        C_{ij} = m^{-1/2} \left(\cos\frac{2\pi ij}{m} + \sin\frac{2\pi ij}{m}\right)
               = \sqrt{2/m} \, \cos\left(\frac{2\pi ij}{m} - \frac{\pi}{4}\right)
    """
    index = np.arange(size)
    # The product is reduced before it is an angle, so that the cosine of a large number is never taken.
    return np.sqrt(2.0 / size) * np.cos(2.0 * np.pi / size * (np.outer(index, index) % size) - np.pi / 4)


def _plan(n: int) -> tuple[list[np.ndarray], int]:
    """Kronecker factors of the transform, slowest index first, and the odd part that is left to the FFT (or 1)."""
    exponent = (n & -n).bit_length() - 1
    odd = n >> exponent
    if n <= _LARGEST_DENSE:
        return [np.kron(hartley_matrix(odd), sylvester_matrix(exponent))], 1
    innermost = min(exponent, _RADIX_BITS)
    count = -(-(exponent - innermost) // _RADIX_BITS)
    outer = [(exponent - innermost + i) // count for i in range(count)]
    factors = [sylvester_matrix(bits) for bits in [*outer, innermost] if bits]
    if odd == 1:
        return factors, 1
    if odd > min(_LARGEST_ODD, 2 ** (exponent + 1)):
        return factors, odd
    if outer and odd << outer[0] <= _LARGEST_DENSE:
        return [np.kron(hartley_matrix(odd), factors[0]), *factors[1:]], 1
    return [hartley_matrix(odd), *factors], 1


def _hartley_fft(x: Float[Array, "*batch m stride"]) -> Float[Array, "*batch m stride"]:
    r"""Hartley transform of the last axis but one: real minus imaginary part of the Fourier transform."""
    spectrum = jnp.fft.fft(jnp.swapaxes(x, -1, -2), norm="ortho")
    return jnp.swapaxes(spectrum.real - spectrum.imag, -1, -2)


def _checked(n: int) -> int:
    if n < 1:
        raise ValueError(f"A Hadamard transform has at least one input, got n={n}.")
    return n
