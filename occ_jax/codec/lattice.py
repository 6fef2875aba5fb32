"""The codec of entropy-coded indices: levels, lanes of rANS words and a shared codebook, scalar or along a trellis."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from occ_jax.codec.axes import Axis, write_axes
from occ_jax.codec.errors import damaged
from occ_jax.codec.lane_coding import Indices, encode_lanes
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
from occ_jax.entropy.streams import Streams, unpack
from occ_jax.entropy.varint import ByteReader
from occ_jax.quantization.codebook import REACH, SHIFTS_PER_STEP, Codebook
from occ_jax.quantization.trellis_coding import rows_per_lane
from occ_jax.quantization.ungerboeck import next_states

SECTIONS = ("levels", "transforms", "lanes", "indices", "padding")
"""Sections of this codec, in file order."""

LATTICES = {"lattice": SECTIONS, "offset_lattice": ("offset", *SECTIONS)}
"""Names of this codec, without and with an offset in every column, and the sections of each."""

MAX_LANE_STEPS = 1 << 26
"""Most symbols that one lane may hold."""

MAX_CLASSES = 256
"""Most scale classes of a codebook."""

_BLOCK = 1 << 17


def encode_lattice(
    q: Int[np.ndarray, "..."] | Int[Array, "..."],
    levels: Levels,
    codebook: Codebook,
    *,
    left: Axis = None,
    right: Axis = None,
    offset: Float[np.ndarray, " cols"] | None = None,
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
        left, right: transforms that the indices' coordinates came from, stored and undone by the decoder; what several
            tensors or files store may be coded before (:func:`~occ_jax.codec.spec.code_transform`). For exact
            agreement choose the coordinates with :func:`~occ_jax.codec.spec.stored_transform` of these.
        offset: what the decoder adds to the coefficients of every column, stored in float16: choose it with
            :func:`stored_offset`, and quantize what is left.
        matrix_bits: resolution of stored matrices.
        lane_symbols: symbols of a lane, about; more make the file smaller and give the decoder less to do at a time.

    Raises:
        ValueError: levels or an offset of another shape, or a row that is no path of the trellis.

    Example:
        >>> from occ_jax.codec import decode_indices, scalar_codebook
        >>> q = np.array([[0, 1, -1], [2, 0, 0]], np.int32)
        >>> coded = encode_lattice(q, Levels.constant(0.1, (2, 3)), scalar_codebook(q))
        >>> decode_indices([coded])[0].tolist()
        [[0, 1, -1], [2, 0, 0]]

    References:
        Duda, Asymmetric numeral systems, 2013, arXiv:1311.2540; Marcellin, On entropy-constrained trellis coded
        quantization, IEEE Trans. Communications, 1994.
    """
    matrix = Lattice(q, levels, left, right, offset)
    return encode_lattices([matrix], codebook, matrix_bits=matrix_bits, lane_symbols=lane_symbols)[0]


class Lattice(NamedTuple):
    """A matrix to code: arguments of :func:`encode_lattice`."""

    q: Int[np.ndarray, "..."] | Int[Array, "..."]
    levels: Levels
    left: Axis = None
    right: Axis = None
    offset: Float[np.ndarray, " cols"] | None = None


def stored_offset(offset: Float[np.ndarray, " cols"]) -> Float32[np.ndarray, " cols"]:
    """An offset as a decoder has it.

    Example:
        >>> print(stored_offset(np.array([0.1, 2.0], np.float32)))
        [0.09997559 2.        ]
    """
    with np.errstate(over="ignore"):  # too large a number becomes infinite, and is refused
        return np.asarray(offset, np.float32).astype("<f2").astype(np.float32)


