r"""Linear representations :math:`f = \Phi \theta`: five bases on a grid, in one or two dimensions."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from .sources import Source, grid

CUTOFF = 1e-6
"""Singular values of a design below this fraction of the largest are dropped from a fit."""

_Design = Float[np.ndarray, "values size"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    r"""A ladder of designs :math:`\Phi`, scaled so that every column has a mean square near one.

    Args:
        name: short name.
        title: what it is.
        design: matrix of a source's points and a number of coefficients.
    """

    name: str
    title: str
    design: Callable[[Source, int], _Design]


def ladder(source: Source) -> tuple[int, ...]:
    """Numbers of coefficients that are tried: powers of two, in two dimensions squares of them.

    Example:
        >>> from occ_toy import SOURCES
        >>> ladder(SOURCES["patch"])
        (4, 16, 64, 256)
    """
    first = 2 if source.num_axes == 2 else 4
    sides = [first << i for i in range((source.side // first).bit_length())]
    return tuple(side**source.num_axes for side in sides)


def fit(design: _Design, values: Float[np.ndarray, "draws values"]) -> Float[np.ndarray, "draws size"]:
    r"""Least-squares coefficients of every draw, the smallest ones where the design does not decide.

    .. math::

        \theta = \Phi^+ f

    Example:
        >>> fit(np.array([[1.0], [1.0]]), np.array([[2.0, 4.0]]))
        array([[3.]])
    """
    return values @ np.linalg.pinv(design, rcond=CUTOFF).T


def fourier_line(side: int, size: int) -> Float[np.ndarray, "side size"]:
    """Constant, cosines and sines in order of frequency, the last one alternating when ``size == side``."""
    order = np.arange(size)
    angle = 2 * np.pi * np.outer(grid(side), (order + 1) // 2)
    # At half the sampling rate the cosine vanishes on midpoints and the sine does not.
    is_sine = (order % 2 == 0) | (order == side - 1)
    columns = np.sqrt(2) * np.where(is_sine[None, :], np.sin(angle), np.cos(angle))
    columns[:, 0] = 1
    return columns if size < side else columns * np.where(order == side - 1, np.sqrt(0.5), 1)[None, :]


def dct_line(side: int, size: int) -> Float[np.ndarray, "side size"]:
    """Cosines of the type-II transform."""
    columns = np.sqrt(2) * np.cos(np.pi * np.outer(grid(side), np.arange(size)))
    columns[:, 0] = 1
    return columns


def haar_line(side: int, size: int) -> Float[np.ndarray, "side size"]:
    """The constant and the coarsest wavelets; ``size`` is a power of two."""
    x, columns = grid(side), [np.ones(side)]
    for index in range(1, size):
        level = index.bit_length() - 1
        position = x * 2**level - (index - 2**level)
        inside = (position >= 0) & (position < 1)
        columns.append(2 ** (level / 2) * np.where(inside, np.where(position < 0.5, 1.0, -1.0), 0.0))
    return np.stack(columns, axis=1)


def chebyshev_line(side: int, size: int) -> Float[np.ndarray, "side size"]:
    """Chebyshev polynomials of the first kind on [0, 1]."""
    columns = np.sqrt(2) * np.cos(np.outer(np.arccos(2 * grid(side) - 1), np.arange(size)))
    columns[:, 0] = 1
    return columns


def _product(line: Callable[[int, int], _Design]) -> Callable[[Source, int], _Design]:
    """Design on a line or, as a product of two lines, on a square."""

    def design(source: Source, size: int) -> _Design:
        if source.num_axes == 1:
            return line(source.side, size)
        one = line(source.side, round(size**0.5))
        return np.kron(one, one)

    return design


def _random_features(source: Source, size: int) -> _Design:
    """Cosines of random frequencies, uniform over the band that a DCT of this size covers, and random phases."""
    rng = np.random.default_rng([7, source.num_axes, size])
    reach = np.pi * size ** (1 / source.num_axes)
    frequency = rng.uniform(-reach, reach, (source.num_axes, size))
    return np.sqrt(2) * np.cos(source.points() @ frequency + rng.uniform(0, 2 * np.pi, (1, size)))


BASES: Mapping[str, Basis] = {
    basis.name: basis
    for basis in (
        Basis(name="fourier", title="Fourier", design=_product(fourier_line)),
        Basis(name="dct", title="DCT", design=_product(dct_line)),
        Basis(name="haar", title="Haar", design=_product(haar_line)),
        Basis(name="chebyshev", title="Chebyshev", design=_product(chebyshev_line)),
        Basis(name="rff", title="random features", design=_random_features),
    )
}
"""The linear representations by name."""
