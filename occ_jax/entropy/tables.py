r"""Integer frequency tables: the probabilities that go into a file, with an escape for any other value.

An entropy coder and its decoder must agree on every probability to the last bit, so probabilities are
integers over a power of two and the integers themselves are stored; nothing is recomputed from floats.
"""

import heapq

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Int32, Integer, UInt32

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.entropy.empirical import value_counts
from occ_jax.entropy.varint import ByteReader, unzigzag, write_varints, zigzag

MAX_PRECISION = 16
"""A 32-bit rANS state with 16-bit words leaves at most 16 bits for a frequency."""

MAX_TABLE_ENTRIES = 1 << 22
"""Largest number of frequencies that serialised tables may unfold to."""

ESCAPE_BITS = 16.0
"""What :func:`cost_bits` charges for the value behind an escape symbol: two bytes, its typical length."""


@pytree_dataclass
class FreqTable:
    r"""Frequencies of consecutive integers, summing to ``2**precision``; the last one belongs to the escape.

    Symbol ``s`` stands for the value ``offset + s`` and has probability

    .. math::

        P(s) = \mathrm{freq}_s / 2^\mathrm{precision}

    except the last symbol, the **escape**: it announces a value that the table does not hold, written elsewhere.
    Any int32 can therefore be coded with any table. A frequency of zero says that the value is not in the
    table either. A stack of tables is the same object with leading axes (see :func:`~occ_jax.entropy.stacks.stack`).

    Attributes:
        freq: frequencies, the escape's last and at least 1.
        offset: the value of symbol 0.
        precision: base-2 logarithm of the sum of the frequencies, 1 to 16.

    Example:
        >>> table = FreqTable(jnp.array([4, 10, 1, 1], jnp.uint32), jnp.array(-1, jnp.int32), precision=4)
        >>> table.num_symbols
        4
    """

    freq: UInt32[Array, "*tables symbols"]
    offset: Int32[Array, "*tables"]
    precision: int = static_field(default=12)

    def __post_init__(self):
        _check_precision(self.precision)
        if self.freq.shape[:-1] != self.offset.shape:
            raise ValueError(f"frequencies {self.freq.shape} and offsets {self.offset.shape} are not of one stack")
        if isinstance(self.freq, Tracer):
            return
        freq = np.asarray(self.freq, np.uint64)
        if freq.shape[-1] < 1 or not (freq.sum(-1) == 1 << self.precision).all() or not (freq[..., -1] > 0).all():
            raise ValueError(
                f"frequencies must sum to 2**{self.precision} with an escape of at least 1, "
                f"got sums {np.unique(freq.sum(-1))[:4]}; build tables with from_counts"
            )

    @property
    def num_symbols(self) -> int:
        """Symbols of each table, the escape included."""
        return self.freq.shape[-1]


def _check_precision(precision: int) -> None:
    if not 1 <= precision <= MAX_PRECISION:
        raise ValueError(f"precision must be 1 to {MAX_PRECISION} bits, got {precision}")