def encode_lattices(
    matrices: Sequence[Lattice],
    codebook: Codebook,
    *,
    matrix_bits: int = DEFAULT_MATRIX_BITS,
    lane_symbols: int = 1 << 14,
) -> list[CodedTensor]:
    """:func:`encode_lattice` of several matrices with one codebook: the same bytes, in fewer and wider calls.

    Raises:
        ValueError: as :func:`encode_lattice`.
    """
    checked = [_checked(matrix, codebook, lane_symbols) for matrix in matrices]
    coded = []
    for matrix, indices, streams in zip(matrices, checked, encode_lanes(checked, codebook), strict=True):
        head, body = _split_pack(streams, indices.lanes.count)
        fields, side_info = write_axes(matrix.left, matrix.right, matrix_bits)
        sections = {} if matrix.offset is None else {"offset": stored_offset(matrix.offset).astype("<f2").tobytes()}
        sections |= {"levels": matrix.levels.to_bytes() if indices.q.size else b"", "transforms": side_info}
        sections |= {"lanes": head, "indices": body}
        sections["padding"] = _padding(indices.q.size, sections)
        spec = {
            "codec": "lattice" if matrix.offset is None else "offset_lattice",
            "rows_per_lane": indices.lanes.rows_per_lane,
            **_levels_fields(matrix.levels),
            **fields,
        }
        coded.append(CodedTensor(spec=spec, shape=tuple(matrix.q.shape), sections=sections, codebook=codebook))
    return coded


