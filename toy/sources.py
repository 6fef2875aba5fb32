"""Families of functions with known structure, each a source from which draws are coded."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import scipy.signal
from jaxtyping import Float

NUM_VALUES = 256
"""Values of a function: a line of 256 points, or a square of 16 x 16."""

CORRELATION = 0.95
"""Correlation of neighbours on the autoregressive path."""

_Draws = Float[np.ndarray, "draws values"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A family of functions on [0, 1] or on the unit square.

    Args:
        name: what to call it on the command line.
        title: what it is.
        num_axes: 1 or 2.
        sample: draws from a generator, one function per row.
    """

    name: str
    title: str
    num_axes: int
    sample: Callable[[np.random.Generator, int], _Draws]

    @property
    def side(self) -> int:
        """Points along one axis."""
        return round(NUM_VALUES ** (1 / self.num_axes))

    def points(self) -> Float[np.ndarray, "values axes"]:
        """Where the functions are known: midpoints of a uniform grid, the last axis fastest."""
        line = grid(self.side)
        return np.stack(np.meshgrid(*[line] * self.num_axes, indexing="ij"), axis=-1).reshape(-1, self.num_axes)

    def draw(self, count: int, *, stream: int) -> _Draws:
        """Draws number 0 to ``count`` of one of the family's streams, the same in every run.

        Example:
            >>> SOURCES["chirp"].draw(2, stream=0).shape
            (2, 256)
        """
        return self.sample(np.random.default_rng([zlib.crc32(self.name.encode()), stream]), count)


def grid(side: int) -> Float[np.ndarray, " side"]:
    """Midpoints of ``side`` equal intervals of [0, 1]."""
    return (np.arange(side) + 0.5) / side


def ar1_covariance(size: int, correlation: float = CORRELATION) -> Float[np.ndarray, "size size"]:
    r"""Covariance :math:`\Sigma_{ij} = \rho^{|i - j|}` of a stationary first-order autoregressive path.

    Example:
        >>> ar1_covariance(3, 0.5)[0]
        array([1.  , 0.5 , 0.25])
    """
    index = np.arange(size)
    return correlation ** np.abs(index[:, None] - index[None, :])


def _bandlimited(rng: np.random.Generator, count: int) -> _Draws:
    angle = 2 * np.pi * np.outer(np.arange(1, 13), grid(NUM_VALUES))
    return rng.normal(size=(count, 12)) @ np.cos(angle) + rng.normal(size=(count, 12)) @ np.sin(angle)


def _sawtooth(rng: np.random.Generator, count: int) -> _Draws:
    periods, phase = rng.integers(2, 6, (count, 1)), rng.uniform(size=(count, 1))
    return 2 * ((periods * grid(NUM_VALUES)[None, :] + phase) % 1) - 1


def _chirp(rng: np.random.Generator, count: int) -> _Draws:
    x = grid(NUM_VALUES)[None, :]
    phase, low, high = (rng.uniform(a, b, (count, 1)) for a, b in ((0, 1), (1, 4), (16, 32)))
    return np.sin(2 * np.pi * (phase + low * x + (high - low) * x**2 / 2))


def _piecewise(rng: np.random.Generator, count: int) -> _Draws:
    x = np.broadcast_to(grid(NUM_VALUES), (count, NUM_VALUES))
    breaks = np.sort(rng.uniform(size=(count, 3)), axis=1)
    piece = (x[:, :, None] > breaks[:, None, :]).sum(2)
    coefficients = rng.normal(size=(count, 4, 4))
    own = np.take_along_axis(coefficients, piece[:, :, None], axis=1)
    t = 2 * x - 1
    return (own * np.stack([np.ones_like(t), t, t**2, t**3], axis=-1)).sum(-1)


def _ar1(rng: np.random.Generator, count: int) -> _Draws:
    noise = rng.normal(size=(count, NUM_VALUES))
    noise[:, 1:] *= np.sqrt(1 - CORRELATION**2)  # stationary from the first point on
    return np.asarray(scipy.signal.lfilter([1.0], [1.0, -CORRELATION], noise, axis=1))


def _square(count: int) -> tuple[Float[np.ndarray, "1 side 1"], Float[np.ndarray, "1 1 side"]]:
    line = grid(16)
    return line[None, :, None], line[None, None, :]


def _patch(rng: np.random.Generator, count: int) -> _Draws:
    x, y = _square(count)
    angle, offset, slope, turn = (rng.uniform(0, b, (count, 1, 1)) for b in (2 * np.pi, 1, 1, 2 * np.pi))
    across = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    edge = np.tanh((across - 0.5 * (offset - 0.5)) / 0.05)
    gradient = slope * (np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5))
    centre_x, centre_y, phase = (rng.uniform(size=(count, 1, 1)) for _ in range(3))
    frequency = rng.uniform(3, 6, (count, 1, 1))
    window = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * 0.15**2))
    texture = window * np.cos(2 * np.pi * (frequency * (np.cos(turn) * x + np.sin(turn) * y) + phase))
    return (edge + gradient + 0.7 * texture).reshape(count, NUM_VALUES)


def _convolution(rng: np.random.Generator, count: int) -> _Draws:
    x, y = _square(count)
    width, shift, frequency = (rng.uniform(a, b, (count, 1, 1)) for a, b in ((0.05, 0.2), (0, 1), (0, 3)))
    distance = (x - y - shift + 0.5) % 1 - 0.5
    kernel = np.exp(-(distance**2) / (2 * width**2)) * np.cos(2 * np.pi * frequency * distance)
    return kernel.reshape(count, NUM_VALUES)


def _integral(rng: np.random.Generator, count: int) -> _Draws:
    x, y = _square(count)
    length, tilt = rng.uniform(0.15, 0.5, (count, 1, 1)), rng.normal(size=(count, 1, 1))
    return ((1 + tilt * x * y) * np.exp(-((x - y) ** 2) / (2 * length**2))).reshape(count, NUM_VALUES)


def _source(name: str, title: str, num_axes: int, sample: Callable[[np.random.Generator, int], _Draws]) -> Source:
    return Source(name=name, title=title, num_axes=num_axes, sample=sample)


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        _source("bandlimited", "band-limited sum", 1, _bandlimited),
        _source("sawtooth", "sawtooth", 1, _sawtooth),
        _source("chirp", "chirp", 1, _chirp),
        _source("piecewise", "piecewise cubic", 1, _piecewise),
        _source("ar1", "AR(1) path", 1, _ar1),
        _source("patch", "image patch", 2, _patch),
        _source("convolution", "convolution operator", 2, _convolution),
        _source("integral", "smooth integral operator", 2, _integral),
    )
}
"""The families of the laboratory by name."""
