"""The codec of entropy-coded indices: levels, lanes of rANS words and a shared codebook, scalar or along a trellis."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, UInt8

from occ_jax._pytree import replace
from occ_jax.codec.axes import write_axes
from occ_jax.codec.buckets import bucket
from occ_jax.codec.errors import damaged
from occ_jax.codec.lanes import Lanes
from occ_jax.codec.levels import Levels
from occ_jax.codec.spec import DEFAULT_MATRIX_BITS
from occ_jax.codec.tensor import (
    MAX_ELEMENTS_PER_BYTE,
    CodedTensor,
    check_size,
    integer_field,
    matrix_shape,
    require_codebook,
    shorten,
)
from occ_jax.entropy.rans import encode
from occ_jax.entropy.streams import Streams, compact, concatenate, pack, unpack
from occ_jax.entropy.tables import FreqTable
from occ_jax.entropy.varint import ByteReader
from occ_jax.quantization.codebook import Codebook, reconstruct
from occ_jax.quantization.trellis_coding import is_path, rows_per_lane
from occ_jax.transforms import Transform

SECTIONS = ("levels", "transforms", "lanes", "indices", "padding")
"""Sections of this codec, in file order."""

MAX_LANE_STEPS = 1 << 26
"""Most symbols that one lane may hold."""

_ENCODE_SYMBOLS = 1 << 23
_FIRST_ESCAPES = 1 << 12


def encode_lattice(
    q: Int[np.ndarray, "..."] | Int[Array, "..."],
    levels: Levels,
    codebook: Codebook,
    *,
    left: Transform | None = None,
    right: Transform | None = None,
    matrix_bits: int = DEFAULT_MATRIX_BITS,
    lane_symbols: int = 1 << 14,
) -> CodedTensor:
    r"""Code a matrix of indices losslessly with the tables of a codebook.

    The decoder rebuilds the coefficient of index :math:`q_{ij}` as :math:`\hat t(q_{ij}) \Delta_{ij}`, with the
    reconstruction point :math:`\hat t` of the codebook and the step of the levels. With more than one state every row
    must be a path of the codebook's trellis that starts in state 0.

    Args:
        q: indices; all axes but the last are taken together as rows.
        levels: steps and scale classes of that matrix.
        codebook: tables and reconstruction points.
        left, right: transforms that the indices' coordinates came from, stored and undone by the decoder. For exact
            agreement choose the coordinates with :func:`~occ_jax.codec.spec.stored_transform` of them.
        matrix_bits: resolution of stored matrices.
        lane_symbols: symbols of a lane, about; more make the file smaller and give the decoder less to do at a time.

    Raises:
        ValueError: levels of another shape, or a row that is no path of the trellis.
    """
    shape = tuple(q.shape)
    rows, cols = matrix_shape(shape)
    q = np.asarray(q).astype(np.int32).reshape(rows, cols)
    if levels.shape != (rows, cols):
        raise ValueError(f"levels are for a matrix {levels.shape}, the indices form one of {(rows, cols)}")
    if cols > MAX_LANE_STEPS:
        raise ValueError(f"rows of {cols} indices are longer than {MAX_LANE_STEPS}: reshape the tensor")
    levels.steps()
    if q.size and not is_path(jnp.asarray(q), codebook.num_states):
        raise ValueError(f"the indices are not paths of the {codebook.num_states}-state trellis of the codebook")
    num_lanes = max(1, -(-rows // rows_per_lane(cols, lane_symbols)))
    lanes = Lanes(rows=rows, cols=cols, rows_per_lane=max(1, -(-rows // num_lanes)))  # as even as possible
    head, body = _split_pack(pack(_encode_lanes(q, levels, codebook, lanes)), lanes.count)
    fields, side_info = write_axes(left, right, matrix_bits)
    sections = {"levels": levels.to_bytes() if q.size else b"", "transforms": side_info}
    sections |= {"lanes": head, "indices": body}
    missing = -(-q.size // MAX_ELEMENTS_PER_BYTE) - sum(map(len, sections.values()))
    sections["padding"] = bytes(max(missing, 0))
    spec = {
        "codec": "lattice",
        "rows_per_lane": lanes.rows_per_lane,
        "resolution": levels.resolution,
        "class_shift": levels.class_shift,
        **fields,
    }
    return CodedTensor(spec=spec, shape=shape, sections=sections, codebook=codebook)


def _encode_lanes(q: Int32[np.ndarray, "rows cols"], levels: Levels, codebook: Codebook, lanes: Lanes) -> Streams:
    """Encode a few lanes at a time, so that the encoder's arrays stay small."""
    num_classes, num_states = codebook.num_classes, codebook.num_states
    per_call = max(1, _ENCODE_SYMBOLS // max(lanes.steps, 1))
    lengths, parts = lanes.lengths(), []
    for first in range(0, lanes.count, per_call):
        last = min(first + per_call, lanes.count)
        rows = slice(first * lanes.rows_per_lane, last * lanes.rows_per_lane)
        part = q[rows]
        classes = levels.classes(num_classes, rows).astype(np.int32)
        contexts = classes if num_states == 1 else 2 * classes + (part & 1)
        symbols = part if num_states == 1 else part >> 1
        fill = ((0, bucket(last - first) - (last - first)), (0, 0))
        symbols = np.pad(lanes.split(symbols, 0, last - first), fill)
        contexts = np.pad(lanes.split(contexts, 0, last - first), fill)
        length = np.pad(lengths[first:last], fill[0])
        streams = _encode_with_room(symbols, codebook.tables, contexts, length)
        parts.append(_first_lanes(streams, last - first))
    return parts[0] if len(parts) == 1 else concatenate(parts)


def _encode_with_room(symbols: np.ndarray, tables: FreqTable, contexts: np.ndarray, lengths: np.ndarray) -> Streams:
    def attempt(room: int) -> Streams:
        return encode(jnp.asarray(symbols), tables, jnp.asarray(contexts), jnp.asarray(lengths), max_escapes=room)

    streams = attempt(_FIRST_ESCAPES)
    needed = int(np.asarray(streams.escape_counts, np.int64).sum())
    return streams if needed <= _FIRST_ESCAPES else attempt(1 << (needed - 1).bit_length())


def _first_lanes(streams: Streams, count: int) -> Streams:
    """Drop the lanes that only fill a bucket; they hold nothing."""
    names = ("starts", "counts", "states", "lengths", "escape_starts", "escape_counts")
    return compact(replace(streams, **{name: getattr(streams, name)[:count] for name in names}))


def _split_pack(data: bytes, num_lanes: int) -> tuple[bytes, bytes]:
    """What lanes cost (their word counts and states), and the words and escapes themselves."""
    if not num_lanes:
        return b"", b""
    reader = ByteReader(data, "coded streams")
    reader.varints(num_lanes + 1)
    cut = len(data) - reader.remaining + 4 * num_lanes
    return data[:cut], data[cut:]


def check_lattice(spec: Mapping[str, Any], shape: tuple[int, ...], sizes: Mapping[str, int], place: str) -> None:
    """Refuse a lattice tensor that claims more than its bytes can hold, before anything is allocated."""
    rows_per_lane = integer_field(spec, "rows_per_lane", 1, MAX_LANE_STEPS, place)
    integer_field(spec, "resolution", 1, 64, place)
    integer_field(spec, "class_shift", 0, 8, place)
    rows, cols = matrix_shape(shape)
    if rows * cols == 0:
        for name in ("levels", "lanes", "indices", "padding"):
            check_size(sizes, name, 0, place)
        return
    if rows * cols > MAX_ELEMENTS_PER_BYTE * sum(sizes.values()):
        raise damaged(place, f"{shorten(rows * cols)} elements are announced in {sum(sizes.values())} bytes")
    if rows_per_lane > rows or rows_per_lane * cols > MAX_LANE_STEPS:
        raise damaged(place, f"lanes of {rows_per_lane} rows do not fit a matrix of {rows} x {cols}")


def read_lattice(coded: CodedTensor) -> tuple[Levels, Lanes, Streams]:
    """Parse a checked lattice tensor on the host, without decoding its words.

    Raises:
        FormatError: the sections are not those of such a tensor, or there is no codebook.
    """
    rows, cols = matrix_shape(coded.shape)
    spec, sections = coded.spec, coded.sections
    lanes = Lanes(rows=rows, cols=cols, rows_per_lane=spec["rows_per_lane"])
    require_codebook(coded)
    if not lanes.count:
        return Levels.constant(1.0, (0, 0)), lanes, unpack(b"", lanes.lengths())
    if any(sections["padding"]):
        raise damaged(coded.place, "padding is not zero")
    try:
        levels = Levels.from_bytes(
            sections["levels"], (rows, cols), resolution=spec["resolution"], class_shift=spec["class_shift"]
        )
        levels.steps()
        streams = unpack(sections["lanes"] + sections["indices"], lanes.lengths())
    except ValueError as error:
        raise damaged(coded.place, error) from error
    return levels, lanes, streams


def dequantize_lattice(q: Int32[np.ndarray, "rows cols"], levels: Levels, codebook: Codebook) -> Float32[Array, "r c"]:
    """Coefficients of the indices, before any inverse transform."""
    classes = None if codebook.num_classes == 1 else jnp.asarray(levels.classes(codebook.num_classes))
    rows, cols = levels.steps()
    return _dequantize(jnp.asarray(q), classes, jnp.asarray(rows), jnp.asarray(cols), codebook)


@partial(jax.jit)
def _dequantize(
    q: Int32[Array, "rows cols"],
    classes: UInt8[Array, "rows cols"] | None,
    row_steps: Float32[Array, " rows"],
    col_steps: Float32[Array, " cols"],
    codebook: Codebook,
) -> Float32[Array, "rows cols"]:
    classes = jnp.zeros(q.shape, jnp.int32) if classes is None else classes.astype(jnp.int32)
    return reconstruct(q, classes, codebook) * col_steps[None, :] * row_steps[:, None]