def _checked(matrix: Lattice, codebook: Codebook, lane_symbols: int) -> Indices:
    rows, cols = matrix_shape(tuple(matrix.q.shape))
    q, levels = np.asarray(matrix.q).astype(np.int32).reshape(rows, cols), matrix.levels
    if levels.shape != (rows, cols):
        raise ValueError(f"levels are for a matrix {levels.shape}, the indices form one of {(rows, cols)}")
    offset = np.zeros(cols) if matrix.offset is None else stored_offset(matrix.offset)
    if offset.shape != (cols,) or not np.isfinite(offset).all():
        raise ValueError(f"an offset is one float16 number for each of the {cols} columns")
    if codebook.num_classes > MAX_CLASSES:
        raise ValueError(f"the codebook has {codebook.num_classes} classes, a file at most {MAX_CLASSES}")
    if cols > MAX_LANE_STEPS:
        raise ValueError(f"rows of {cols} indices are longer than {MAX_LANE_STEPS}: reshape the tensor")
    levels.steps()
    if not _is_path(q, codebook.num_states):
        raise ValueError(f"the indices are not paths of the {codebook.num_states}-state trellis of the codebook")
    num_lanes = max(1, -(-rows // rows_per_lane(cols, lane_symbols)))
    lanes = Lanes(rows=rows, cols=cols, rows_per_lane=max(1, -(-rows // num_lanes)))  # as even as possible
    return Indices(q=q, levels=levels, lanes=lanes)


def with_row_factors(
    coded: CodedTensor, factors: Float[np.ndarray, " rows"], *, row_resolution: int = 32
) -> CodedTensor:
    """The same indices with every row's step multiplied: what fine-tuning the rows' scales costs is a finer level each.

    Args:
        coded: a lattice tensor.
        factors: positive, near 1.
        row_resolution: levels per octave of the new row steps; the factors are rounded to them.
    """
    levels = read_levels_of(coded).with_row_factors(factors, row_resolution)
    levels.steps()
    sections = {**coded.sections, "levels": levels.to_bytes(), "padding": b""}
    sections["padding"] = _padding(math.prod(coded.shape), sections)
    return dataclasses.replace(coded, spec={**coded.spec, **_levels_fields(levels)}, sections=sections)


def _padding(num_elements: int, sections: Mapping[str, bytes]) -> bytes:
    """Zeros, so that a file has a byte for so many elements at least."""
    return bytes(max(-(-num_elements // MAX_ELEMENTS_PER_BYTE) - sum(map(len, sections.values())), 0))


def _levels_fields(levels: Levels) -> dict[str, int]:
    fields = {"resolution": levels.resolution, "class_shift": levels.class_shift}
    return fields | ({"row_resolution": levels.row_resolution} if levels.row_resolution else {})


def _is_path(q: Int32[np.ndarray, "rows cols"], num_states: int) -> bool:
    """Whether every row is a path: on the host, where a new shape costs nothing."""
    if num_states == 1:
        return True
    following = next_states(num_states).astype(np.int16).ravel()
    state, wrong = np.zeros(len(q), np.int16), np.zeros(len(q), np.int16)
    for column in np.ascontiguousarray((q & 3).T.astype(np.int16)):
        wrong |= column ^ state
        state = following.take(2 * state + (column >> 1))
    return not (wrong & 1).any()


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
    if "row_resolution" in spec:
        integer_field(spec, "row_resolution", 1, 64, place)
    integer_field(spec, "class_shift", 0, 8, place)
    rows, cols = matrix_shape(shape)
    if "offset" in sizes:
        check_size(sizes, "offset", 2 * cols, place)
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
    if require_codebook(coded).num_classes > MAX_CLASSES:
        raise damaged(coded.place, f"its codebook has more than {MAX_CLASSES} classes")
    if not lanes.count:
        return Levels.constant(1.0, (0, 0)), lanes, unpack(b"", lanes.lengths())
    if any(sections["padding"]):
        raise damaged(coded.place, "padding is not zero")
    try:
        levels = read_levels_of(coded)
        levels.steps()
        streams = unpack(sections["lanes"] + sections["indices"], lanes.lengths())
    except ValueError as error:
        raise damaged(coded.place, error) from error
    return levels, lanes, streams


def read_levels_of(coded: CodedTensor) -> Levels:
    """The levels of a checked lattice tensor.

    Raises:
        ValueError: the section does not hold them.
    """
    names = ("resolution", "class_shift", "row_resolution")
    fields = {name: coded.spec[name] for name in names if name in coded.spec}
    return Levels.from_bytes(coded.sections["levels"], matrix_shape(coded.shape), **fields)


def read_offset(coded: CodedTensor) -> Float32[np.ndarray, " cols"] | None:
    """What is to be added to the coefficients of every column of a checked lattice tensor.

    Raises:
        FormatError: it is not finite.
    """
    if (data := coded.sections.get("offset")) is None:
        return None
    offset = np.frombuffer(data, "<f2").astype(np.float32)
    if not np.isfinite(offset).all():
        raise damaged(coded.place, "its offset is not finite")
    return offset


def dequantize_lattice(
    q: Int32[np.ndarray, "rows cols"], levels: Levels, codebook: Codebook
) -> Float32[np.ndarray, "rows cols"]:
    """Coefficients of the indices, before any inverse transform.

    On the host, by float32 products whose order is fixed: the same bits on every machine.
    """
    row_steps, col_steps = levels.steps()
    shifts = np.asarray(codebook.shifts, np.float32) / SHIFTS_PER_STEP
    shifts = np.pad(shifts, ((0, 0), (1, 1))).ravel()  # zero for all symbols beyond those with a shift of their own
    width, parities = 2 * REACH + 3, codebook.num_parities
    y = np.empty(q.shape, np.float32)
    block = max(1, _BLOCK // max(q.shape[1], 1))
    for first in range(0, len(q), block):
        rows = slice(first, first + block)
        symbol = q[rows] >> (parities - 1)
        where = np.clip(symbol, -REACH - 1, REACH + 1, out=symbol)
        where += (q[rows] & (parities - 1)) * width + REACH + 1
        if codebook.num_classes > 1:
            where += levels.classes(codebook.num_classes, rows) * np.int32(parities * width)
        np.add(q[rows], shifts[where], out=y[rows], dtype=np.float32, casting="unsafe")
        y[rows] *= col_steps[None, :]
        y[rows] *= row_steps[rows, None]
    return y
