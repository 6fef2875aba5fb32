"""The codec of integers with shared scales: packed INT2 to INT8 groups, as the formats that others use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, Integer, UInt8

from occ_jax.codec.axes import Axis, write_axes
from occ_jax.codec.errors import damaged
from occ_jax.codec.spec import DEFAULT_MATRIX_BITS
from occ_jax.codec.tensor import MAX_DIM, CodedTensor, check_size, integer_field, matrix_shape, shorten
from occ_jax.quantization.affine import Affine

SECTIONS = ("scales", "zero_points", "transforms", "indices")
"""Sections of this codec, in file order."""


def pack_bits(values: Integer[np.ndarray, " n"], width: int) -> bytes:
    """Integers of ``[0, 2**width)``, one after the other from the least significant bit of the first byte on.

    Example:
        >>> pack_bits(np.array([1, 2, 3]), 4).hex(" ")
        '21 03'
    """
    values = np.asarray(values, np.uint64)
    # Eight values of any width fill a whole number of bytes, and at most one 64-bit word.
    octets = np.pad(values, (0, -values.size % 8)).reshape(-1, 8)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(width)
    words = np.bitwise_or.reduce(octets << shifts, axis=1)
    packed = words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
    return packed.tobytes()[: (values.size * width + 7) // 8]


def unpack_bits(data: bytes, count: int, width: int) -> UInt8[np.ndarray, " count"]:
    """Inverse of :func:`pack_bits` for widths up to 8."""
    octets = (count + 7) // 8
    words = np.zeros((octets, 8), np.uint8)
    words[:, :width] = np.frombuffer(data.ljust(octets * width, b"\0"), np.uint8).reshape(octets, width)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(width)
    values = (words.view("<u8") >> shifts) & np.uint64((1 << width) - 1)
    return values.astype(np.uint8).reshape(-1)[:count]


def encode_affine(
    q: Int[np.ndarray, "..."],
    quantizer: Affine,
    *,
    left: Axis = None,
    right: Axis = None,
    matrix_bits: int = DEFAULT_MATRIX_BITS,
) -> CodedTensor:
    """Pack the indices of an affine quantizer with its scales and zero points.

    Args:
        q: indices that ``quantizer.quantize`` gave.
        quantizer: the quantizer.
        left, right: transforms that the indices' coordinates came from, stored and undone by the decoder; what several
            tensors or files store may be coded before (:func:`~occ_jax.codec.spec.code_transform`).
        matrix_bits: resolution of stored matrices.

    Raises:
        ValueError: an index is out of range, or the scales are not those of a tensor of this shape.

    Example:
        >>> import jax.numpy as jnp
        >>> quantizer = Affine(jnp.array([0.5], jnp.float16), None, bits=2, group_size=4)
        >>> coded = encode_affine(np.array([-2, 0, 1, 1]), quantizer)
        >>> {name: len(section) for name, section in coded.sections.items()}
        {'scales': 2, 'zero_points': 0, 'transforms': 0, 'indices': 1}
    """
    q = np.asarray(q)
    rows, cols = matrix_shape(q.shape)
    lowest, highest = quantizer.index_range
    if q.size and (q.min() < lowest or q.max() > highest):
        raise ValueError(
            f"indices {q.min()} to {q.max()} leave the range {lowest} to {highest} of {quantizer.bits} bits"
        )
    scale = np.asarray(quantizer.scale)
    groups = -(-cols // quantizer.group_size)
    if scale.shape[-1:] != (groups,) or scale.size not in (groups, rows * groups):
        raise ValueError(f"scales {scale.shape} do not fit indices {q.shape} in groups of {quantizer.group_size}")
    zero = b"" if quantizer.zero_point is None else pack_bits(np.asarray(quantizer.zero_point).ravel(), quantizer.bits)
    fields, side_info = write_axes(left, right, matrix_bits)
    spec = {
        "codec": "affine",
        "bits": quantizer.bits,
        "group_size": quantizer.group_size,
        "symmetric": quantizer.zero_point is None,
        "shared": scale.size != rows * groups,
        **fields,
    }
    sections = {
        "scales": scale.astype("<f2").tobytes(),
        "zero_points": zero,
        "transforms": side_info,
        "indices": pack_bits(q.ravel() - lowest, quantizer.bits),
    }
    return CodedTensor(spec=spec, shape=tuple(q.shape), sections=sections)


def check_affine(spec: Mapping[str, Any], shape: tuple[int, ...], sizes: Mapping[str, int], place: str) -> None:
    """Refuse an affine tensor whose spec, shape and sections contradict each other."""
    bits = integer_field(spec, "bits", 2, 8, place)
    integer_field(spec, "group_size", 1, MAX_DIM, place)
    for name in ("symmetric", "shared"):
        if type(spec.get(name)) is not bool:
            raise damaged(place, f"the spec says {name} = {shorten(spec.get(name))}, expected true or false")
    rows, cols = matrix_shape(shape)
    scales = _num_scale_rows(spec, rows) * -(-cols // spec["group_size"])
    check_size(sizes, "scales", 2 * scales, place)
    check_size(sizes, "zero_points", 0 if spec["symmetric"] else (scales * bits + 7) // 8, place)
    check_size(sizes, "indices", (rows * cols * bits + 7) // 8, place)


def _num_scale_rows(spec: Mapping[str, Any], rows: int) -> int:
    return 1 if spec["shared"] else rows


def decode_affine_indices(coded: CodedTensor) -> Int32[np.ndarray, "..."]:
    """The indices, as ``quantizer.quantize`` gave them."""
    bits = coded.spec["bits"]
    q = unpack_bits(coded.sections["indices"], coded.num_elements, bits).astype(np.int32)
    lowest = -(1 << bits) // 2 if coded.spec["symmetric"] else 0
    return (q + lowest).reshape(coded.shape)


def dequantize_affine(coded: CodedTensor, q: Int32[np.ndarray, "..."]) -> Float32[np.ndarray, "rows cols"]:
    """``scale * (q - zero_point)`` as a matrix, before any inverse transform.

    Raises:
        FormatError: a scale is not a positive number.
    """
    spec = coded.spec
    rows, cols = matrix_shape(coded.shape)
    scale_rows, groups = _num_scale_rows(spec, rows), -(-cols // spec["group_size"])
    scale = np.frombuffer(coded.sections["scales"], "<f2").astype(np.float32).reshape(scale_rows, groups)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise damaged(coded.place, "a scale is not a positive number")
    zero = np.zeros((scale_rows, groups), np.int32)
    if not spec["symmetric"]:
        zero = unpack_bits(coded.sections["zero_points"], scale.size, spec["bits"]).astype(np.int32).reshape(zero.shape)
    group = np.arange(cols) // spec["group_size"]
    return scale[:, group] * (q.reshape(rows, cols) - zero[:, group]).astype(np.float32)