def normalize_counts(counts: Integer[np.ndarray, " n"], total: int) -> Integer[np.ndarray, " n"]:
    r"""Integer frequencies that sum to ``total``, are at least 1, and give (nearly) the shortest code for ``counts``.

    The code length :math:`-\sum_s c_s \log_2 f_s` is separable and convex, so handing out units of frequency one by
    one to the largest gain :math:`c_s \log\frac{f_s + 1}{f_s}` is optimal. With
    :math:`\log\frac{f+1}{f} \approx \frac{2}{2f + 1}` the comparison is one of integers (the Sainte-Laguë divisor
    rule), so the result is the same on every machine.

    Args:
        counts: occurrences of each symbol, not negative; zero still gets a frequency of 1.
        total: sum of the frequencies.

    Raises:
        ValueError: there are more symbols than units.

    Example:
        >>> normalize_counts(np.array([90, 9, 1, 0]), 16)
        array([13,  1,  1,  1])

    References:
        Moffat & Turpin, Compression and Coding Algorithms, 2002, section 6 (approximating probabilities).
    """
    counts = np.asarray(counts, np.int64)
    if counts.size > total or counts.size == 0 or counts.min() < 0:
        raise ValueError(f"{counts.size} symbols need counts >= 0 and at most {total} symbols: raise the precision")
    weights = [int(c) for c in counts]
    mass = max(sum(weights), 1)
    freq = [max(1, c * total // mass) for c in weights]
    # Heaps of (price, symbol): prices are exact fractions scaled to integers by a common power of two.
    scale = 1 << 64
    gain = [(-(scale * c // (2 * f + 1)), s) for s, (c, f) in enumerate(zip(weights, freq))]
    heapq.heapify(gain)
    missing = total - sum(freq)
    while missing > 0:
        _, s = heapq.heappop(gain)
        freq[s] += 1
        missing -= 1
        heapq.heappush(gain, (-(scale * weights[s] // (2 * freq[s] + 1)), s))
    loss = [(scale * c // (2 * f - 1), s) for s, (c, f) in enumerate(zip(weights, freq)) if f > 1]
    heapq.heapify(loss)
    while missing < 0:
        _, s = heapq.heappop(loss)
        freq[s] -= 1
        missing += 1
        if freq[s] > 1:
            heapq.heappush(loss, (scale * weights[s] // (2 * freq[s] - 1), s))
    return np.asarray(freq, np.int64)


def from_counts(
    counts: Integer[np.ndarray, " values"], offset: int, precision: int = 12, *, escape_count: int = 0
) -> FreqTable:
    """Table of the values ``offset, offset + 1, ...`` from how often each occurs, and an escape for all others.

    Args:
        counts: occurrences, not negative; may be empty (then every value is an escape).
        offset: the value of the first count.
        precision: bits of the frequencies.
        escape_count: occurrences of other values.

    Example:
        >>> from_counts(np.array([1, 2, 1]), offset=-1, precision=4).freq
        Array([4, 7, 4, 1], dtype=uint32)
    """
    _check_precision(precision)
    freq = normalize_counts(np.append(np.asarray(counts, np.int64), escape_count), 1 << precision)
    # Converted on the host: JAX would compile a conversion for every length.
    return FreqTable(jnp.asarray(freq.astype(np.uint32)), jnp.asarray(offset, jnp.int32), precision)


def from_samples(
    q: Integer[np.ndarray, "..."] | Int[Array, "..."], precision: int = 12, *, max_symbols: int = 256
) -> FreqTable:
    r"""Table of the values seen in ``q``, its far tails left to the escape.

    The range starts as that of the data and loses its outermost value while that makes the code shorter: keeping a
    value of count `c` costs every other symbol together :math:`N \log_2 e / 2^\mathrm{precision}` bits and saves
    about ``precision + ESCAPE_BITS - log2(c)`` bits ``c`` times.

    Args:
        q: indices, any shape.
        precision: bits of the frequencies.
        max_symbols: most symbols the table may have, the escape included.

    Example:
        >>> table = from_samples(np.array([0, 0, 1, -1, 0, 2_000_000_000]), precision=8)
        >>> int(table.offset), table.num_symbols
        (-1, 4)
    """
    _check_precision(precision)
    values, counts = value_counts(q)
    room = min(max_symbols, 1 << precision) - 1
    price = counts.sum() * np.log2(np.e) / 2**precision
    gaps = np.maximum(np.diff(values, prepend=values[:1]), 1)  # symbols that the low side's next value is away
    lo, hi = 0, values.size  # values[lo:hi] stay
    while lo < hi:
        low, high = counts[lo] / gaps[min(lo + 1, hi - 1)], counts[hi - 1] / gaps[hi - 1]
        if values[hi - 1] - values[lo] < room and min(low, high) * ESCAPE_BITS >= price:
            break
        lo, hi = (lo + 1, hi) if low < high else (lo, hi - 1)
    if lo == hi:
        return from_counts(np.zeros(0, np.int64), 0, precision)
    dense = np.zeros(values[hi - 1] - values[lo] + 1, np.int64)
    dense[values[lo:hi] - values[lo]] = counts[lo:hi]
    return from_counts(dense, int(values[lo]), precision, escape_count=int(counts.sum() - dense.sum()))


def cost_bits(table: FreqTable) -> Float[Array, "*tables symbols"]:
    r"""Ideal code length of every symbol, in bits: :math:`\mathrm{precision} - \log_2 \mathrm{freq}_s`.

    A value that is not in the table (frequency zero) costs what the escape costs: its symbol plus
    :data:`ESCAPE_BITS`. So all costs are finite and a rate-distortion search may use them as they are.

    Example:
        >>> cost_bits(from_counts(np.array([7, 8]), 0, precision=4))
        Array([ 1.1926451,  1.       , 20.       ], dtype=float32)
    """
    freq = jnp.asarray(table.freq)
    bits = table.precision - jnp.log2(jnp.maximum(freq, 1).astype(jnp.float32))
    escape = bits[..., -1:] + ESCAPE_BITS
    bits = jnp.where(freq == 0, escape, bits)
    return jnp.concatenate([bits[..., :-1], escape], axis=-1)


def as_stack(tables: FreqTable) -> FreqTable:
    """The same tables with exactly one leading axis."""
    if tables.freq.ndim == 2:
        return tables
    return FreqTable(tables.freq.reshape(-1, tables.num_symbols), tables.offset.reshape(-1), tables.precision)


def to_bytes(table: FreqTable) -> bytes:
    """Serialise a table or a stack of tables.

    The precision (one byte) and the number of tables, then for each table its offset (zigzag), its number of
    values and their frequencies, all LEB128 varints. The escape's frequency is what the others leave.

    Example:
        >>> to_bytes(from_counts(np.array([1, 2, 1]), offset=-1, precision=4)).hex(" ")
        '04 01 01 03 04 07 04'
    """
    tables = as_stack(table)
    freq, offset = np.asarray(tables.freq), np.asarray(tables.offset)
    numbers = [np.array([len(freq)])]
    for row, first in zip(freq[:, :-1], zigzag(offset)):
        used = np.flatnonzero(row)
        row = row[: used[-1] + 1] if used.size else row[:0]
        numbers += [np.array([first, row.size]), row]
    return bytes([tables.precision]) + write_varints(np.concatenate(numbers).astype(np.int64))


def from_bytes(data: bytes) -> FreqTable:
    """Read what :func:`to_bytes` wrote; always a stack.

    Raises:
        ValueError: the bytes are not exactly one serialised stack of tables.
    """
    reader = ByteReader(data, "frequency tables")
    precision = int(reader.take(1)[0])
    _check_precision(precision)
    num_tables = reader.varint()
    if not 1 <= num_tables <= reader.remaining // 2 or num_tables << precision > 4 * MAX_TABLE_ENTRIES:
        raise reader.fail(f"{num_tables} tables are announced in {reader.remaining} bytes")
    numbers, position = reader.varints_to_end(), 0
    signed = unzigzag(numbers)
    reader.finish()
    tables = []
    width = 1
    for _ in range(num_tables):
        if position + 2 > numbers.size:
            raise reader.fail(f"{num_tables} tables are announced and {len(tables)} are there")
        offset, num_values = int(signed[position]), int(numbers[position + 1])
        width = max(width, num_values + 1)
        if num_tables * width > MAX_TABLE_ENTRIES:
            raise reader.fail(f"{num_tables} tables of {num_values} values are too many")
        freq = numbers[position + 2 : position + 2 + num_values]
        position += 2 + num_values
        if freq.size < num_values:
            raise reader.fail(f"{num_values} values are announced and {freq.size} are left")
        escape = (1 << precision) - int(freq.sum())
        if escape < 1:
            raise reader.fail(f"frequencies sum to {freq.sum()}, at least 2**{precision}")
        tables.append((np.append(freq, escape).astype(np.uint32), offset))
    if position < numbers.size:
        raise reader.fail(f"{numbers.size - position} numbers are left over")
    freq = np.zeros((num_tables, width), np.uint32)
    for row, (values, _) in zip(freq, tables):
        row[: values.size - 1], row[-1] = values[:-1], values[-1]
    offset = np.array([first for _, first in tables], np.int32)
    return FreqTable(jnp.asarray(freq), jnp.asarray(offset), precision)
