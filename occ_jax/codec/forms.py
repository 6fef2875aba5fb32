"""How each transform and quantizer that holds no other one is written: its JSON fields with its bytes, and back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from occ_jax.codec.angles import read_angles, write_angles
from occ_jax.codec.levels import read_levels, write_levels
from occ_jax.codec.limits import MAX_BUTTERFLY, MAX_HADAMARD_SIZE
from occ_jax.codec.matrices import read_orthogonal, write_orthogonal
from occ_jax.entropy.varint import ByteReader, write_varints
from occ_jax.quantization import Affine, DeadZone, Uniform
from occ_jax.transforms import (
    DCT,
    KLT,
    Butterfly,
    Hadamard,
    Identity,
    PlaneRotation,
    RealFFT,
    Rotation,
    Scaling,
    num_pairs,
)

_Writer = Callable[[Any, int], tuple[dict[str, Any], bytes]]
_Reader = Callable[[Mapping[str, Any], ByteReader, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How one class is written: its JSON fields with its bytes, and back."""

    kind: type
    write: _Writer
    read: _Reader


def field(spec: Mapping[str, Any], name: str, data: ByteReader, lowest: int, highest: int) -> int:
    """An integer of a spec.

    Raises:
        ValueError: it is missing, no integer, or out of range.
    """
    value = spec.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise data.fail(f"{spec['name']} with {name} = {value!r:.40}, expected an integer of {lowest} to {highest}")
    return value


def _constant(kind: type) -> Form:
    return Form(kind=kind, write=lambda *_: ({}, b""), read=lambda *_: kind())


def _write_planes(item: PlaneRotation, bits: int) -> tuple[dict[str, Any], bytes]:
    exponent, data = write_angles(np.asarray(item.angles), bits)
    return {"size": item.size, "exponent": exponent}, data


def _read_planes(spec: Mapping[str, Any], data: ByteReader, _: int) -> PlaneRotation:
    size, exponent = field(spec, "size", data, 1, MAX_BUTTERFLY[0]), field(spec, "exponent", data, 0, 14)
    return PlaneRotation(jnp.asarray(read_angles(data, size // 2, exponent)), size)


def _write_butterfly(item: Butterfly, bits: int) -> tuple[dict[str, Any], bytes]:
    shape = item.size, len(item.angles)
    if any(value > most for value, most in zip(shape, MAX_BUTTERFLY)):
        raise ValueError(f"a butterfly of size and sweeps {shape} cannot be stored: {MAX_BUTTERFLY} are the most")
    sweeps = [write_angles(sweep, bits) for sweep in np.asarray(item.angles)]
    fields = {"size": item.size, "sweeps": len(sweeps), "exponent": sweeps[0][0]}
    return fields, b"".join(data for _, data in sweeps)


def _read_butterfly(spec: Mapping[str, Any], data: ByteReader, _: int) -> Butterfly:
    size, sweeps = (field(spec, name, data, 1, most) for name, most in zip(("size", "sweeps"), MAX_BUTTERFLY))
    exponent = field(spec, "exponent", data, 0, 14)
    angles = np.stack([read_angles(data, num_pairs(size), exponent) for _ in range(sweeps)])
    return Butterfly(jnp.asarray(angles), size)


def _write_scaling(item: Scaling, bits: int) -> tuple[dict[str, Any], bytes]:
    log2_scale, exponent = np.asarray(item.log2_scale, np.float64), min(bits, 10)
    if not np.abs(log2_scale).max(initial=0) < 1 << 14 - exponent:
        raise ValueError(f"log2 scales reach {np.abs(log2_scale).max():g}: a file holds less than {1 << 14 - exponent}")
    levels = np.rint(np.ldexp(log2_scale, exponent)).astype(np.int32)
    return {"size": levels.size, "exponent": exponent}, write_levels(levels)


def _read_scaling(spec: Mapping[str, Any], data: ByteReader, _: int) -> Scaling:
    size, exponent = field(spec, "size", data, 1, 1 << 24), field(spec, "exponent", data, 0, 14)
    return Scaling(jnp.asarray(np.ldexp(read_levels(data, size).astype(np.float64), -exponent), jnp.float32))


def _write_hadamard(item: Hadamard, _: int) -> tuple[dict[str, Any], bytes]:
    negative = np.asarray(item.signs) < 0
    if negative.size > MAX_HADAMARD_SIZE:
        raise ValueError(f"a Hadamard transform of size {negative.size} cannot be stored: make it blockwise")
    plain = not negative.any()
    signs = b"" if plain else np.packbits(negative, bitorder="little").tobytes()
    return {"size": negative.size, "signs": not plain}, signs


def _read_hadamard(spec: Mapping[str, Any], data: ByteReader, _: int) -> Hadamard:
    size = field(spec, "size", data, 1, MAX_HADAMARD_SIZE)
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
    bits, group_size = field(spec, "bits", data, 2, 8), field(spec, "group_size", data, 1, 2**31 - 1)
    scale = jnp.asarray(_read_array(data, "<f2"))
    zero = None if spec.get("symmetric") else jnp.asarray(_read_array(data, "|u1").astype(np.int32))
    return Affine(scale, zero, bits=bits, group_size=group_size)


FORMS: Mapping[str, Form] = {
    "identity": _constant(Identity),
    "dct": _constant(DCT),
    "real_fft": _constant(RealFFT),
    "hadamard": Form(kind=Hadamard, write=_write_hadamard, read=_read_hadamard),
    "rotation": Form(
        kind=Rotation,
        write=lambda item, bits: write_orthogonal(np.asarray(item.matrix), bits),
        read=lambda spec, data, _: Rotation(jnp.asarray(read_orthogonal(spec, data))),
    ),
    "butterfly": Form(kind=Butterfly, write=_write_butterfly, read=_read_butterfly),
    "plane_rotation": Form(kind=PlaneRotation, write=_write_planes, read=_read_planes),
    "scaling": Form(kind=Scaling, write=_write_scaling, read=_read_scaling),
    "klt": Form(kind=KLT, write=_write_klt, read=_read_klt),
    "uniform": Form(
        kind=Uniform,
        write=lambda item, _: ({}, _write_array(np.asarray(item.step, np.float32))),
        read=lambda _, data, __: Uniform(_read_steps(data)),
    ),
    "dead_zone": Form(
        kind=DeadZone,
        write=lambda item, _: (
            {},
            _write_array(np.asarray(item.step, np.float32)) + _write_array(np.asarray(item.rounding, np.float32)),
        ),
        read=lambda _, data, __: DeadZone(_read_steps(data), _read_steps(data)),
    ),
    "affine": Form(kind=Affine, write=_write_affine, read=_read_affine),
}
"""Name in a file -> the class, for all that hold no other transform."""
