"""The only registry of the library: the names under which transforms and quantizers stand in a file."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from occ_jax.codec.angles import read_angles, write_angles
from occ_jax.codec.levels import read_levels, write_levels
from occ_jax.codec.matrices import read_orthogonal, write_orthogonal
from occ_jax.entropy.varint import ByteReader, write_varints
from occ_jax.quantization import Affine, DeadZone, Quantizer, Uniform
from occ_jax.transforms import (
    DCT,
    KLT,
    AlongAxis,
    BlockDiagonal,
    Blockwise,
    Butterfly,
    Chain,
    Hadamard,
    Identity,
    Inverse,
    Kronecker,
    PlaneRotation,
    RealFFT,
    Rotation,
    Scaling,
    Transform,
    block_diagonal,
    num_pairs,
)

MAX_DEPTH = 8
"""Deepest nesting of combinators."""

MAX_LINKS = 64
"""Most links of a chain, and most factors of a Kronecker product."""

MAX_BUTTERFLY = (1 << 16, 8)
"""Largest size of a butterfly and most sweeps: constant angles take no bytes, so the bytes at hand bound nothing."""

MAX_HADAMARD_SIZE = 1 << 20
"""Longest Hadamard transform: without signs it takes no bytes, so its length is bounded by itself."""

DEFAULT_MATRIX_BITS = 6
"""Bits by which a stored matrix is finer than its typical entry."""

_Writer = Callable[[Any, int], tuple[dict[str, Any], bytes]]
_Reader = Callable[[Mapping[str, Any], ByteReader, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Form:
    """How one class is written: its JSON fields with its bytes, and back."""

    kind: type
    write: _Writer
    read: _Reader


def to_spec(item: Transform | Quantizer, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> tuple[dict[str, Any], bytes]:
    """A transform or quantizer as a JSON object and side information.

    Args:
        item: what to write.
        matrix_bits: resolution of matrices (rotations, KLTs), in bits below their typical entry.

    Raises:
        ValueError: the class has no name in the format.

    Example:
        >>> to_spec(Blockwise(DCT(), 64))
        ({'name': 'blockwise', 'of': {'name': 'dct'}, 'size': 64}, b'')
    """
    for name, form in _FORMS.items():
        if type(item) is form.kind:
            fields, data = form.write(item, matrix_bits)
            return {"name": name, **fields}, data
    raise ValueError(f"{type(item).__name__} has no name in the file format: register it in occ_jax.codec.spec")


def from_spec(spec: Any, data: ByteReader, *, depth: int = 0) -> Any:
    """The transform or quantizer that :func:`to_spec` wrote; reads its side information from the front of ``data``.

    Raises:
        ValueError: a malformed or unknown spec (``UnknownName`` for a name of a newer version), or wrong bytes.

    Example:
        >>> from_spec({"name": "blockwise", "of": {"name": "dct"}, "size": 64}, ByteReader(b"", "example"))
        Blockwise(transform=DCT(), size=64)
    """
    if depth > MAX_DEPTH or not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise data.fail("a spec is not an object with a name, or nested too deeply")
    if spec["name"] not in _FORMS:
        raise UnknownName(spec["name"])
    return _FORMS[spec["name"]].read(spec, data, depth)


class CodedTransform(NamedTuple):
    """A transform as a file holds it: coded once, for all tensors and all files that store it."""

    spec: Mapping[str, Any]
    data: bytes

    def decoded(self) -> Transform:
        """What a decoder makes of it."""
        return from_spec(self.spec, ByteReader(self.data, "transform"))


def code_transform(transform: Transform, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> CodedTransform:
    """Code a transform that several tensors are to store, or one tensor several times.

    Args:
        transform: what to store.
        matrix_bits: resolution of matrices, in bits below their typical entry.

    Raises:
        ValueError: the class has no name in the format.

    Example:
        >>> coded = code_transform(Blockwise(DCT(), 64))
        >>> coded.decoded()
        Blockwise(transform=DCT(), size=64)
    """
    return CodedTransform(*to_spec(transform, matrix_bits=matrix_bits))


class UnknownName(ValueError):
    """A name that this version of the format does not have."""


def stored_transform(transform: Transform, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> Transform:
    """What a decoder will have in the place of ``transform``: choose coordinates with this one, then quantize in them.

    Only matrices change; they are rounded to ``matrix_bits`` and made orthogonal again.
    """
    return code_transform(transform, matrix_bits=matrix_bits).decoded()


def _field(spec: Mapping[str, Any], name: str, data: ByteReader, lowest: int, highest: int) -> int:
    value = spec.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise data.fail(f"{spec['name']} with {name} = {value!r:.40}, expected an integer of {lowest} to {highest}")
    return value


def _constant(kind: type) -> _Form:
    return _Form(kind=kind, write=lambda *_: ({}, b""), read=lambda *_: kind())


def _combinator(kind: type, *static: str) -> _Form:
    """Combinators of one transform with integer settings."""

    def write(item: Any, bits: int) -> tuple[dict[str, Any], bytes]:
        inner, data = to_spec(item.transform, matrix_bits=bits)
        return {"of": inner, **{name: getattr(item, name) for name in static}}, data

    def read(spec: Mapping[str, Any], data: ByteReader, depth: int) -> Any:
        lowest = {"axis": -8, "size": 1}
        values = {name: _field(spec, name, data, lowest[name], 2**31 - 1) for name in static}
        return kind(from_spec(spec.get("of"), data, depth=depth + 1), **values)

    return _Form(kind=kind, write=write, read=read)


def _write_chain(item: Chain, bits: int) -> tuple[dict[str, Any], bytes]:
    links = [to_spec(link, matrix_bits=bits) for link in item.transforms]
    return {"of": [spec for spec, _ in links]}, b"".join(data for _, data in links)


def _read_chain(spec: Mapping[str, Any], data: ByteReader, depth: int) -> Chain:
    links = spec.get("of")
    if not isinstance(links, list) or len(links) > MAX_LINKS:
        raise data.fail(f"a chain is a list of at most {MAX_LINKS} specs")
    return Chain(tuple(from_spec(link, data, depth=depth + 1) for link in links))


def _write_kronecker(item: Kronecker, bits: int) -> tuple[dict[str, Any], bytes]:
    fields, data = _write_chain(Chain(item.transforms), bits)
    if leaves_axis(fields["of"]):
        raise ValueError("a factor of a Kronecker product acts along one axis: it cannot hold along_axis")
    return {**fields, "sizes": list(item.sizes)}, data


def _read_kronecker(spec: Mapping[str, Any], data: ByteReader, depth: int) -> Kronecker:
    factors, sizes = _read_chain(spec, data, depth).transforms, spec.get("sizes")
    if not isinstance(sizes, list) or not all(type(size) is int and 1 <= size < 1 << 24 for size in sizes):
        raise data.fail("the sizes of a Kronecker product are not a list of positive integers")
    if leaves_axis(spec["of"]):
        raise data.fail("a factor of a Kronecker product reaches out of its axis")
    return Kronecker(factors, tuple(sizes))


def leaves_axis(spec: Any) -> bool:
    """Whether a spec contains ``along_axis``, which would reach out of the axis that it is for."""
    if isinstance(spec, list):
        return any(leaves_axis(part) for part in spec)
    return isinstance(spec, Mapping) and (spec.get("name") == "along_axis" or leaves_axis(spec.get("of")))


def _write_blocks(item: BlockDiagonal, bits: int) -> tuple[dict[str, Any], bytes]:
    fields, data = _write_chain(Chain(tuple(item.blocks())), bits)
    return {**fields, "size": item.size}, data


def _read_blocks(spec: Mapping[str, Any], data: ByteReader, depth: int) -> BlockDiagonal:
    return block_diagonal(list(_read_chain(spec, data, depth).transforms), _field(spec, "size", data, 1, 2**31 - 1))


def _write_planes(item: PlaneRotation, bits: int) -> tuple[dict[str, Any], bytes]:
    exponent, data = write_angles(np.asarray(item.angles), bits)
    return {"size": item.size, "exponent": exponent}, data


def _read_planes(spec: Mapping[str, Any], data: ByteReader, _: int) -> PlaneRotation:
    size, exponent = _field(spec, "size", data, 1, MAX_BUTTERFLY[0]), _field(spec, "exponent", data, 0, 14)
    return PlaneRotation(jnp.asarray(read_angles(data, size // 2, exponent)), size)


def _write_butterfly(item: Butterfly, bits: int) -> tuple[dict[str, Any], bytes]:
    sweeps = [write_angles(sweep, bits) for sweep in np.asarray(item.angles)]
    fields = {"size": item.size, "sweeps": len(sweeps), "exponent": sweeps[0][0]}
    return fields, b"".join(data for _, data in sweeps)


def _read_butterfly(spec: Mapping[str, Any], data: ByteReader, _: int) -> Butterfly:
    size, sweeps = (_field(spec, name, data, 1, most) for name, most in zip(("size", "sweeps"), MAX_BUTTERFLY))
    exponent = _field(spec, "exponent", data, 0, 14)
    angles = np.stack([read_angles(data, num_pairs(size), exponent) for _ in range(sweeps)])
    return Butterfly(jnp.asarray(angles), size)


def _write_scaling(item: Scaling, bits: int) -> tuple[dict[str, Any], bytes]:
    log2_scale, exponent = np.asarray(item.log2_scale, np.float64), min(bits, 10)
    if not np.abs(log2_scale).max(initial=0) < 1 << 14 - exponent:
        raise ValueError(f"log2 scales reach {np.abs(log2_scale).max():g}: a file holds less than {1 << 14 - exponent}")
    levels = np.rint(np.ldexp(log2_scale, exponent)).astype(np.int32)
    return {"size": levels.size, "exponent": exponent}, write_levels(levels)


def _read_scaling(spec: Mapping[str, Any], data: ByteReader, _: int) -> Scaling:
    size, exponent = _field(spec, "size", data, 1, 1 << 24), _field(spec, "exponent", data, 0, 14)
    return Scaling(jnp.asarray(np.ldexp(read_levels(data, size).astype(np.float64), -exponent), jnp.float32))


def _write_hadamard(item: Hadamard, _: int) -> tuple[dict[str, Any], bytes]:
    negative = np.asarray(item.signs) < 0
    if negative.size > MAX_HADAMARD_SIZE:
        raise ValueError(f"a Hadamard transform of size {negative.size} cannot be stored: make it blockwise")
    plain = not negative.any()
    signs = b"" if plain else np.packbits(negative, bitorder="little").tobytes()
    return {"size": negative.size, "signs": not plain}, signs


def _read_hadamard(spec: Mapping[str, Any], data: ByteReader, _: int) -> Hadamard:
    size = _field(spec, "size", data, 1, MAX_HADAMARD_SIZE)
    if not spec.get("signs"):
        return Hadamard(jnp.ones(size, jnp.int8))
    bits = np.unpackbits(data.take((size + 7) // 8), bitorder="little")[:size]
    return Hadamard(jnp.asarray(1 - 2 * bits.astype(np.int8)))


def _write_klt(item: KLT, bits: int) -> tuple[dict[str, Any], bytes]:
    fields, data = write_orthogonal(np.asarray(item.basis).T, bits)
    return fields, data + np.asarray(item.eigenvalues).astype("<f4").tobytes()


def _read_klt(spec: Mapping[str, Any], data: ByteReader, _: int) -> KLT:
    matrix = read_orthogonal(spec, data)
    eigenvalues = data.take(4 * len(matrix)).view("<f4").astype(np.float32)
    return KLT(jnp.asarray(matrix.T), jnp.asarray(eigenvalues))


def _write_array(x: Any) -> bytes:
    x = np.asarray(x)
    return write_varints(np.array([x.ndim, *x.shape])) + x.astype(x.dtype.newbyteorder("<")).tobytes()


def _read_array(data: ByteReader, dtype: str) -> np.ndarray:
    rank = data.varint()
    shape = tuple(int(n) for n in data.varints(rank))
    count = 1
    for n in shape:
        count *= n
    return (
        data.take(count * np.dtype(dtype).itemsize).view(dtype).astype(np.dtype(dtype).newbyteorder("=")).reshape(shape)
    )


def _read_steps(data: ByteReader) -> Any:
    step = _read_array(data, "<f4")
    if not (np.isfinite(step) & (step > 0)).all():
        raise data.fail("a step is not a positive number")
    return jnp.asarray(step)


def _write_affine(item: Affine, _: int) -> tuple[dict[str, Any], bytes]:
    zero = b"" if item.zero_point is None else _write_array(np.asarray(item.zero_point).astype(np.uint8))
    fields = {"bits": item.bits, "group_size": item.group_size, "symmetric": item.zero_point is None}
    return fields, _write_array(np.asarray(item.scale).astype("<f2")) + zero


def _read_affine(spec: Mapping[str, Any], data: ByteReader, _: int) -> Affine:
    bits, group_size = _field(spec, "bits", data, 2, 8), _field(spec, "group_size", data, 1, 2**31 - 1)
    scale = jnp.asarray(_read_array(data, "<f2"))
    zero = None if spec.get("symmetric") else jnp.asarray(_read_array(data, "|u1").astype(np.int32))
    return Affine(scale, zero, bits=bits, group_size=group_size)


_FORMS: Mapping[str, _Form] = {
    "identity": _constant(Identity),
    "dct": _constant(DCT),
    "real_fft": _constant(RealFFT),
    "chain": _Form(kind=Chain, write=_write_chain, read=_read_chain),
    "inverse": _combinator(Inverse),
    "along_axis": _combinator(AlongAxis, "axis"),
    "blockwise": _combinator(Blockwise, "size"),
    "hadamard": _Form(kind=Hadamard, write=_write_hadamard, read=_read_hadamard),
    "rotation": _Form(
        kind=Rotation,
        write=lambda item, bits: write_orthogonal(np.asarray(item.matrix), bits),
        read=lambda spec, data, _: Rotation(jnp.asarray(read_orthogonal(spec, data))),
    ),
    "butterfly": _Form(kind=Butterfly, write=_write_butterfly, read=_read_butterfly),
    "block_diagonal": _Form(kind=BlockDiagonal, write=_write_blocks, read=_read_blocks),
    "plane_rotation": _Form(kind=PlaneRotation, write=_write_planes, read=_read_planes),
    "kronecker": _Form(kind=Kronecker, write=_write_kronecker, read=_read_kronecker),
    "scaling": _Form(kind=Scaling, write=_write_scaling, read=_read_scaling),
    "klt": _Form(kind=KLT, write=_write_klt, read=_read_klt),
    "uniform": _Form(
        kind=Uniform,
        write=lambda item, _: ({}, _write_array(np.asarray(item.step, np.float32))),
        read=lambda _, data, __: Uniform(_read_steps(data)),
    ),
    "dead_zone": _Form(
        kind=DeadZone,
        write=lambda item, _: (
            {},
            _write_array(np.asarray(item.step, np.float32)) + _write_array(np.asarray(item.rounding, np.float32)),
        ),
        read=lambda _, data, __: DeadZone(_read_steps(data), _read_steps(data)),
    ),
    "affine": _Form(kind=Affine, write=_write_affine, read=_read_affine),
}
