r"""Integer levels of rows and columns: the side information that says how large a step and how wide a scale is.

A vector of levels is stored as a Rice code around its centre :math:`m`: with :math:`z_i` the zigzag of
:math:`\ell_i - m`, the quotient :math:`z_i \gg k` in unary and the remainder in :math:`k` bits. For the bell-shaped
distributions of log scales this is within about 0.1 bit per level of their entropy, and it needs no table.

References:
    Rice & Plaunt, Adaptive Variable-Length Coding for Efficient Compression of Spacecraft Television Data, 1971.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Float32, Int32, Integer, UInt8

from occ_jax.entropy.varint import ByteReader, unzigzag, write_varint, zigzag
from occ_jax.quantization.scales import LARGEST_LEVEL

_CONSTANT = 255
_MAX_RICE = 15


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Levels:
    r"""Steps and scale classes of a matrix, by one integer per row and one per column.

    .. math::

        \Delta_{ij} = \Delta \cdot 2^{r_i / R_r + c_j / R}, \qquad
        \mathrm{class}_{ij} = \operatorname{clip}(\lfloor (a_i + b_j) / 2^h \rfloor, 0, K - 1)

    The class of a coefficient is the number of the frequency table(s) that code it; it is a function of integers
    only, so that a decoder on any machine picks the same tables.

    Args:
        base: :math:`\Delta`, rounded to float32.
        step_rows, step_cols: :math:`r` and :math:`c`.
        class_rows, class_cols: :math:`a` and :math:`b`.
        resolution: :math:`R`, levels per octave, 1 to 64.
        row_resolution: :math:`R_r`, that of the rows' steps; 0 for the same.
        class_shift: :math:`h`, 0 to 8.

    Example:
        >>> levels = Levels.constant(0.5, (2, 3))
        >>> levels.steps()
        (array([0.5, 0.5], dtype=float32), array([1., 1., 1.], dtype=float32))
    """

    base: float
    step_rows: Integer[np.ndarray, " rows"]
    step_cols: Integer[np.ndarray, " cols"]
    class_rows: Integer[np.ndarray, " rows"]
    class_cols: Integer[np.ndarray, " cols"]
    resolution: int = 8
    row_resolution: int = 0
    class_shift: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.base) and np.isfinite(np.float32(self.base)) and np.float32(self.base) > 0):
            raise ValueError(f"the base step is {self.base}: it must be a positive float32")
        if not (1 <= self.resolution <= 64 and 0 <= self.row_resolution <= 64):
            raise ValueError(
                f"the resolutions are {self.resolution} and {self.row_resolution} levels per octave: take 1 to 64"
            )
        if not 0 <= self.class_shift <= 8:
            raise ValueError(f"the class shift is {self.class_shift}: take 0 to 8")
        shapes = self.step_rows.shape, self.step_cols.shape
        if shapes != (self.class_rows.shape, self.class_cols.shape) or any(len(shape) != 1 for shape in shapes):
            raise ValueError("step and class levels must be vectors, one entry per row and one per column")
        for vector in (self.step_rows, self.step_cols, self.class_rows, self.class_cols):
            if vector.size and (vector.min() < -LARGEST_LEVEL or vector.max() > LARGEST_LEVEL):
                raise ValueError(
                    f"levels {vector.min()} to {vector.max()} leave [-2**14, 2**14]: move them to the base"
                )

    @staticmethod
    def constant(base: float, shape: tuple[int, int]) -> "Levels":
        """One step and one class for a whole matrix of this shape."""
        rows, cols = (np.zeros(size, np.int32) for size in shape)
        return Levels(base=base, step_rows=rows, step_cols=cols, class_rows=rows, class_cols=cols)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.step_rows.size, self.step_cols.size

    def steps(self) -> tuple[Float32[np.ndarray, " rows"], Float32[np.ndarray, " cols"]]:
        """Factors of the step: the base times the rows' part, and the columns' part.

        Raises:
            ValueError: a factor is not a positive normal float32.
        """
        rows = float(np.float32(self.base)) * np.exp2(self.step_rows / (self.row_resolution or self.resolution))
        factors = rows, np.exp2(self.step_cols / self.resolution)
        smallest, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
        for factor in factors:
            if factor.size and not (factor.min() >= smallest and factor.max() <= largest):
                raise ValueError(f"step factors {factor.min():g} to {factor.max():g} do not fit float32")
        return factors[0].astype(np.float32), factors[1].astype(np.float32)

    def classes(self, num_classes: int, rows: slice = slice(None)) -> UInt8[np.ndarray, "rows cols"]:
        """Scale class of every coefficient, or of some rows."""
        total = self.class_rows[rows].astype(np.int32)[:, None] + self.class_cols.astype(np.int32)[None, :]
        np.right_shift(total, self.class_shift, out=total)
        return np.clip(total, 0, num_classes - 1, out=total).astype(np.uint8)

    def with_row_factors(self, factors: Float[np.ndarray, " rows"], row_resolution: int) -> "Levels":
        """Levels whose rows' steps are multiplied, to the nearest level of another resolution; the classes stay.

        Example:
            >>> levels = Levels.constant(0.5, (2, 3)).with_row_factors(np.array([1.0, 1.1]), 32)
            >>> levels.step_rows, levels.steps()[0]
            (array([0, 4], dtype=int32), array([0.5      , 0.5452539], dtype=float32))
        """
        octaves = self.step_rows / (self.row_resolution or self.resolution) + np.log2(factors)
        step_rows = np.rint(octaves * row_resolution).astype(np.int32)
        return dataclasses.replace(self, step_rows=step_rows, row_resolution=row_resolution)

    def to_bytes(self) -> bytes:
        """The base as a little-endian float32, then the four vectors; resolutions and shift go into the spec."""
        vectors = (self.step_rows, self.step_cols, self.class_rows, self.class_cols)
        return np.float32(self.base).astype("<f4").tobytes() + b"".join(write_levels(v) for v in vectors)

    @staticmethod
    def from_bytes(
        data: bytes, shape: tuple[int, int], *, resolution: int, class_shift: int, row_resolution: int = 0
    ) -> "Levels":
        """Read what :meth:`to_bytes` wrote, for a matrix of this shape.

        Raises:
            ValueError: the bytes are not the levels of such a matrix.
        """
        reader = ByteReader(data, "levels")
        base = float(reader.take(4).view("<f4")[0])
        step_rows, step_cols, class_rows, class_cols = (read_levels(reader, size) for size in (*shape, *shape))
        reader.finish()
        return Levels(
            base=base,
            step_rows=step_rows,
            step_cols=step_cols,
            class_rows=class_rows,
            class_cols=class_cols,
            resolution=resolution,
            row_resolution=row_resolution,
            class_shift=class_shift,
        )


def write_levels(levels: Integer[np.ndarray, " n"]) -> bytes:
    """Rice code of a vector: parameter (one byte), centre (zigzag varint), number of bytes (varint), code bits.

    The bits are the quotients in unary (zeros, then a one), the remainders, and zeros to fill a byte; they go into
    bytes least significant first. Parameter 255 says that every level equals the centre; nothing follows it.

    Example:
        >>> write_levels(np.array([5, 5, 5])).hex(" "), write_levels(np.array([0, 1, -1])).hex(" ")
        ('ff 0a', '00 00 01 29')
    """
    levels = np.asarray(levels, np.int64)
    centre = int(np.sort(levels)[levels.size // 2]) if levels.size else 0
    code = zigzag(levels - centre)
    header = write_varint(int(zigzag(np.asarray(centre))))
    if not code.any():
        return bytes([_CONSTANT]) + header
    parameter = min(range(_MAX_RICE + 1), key=lambda k: int((code >> k).sum()) + code.size * k)
    quotients = code >> parameter
    unary = np.zeros(int(quotients.sum()) + code.size, np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    remainders = (code[:, None] >> np.arange(parameter)) & 1
    bits = np.packbits(np.concatenate([unary, remainders.astype(np.uint8).ravel()]), bitorder="little")
    return bytes([parameter]) + header + write_varint(bits.size) + bits.tobytes()


def read_levels(reader: ByteReader, count: int) -> Int32[np.ndarray, " count"]:
    """Read ``count`` levels that :func:`write_levels` wrote.

    Raises:
        ValueError: the bytes end early, a level is out of range, or the fill bits are not zero.
    """
    parameter = int(reader.take(1)[0])
    centre = int(unzigzag(reader.varints(1))[0])
    if parameter == _CONSTANT or count == 0:
        levels = np.full(count, centre if abs(centre) <= LARGEST_LEVEL else LARGEST_LEVEL + 1, np.int64)
    elif parameter > _MAX_RICE:
        raise reader.fail(f"a Rice parameter of {parameter}")
    else:
        levels = centre + unzigzag(_read_rice(reader, count, parameter))
    if count and (levels.min() < -LARGEST_LEVEL or levels.max() > LARGEST_LEVEL):
        raise reader.fail("a level lies outside [-2**14, 2**14]")
    return levels.astype(np.int32)


def _read_rice(reader: ByteReader, count: int, parameter: int) -> Integer[np.ndarray, " count"]:
    bits = np.unpackbits(reader.take(reader.varint()), bitorder="little")
    ends = np.flatnonzero(bits)[:count]
    stop = int(ends[-1]) + 1 + count * parameter if ends.size == count else bits.size + 1
    if stop > bits.size or bits.size - stop >= 8 or bits[stop:].any():
        raise reader.fail(f"the code of {count} levels does not fill its bytes")
    quotients = np.diff(ends, prepend=-1) - 1
    remainders = bits[ends[-1] + 1 : stop].reshape(count, parameter).astype(np.int64) @ (1 << np.arange(parameter))
    return (quotients << parameter) | remainders
