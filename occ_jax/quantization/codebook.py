r"""What encoder and decoder of a trellis share: frequency tables, and where each index is reconstructed.

Indices are coded as symbols, :math:`k = \lfloor q / 2 \rfloor` (one state: :math:`k = q`), with one frequency table
for each scale class and parity. An index is reconstructed at

.. math::

    \hat t(q) = q + \delta_{\mathrm{class}, q} / 64

steps, with the :math:`\delta` of the few symbols next to zero stored as int8 and zero for all others. Moving the
points to the centroids of what falls on them is what keeps the quantizer at its high-rate distance from the limit
down to the lowest rates: in a class of nearly no bits the odd states, too, get a point near zero.

References:
    Fischer & Wang, Entropy-constrained trellis-coded quantization, IEEE Trans. Information Theory, 1992.
    Marcellin, On entropy-constrained trellis coded quantization, IEEE Trans. Communications, 1994.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int8, Int32

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.entropy.stacks import host_cost_bits, stack_from_counts
from occ_jax.entropy.tables import FreqTable, from_bytes, to_bytes
from occ_jax.entropy.varint import ByteReader, write_varints
from occ_jax.quantization.ungerboeck import check_num_states, num_parities

SHIFTS_PER_STEP = 64
"""Reconstruction points lie on a grid of this many points per step."""

REACH = 4
"""Symbols from -REACH to REACH have a reconstruction point of their own."""

BITS_RESOLUTION = 1024
"""The search knows code lengths in units of 1/1024 bit."""

DENSE_WIDTH = 64
"""Widths of dense search tables are powers of two from here, so that few shapes are ever compiled."""


@pytree_dataclass
class Codebook:
    """Frequency tables and reconstruction points, one of each for every scale class and parity.

    Table ``parities * scale_class + parity`` belongs to a class and a parity, see
    :func:`~occ_jax.quantization.ungerboeck.num_parities`.

    Attributes:
        tables: a stack of frequency tables of symbols.
        shifts: for every table the shifts of the symbols ``-REACH`` to ``REACH``, in 1/64 steps.
        num_states: states of the trellis.
    """

    tables: FreqTable
    shifts: Int8[Array, "tables points"]
    num_states: int = static_field(default=8)

    def __post_init__(self):
        check_num_states(self.num_states)
        expected = (self.tables.freq.shape[0], 2 * REACH + 1)
        if self.tables.freq.ndim != 2 or self.shifts.shape != expected:
            raise ValueError(f"{self.tables.freq.shape[0]} tables need shifts {expected}, got {self.shifts.shape}")
        if expected[0] % self.num_parities:
            raise ValueError(f"{expected[0]} tables are not {self.num_parities} for each scale class")

    @property
    def num_parities(self) -> int:
        """Tables per scale class."""
        return num_parities(self.num_states)

    @property
    def num_classes(self) -> int:
        """Number of scale classes."""
        return self.shifts.shape[0] // self.num_parities


@pytree_dataclass
class SearchTables:
    """A codebook unfolded for the encoder's search: dense, in floats, over one range of symbols.

    Attributes:
        entries: code length in 1/1024 bits and, in the low 8 bits, the shift plus 128, of each symbol: the search
            looks up one word. The first and the last column stand for all symbols beyond.
        first: symbol of the first column.
    """

    entries: Int32[Array, "tables width"]
    first: Int32[Array, ""]

    @property
    def bits(self) -> Float32[Array, "tables width"]:
        """Code length of each symbol."""
        return entry_bits(self.entries)

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return self.entries.shape[0]


def entry_bits(entry: Int32[Array, "..."]) -> Float32[Array, "..."]:
    """Code length in an entry of :class:`SearchTables`."""
    return (entry >> 8).astype(jnp.float32) * (1 / BITS_RESOLUTION)


def entry_shift(entry: Int32[Array, "..."]) -> Float32[Array, "..."]:
    """Reconstruction point minus index, in steps, in an entry of :class:`SearchTables`."""
    return ((entry & 255) - 128).astype(jnp.float32) * (1 / SHIFTS_PER_STEP)


def search_tables(codebook: Codebook) -> SearchTables:
    """Unfold a codebook (on the host) for :func:`~occ_jax.quantization.viterbi.search`."""
    bits = host_cost_bits(codebook.tables)
    offset = np.asarray(codebook.tables.offset)
    freq = np.asarray(codebook.tables.freq)[:, :-1]
    used = np.where(freq > 0, offset[:, None] + np.arange(freq.shape[1])[None, :], 0)
    first, last = min(int(used.min()), -REACH) - 1, max(int(used.max()), REACH) + 1
    width = DENSE_WIDTH
    while width < last - first + 1:
        width *= 2
    column = np.arange(width)[None, :] + first - offset[:, None]
    column = np.where((column >= 0) & (column < freq.shape[1]), column, freq.shape[1])
    entries = np.rint(np.take_along_axis(bits, column, 1) * BITS_RESOLUTION).astype(np.int32) << 8 | 128
    near = np.arange(-REACH, REACH + 1) - first
    entries[:, near] += np.asarray(codebook.shifts, np.int32)
    return SearchTables(jnp.asarray(entries, jnp.int32), jnp.asarray(first, jnp.int32))


_Integers = TypeVar("_Integers", Array, np.ndarray)


def table_index(q: _Integers, classes: _Integers, num_states: int) -> _Integers:
    """Number of the table that codes index ``q`` in a scale class."""
    return classes if num_states == 1 else 2 * classes + (q & 1)


def symbol(q: _Integers, num_states: int) -> _Integers:
    """What the entropy coder codes for index ``q``."""
    return q if num_states == 1 else q >> 1


def reconstruct(q: Int32[Array, "..."], classes: Int32[Array, "..."], codebook: Codebook) -> Float32[Array, "..."]:
    """Reconstruction points of indices, in steps; multiples of 1/64, so exact in float32 up to ``2**17`` steps."""
    return _reconstruct(q, classes, codebook.shifts, codebook.num_states)


@partial(jax.jit, static_argnames="num_states")  # without the tables, whose width is another one in every codebook
def _reconstruct(q: Array, classes: Array, shifts: Array, num_states: int) -> Array:
    k = jnp.clip(symbol(q, num_states) + REACH, -1, 2 * REACH + 1)
    near = (k >= 0) & (k <= 2 * REACH)
    where = table_index(q, classes, num_states) * (2 * REACH + 1) + jnp.clip(k, 0, 2 * REACH)
    shift = shifts.reshape(-1).at[where].get(mode="clip")
    return q.astype(jnp.float32) + jnp.where(near, shift.astype(jnp.float32) / SHIFTS_PER_STEP, 0)


@pytree_dataclass
class Statistics:
    """How often every symbol occurs under every table, and the sum of what falls on it, minus its index, in steps.

    Statistics of several tensors add: ``jax.tree.map(np.add, a, b)``.
    """

    counts: Float[np.ndarray, "tables symbols"]
    residuals: Float[np.ndarray, "tables symbols"]

    @property
    def max_symbol(self) -> int:
        """Largest magnitude of a symbol that is counted; those beyond it are left out."""
        return self.counts.shape[1] // 2


MAX_SYMBOL = 1023


def gather_statistics(
    t: Float[Array, "..."], q: Int32[Array, "..."], classes: Int32[Array, "..."], num_states: int, num_classes: int
) -> Statistics:
    """Count the symbols of ``q`` and sum ``t - q`` over each; symbols beyond ``MAX_SYMBOL`` are left out."""
    num_tables, width = num_classes * num_parities(num_states), 2 * MAX_SYMBOL + 1
    q_host = np.asarray(q)
    k = symbol(q_host, num_states) + MAX_SYMBOL
    where = table_index(q_host, np.asarray(classes), num_states) * width + k
    residual = np.asarray(t) - q_host
    inside = (k >= 0) & (k < width)
    if not inside.all():
        where, residual = where[inside], residual[inside]
    shape = (num_tables, width)
    counts = np.bincount(where.reshape(-1), minlength=num_tables * width)
    sums = np.bincount(where.reshape(-1), residual.reshape(-1), num_tables * width)
    return Statistics(counts.astype(np.float64).reshape(shape), sums.reshape(shape))


def _trimmed(counts: Float[np.ndarray, " symbols"], first: int, precision: int) -> tuple[np.ndarray, int]:
    """Whole counts of the range of symbols that pays, and its offset: an entry takes one unit of frequency from all."""
    price = counts.sum() * np.log2(np.e) / 2**precision / (precision + 16)
    worth = np.flatnonzero(counts > price)
    if worth.size == 0:
        return np.zeros(0, np.int64), 0
    lo, hi = worth[0], worth[-1] + 1
    whole = np.rint(counts[lo:hi] * (2**30 / counts.sum())).astype(np.int64)
    return whole, int(first + lo)


def estimate(statistics: Statistics, num_states: int, *, precision: int = 12) -> Codebook:
    """Tables from counts and reconstruction points from centroids.

    A table without a count holds nothing but its escape, which takes three bytes in a file. What is left to the escape
    has no shift, in a file or here. Counts may be fractions: give unseen symbols a chance by adding a multiple of
    another codebook's statistics.
    """
    half = statistics.max_symbol
    counts, offsets = zip(*(_trimmed(row, -half, precision) for row in statistics.counts), strict=True)
    tables = stack_from_counts(counts, offsets, precision)
    near = slice(half - REACH, half + REACH + 1)
    centroid = statistics.residuals[:, near] / np.maximum(statistics.counts[:, near], 1e-9)
    shifts = np.clip(np.rint(centroid * SHIFTS_PER_STEP), -127, 127) * _stored(tables)
    return Codebook(tables, jnp.asarray(shifts, jnp.int8), num_states)


def _stored(tables: FreqTable) -> Bool[np.ndarray, "tables points"]:
    """Which shifts are written: those of symbols with a frequency."""
    freq, offset = np.asarray(tables.freq)[:, :-1], np.asarray(tables.offset)
    column = np.arange(-REACH, REACH + 1)[None, :] - offset[:, None]
    inside = (column >= 0) & (column < freq.shape[1])
    if freq.shape[1] == 0:
        return inside
    return inside & (np.take_along_axis(freq, np.clip(column, 0, freq.shape[1] - 1), 1) > 0)


def codebook_to_bytes(codebook: Codebook) -> bytes:
    """Serialise: number of states, length of the tables, the tables, a byte for the shift of each symbol near zero."""
    tables = to_bytes(codebook.tables)
    shifts = np.asarray(codebook.shifts)[_stored(codebook.tables)]
    return write_varints(np.array([codebook.num_states, len(tables)])) + tables + shifts.tobytes()


def codebook_from_bytes(data: bytes) -> Codebook:
    """Read what :func:`codebook_to_bytes` wrote.

    Raises:
        ValueError: the bytes are not exactly one codebook.
    """
    reader = ByteReader(data, "codebook")
    num_states, length = (int(x) for x in reader.varints(2))
    check_num_states(num_states)
    tables = from_bytes(reader.take(length).tobytes())
    stored = _stored(tables)
    shifts = np.zeros(stored.shape, np.int8)
    shifts[stored] = reader.take(int(stored.sum())).view(np.int8)
    reader.finish()
    return Codebook(tables, jnp.asarray(shifts, jnp.int8), num_states)
