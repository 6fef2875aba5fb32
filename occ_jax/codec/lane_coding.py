"""Indices of several matrices to packed streams, in few calls: lanes are the vector axis of the encoder."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from occ_jax.codec.buckets import lane_bucket, step_bucket, symbol_bucket
from occ_jax.codec.host import encode_on_host, is_small
from occ_jax.codec.lanes import Lanes
from occ_jax.codec.levels import Levels
from occ_jax.entropy.rans import encode
from occ_jax.entropy.stacks import widen
from occ_jax.entropy.streams import Streams, compact, concatenate, pack
from occ_jax.quantization.codebook import Codebook

ENCODE_SYMBOLS = 1 << 23
"""Symbols of one call, about: its arrays stay small."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Indices:
    """Indices of a matrix, and how they are coded.

    Attributes:
        q: the indices.
        levels: whose scale classes choose the tables.
        lanes: how rows fall into lanes.
    """

    q: Int32[np.ndarray, "rows cols"]
    levels: Levels
    lanes: Lanes

    def symbols(self, first: int, last: int, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
        """Symbols and numbers of their tables in some lanes, as arrays ``(lanes, steps)``."""
        rows = slice(first * self.lanes.rows_per_lane, last * self.lanes.rows_per_lane)
        part, classes = self.q[rows], self.levels.classes(codebook.num_classes, rows).astype(np.int32)
        scalar = codebook.num_states == 1
        contexts = classes if scalar else 2 * classes + (part & 1)
        symbols = part if scalar else part >> 1
        return self.lanes.split(symbols, 0, last - first), self.lanes.split(contexts, 0, last - first)


_Piece = tuple[int, int, int]  # number of the matrix, first lane, last lane


def encode_lanes(matrices: Sequence[Indices], codebook: Codebook) -> list[bytes]:
    """Packed streams of every matrix; what it is coded together with makes no difference to its bytes."""
    parts: list[list[Streams]] = [[] for _ in matrices]
    for group in _groups([matrix.lanes for matrix in matrices]):
        for (number, _, _), streams in zip(group, _encode_group(matrices, group, codebook), strict=True):
            parts[number].append(streams)
    return [pack(concatenate(streams)) if streams else b"" for streams in parts]


def _groups(lanes: Sequence[Lanes]) -> list[list[_Piece]]:
    """Lanes that are encoded in one call: of about one length, up to :data:`ENCODE_SYMBOLS`, each matrix's in order."""
    done: list[list[_Piece]] = []
    filling: dict[int, tuple[list[_Piece], int]] = {}  # by length: a group, and how many lanes it has
    for number, each in enumerate(lanes):
        length = step_bucket(each.steps)
        per_call = max(1, ENCODE_SYMBOLS // length)
        for first in range(0, each.count, per_call):
            last = min(first + per_call, each.count)
            group, count = filling.get(length, ([], 0))
            if group and count + last - first > per_call:
                done.append(group)
                group, count = [], 0
            filling[length] = [*group, (number, first, last)], count + last - first
    return done + [group for group, _ in filling.values()]


def _encode_group(matrices: Sequence[Indices], group: Sequence[_Piece], codebook: Codebook) -> list[Streams]:
    count = sum(last - first for _, first, last in group)
    num_steps = max(matrices[number].lanes.steps for number, _, _ in group)
    small = is_small(count, num_steps, codebook.tables)
    shape = (count, num_steps) if small else (lane_bucket(count), step_bucket(num_steps))
    symbols, contexts, lengths = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    position = 0
    for number, first, last in group:
        rows, steps = slice(position, position + last - first), matrices[number].lanes.steps
        symbols[rows, :steps], contexts[rows, :steps] = matrices[number].symbols(first, last, codebook)
        lengths[rows] = matrices[number].lanes.lengths()[first:last]
        position += last - first
    if small:
        streams = encode_on_host(symbols, codebook.tables, contexts, lengths)
    else:
        tables = widen(codebook.tables, symbol_bucket(codebook.tables.num_symbols))
        streams = encode(jnp.asarray(symbols), tables, jnp.asarray(contexts), jnp.asarray(lengths))
    ends = np.cumsum([last - first for _, first, last in group]).tolist()
    return [compact(streams, slice(end - last + first, end)) for (_, first, last), end in zip(group, ends, strict=True)]
