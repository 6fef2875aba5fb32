r"""Canonical Huffman codes of limited length: the classical prefix code, kept as a point of comparison.

A prefix code spends whole bits on every symbol, so it loses up to one bit per symbol and cannot go below one; at two
bits of entropy a Gaussian's indices cost about 0.03 to 0.06 bit more than with rANS.
"""

import numpy as np
from jaxtyping import Int, Integer

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.entropy.empirical import value_counts

MAX_CODE_LENGTH = 24
"""Longest code that a decoder's window of bits takes in."""


def code_lengths(counts: Integer[np.ndarray, " n"], max_length: int = 16) -> Int[np.ndarray, " n"]:
    r"""Lengths of an optimal prefix code in which no code is longer than ``max_length``, by package-merge.

    Minimises :math:`\sum_s c_s \ell_s` subject to Kraft's :math:`\sum_s 2^{-\ell_s} \le 1` and
    :math:`\ell_s \le \ell_\mathrm{max}`. A symbol that does not occur gets no code (length 0); a single symbol gets
    one bit.

    Raises:
        ValueError: there are more than ``2**max_length`` symbols.

    Example:
        >>> code_lengths(np.array([8, 4, 2, 1, 0]))
        array([1, 2, 3, 3, 0])

    References:
        Larmore & Hirschberg, A fast algorithm for optimal length-limited Huffman codes, JACM 1990.
    """
    counts = np.asarray(counts, np.int64)
    used = np.flatnonzero(counts)
    if not 1 <= max_length <= MAX_CODE_LENGTH or used.size > 1 << max_length:
        raise ValueError(f"{used.size} symbols do not fit codes of {max_length} bits (at most {MAX_CODE_LENGTH})")
    lengths = np.zeros(counts.size, np.int64)
    if used.size <= 1:
        lengths[used] = 1
        return lengths
    coins = sorted((int(counts[s]), (int(s),)) for s in used)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(max_length):
        merged = sorted(coins + packages, key=lambda package: package[0])
        packages = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(merged[::2], merged[1::2])]
    for _, symbols in packages[: used.size - 1]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def canonical_codes(lengths: Integer[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Codes in increasing order of length, then of symbol: the lengths alone describe them.

    Example:
        >>> [f"{code:0{n}b}" for code, n in zip(canonical_codes(np.array([1, 2, 3, 3])), [1, 2, 3, 3])]
        ['0', '10', '110', '111']

    References:
        Schwartz & Kallick, Generating a canonical prefix encoding, CACM 1964.
    """
    lengths = np.asarray(lengths, np.int64)
    codes, code, previous = np.zeros(lengths.size, np.int64), 0, 0
    for s in np.lexsort((np.arange(lengths.size), lengths)):
        if lengths[s]:
            code <<= int(lengths[s]) - previous
            codes[s], previous = code, int(lengths[s])
            code += 1
    return codes


@pytree_dataclass
class HuffmanCode:
    """A canonical prefix code for the integers ``offset, offset + 1, ...``; length 0 marks those without a code.

    Example:
        >>> q = np.array([0, 0, 1, -1, 0, 0, 1])
        >>> code = fit_huffman(q)
        >>> code.num_bits(q), code.decode(code.encode(q), q.size)
        (10, array([ 0,  0,  1, -1,  0,  0,  1]))
    """

    lengths: Int[np.ndarray, " n"]
    offset: int = static_field()

    def __post_init__(self):
        lengths = np.asarray(self.lengths)
        kraft = (0.5 ** lengths[lengths > 0]).sum()
        if lengths.size and (lengths.min() < 0 or lengths.max() > MAX_CODE_LENGTH or kraft > 1):
            raise ValueError(f"no prefix code has these lengths (Kraft sum {kraft}, longest {lengths.max()})")

    def _symbols(self, q: Integer[np.ndarray, "..."]) -> np.ndarray:
        symbols = np.asarray(q, np.int64).reshape(-1) - self.offset
        known = (symbols >= 0) & (symbols < self.lengths.size)
        if not known.all() or not self.lengths[symbols].all():
            raise ValueError("a value has no code: fit the code on all values")
        return symbols

    def num_bits(self, q: Integer[np.ndarray, "..."]) -> int:
        """Bits that ``q`` takes."""
        return int(self.lengths[self._symbols(q)].sum())

    def encode(self, q: Integer[np.ndarray, "..."]) -> bytes:
        """Codes one after the other, most significant bit first, zeros to the next byte."""
        symbols = self._symbols(q)
        lengths, codes = self.lengths[symbols], canonical_codes(self.lengths)[symbols]
        position = np.arange(lengths.max(initial=0))
        bits = (codes[:, None] >> np.maximum(lengths[:, None] - 1 - position, 0)) & 1
        return np.packbits(bits[position < lengths[:, None]].astype(np.uint8)).tobytes()

    def decode(self, data: bytes, num_values: int) -> Int[np.ndarray, " num_values"]:
        """Inverse of :meth:`encode`.

        Raises:
            ValueError: the bits are not ``num_values`` codes.
        """
        longest = int(self.lengths.max(initial=0))
        symbol_of = np.zeros(1 << longest, np.int64)
        length_of = np.zeros(1 << longest, np.int64)
        for s, code in enumerate(canonical_codes(self.lengths)):
            if length := int(self.lengths[s]):
                window = slice(int(code) << (longest - length), (int(code) + 1) << (longest - length))
                symbol_of[window], length_of[window] = s, length
        bits = np.unpackbits(np.frombuffer(data, np.uint8)).astype(np.int64)
        padded = np.append(bits, np.zeros(longest, np.int64))
        windows = sum((padded[k : k + bits.size] << (longest - 1 - k) for k in range(longest)), np.zeros_like(bits))
        position, values, step = 0, [], length_of[windows].tolist()
        symbols = (symbol_of[windows] + self.offset).tolist()
        for _ in range(num_values):
            if position >= len(step) or not step[position]:
                raise ValueError(f"the bits hold {len(values)} codes, {num_values} are announced")
            values.append(symbols[position])
            position += step[position]
        if not position <= bits.size < position + 8:
            raise ValueError(f"{num_values} codes take {position} bits and there are {bits.size}")
        return np.array(values, np.int64)


def fit_huffman(q: Integer[np.ndarray, "..."], max_length: int = 16) -> HuffmanCode:
    """The optimal code of the values of ``q``."""
    values, counts = value_counts(q)
    if not values.size:
        return HuffmanCode(np.zeros(0, np.int64), 0)
    dense = np.zeros(int(values[-1] - values[0]) + 1, np.int64)
    dense[values - values[0]] = counts
    return HuffmanCode(code_lengths(dense, max_length), int(values[0]))
