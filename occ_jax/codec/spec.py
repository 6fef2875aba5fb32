"""The only registry of the library: the names under which transforms and quantizers stand in a file."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from occ_jax.codec.forms import FORMS, Form, field
from occ_jax.codec.limits import MAX_DEPTH, MAX_ENTRIES, MAX_LINKS, leaves_axis, num_entries
from occ_jax.entropy.varint import ByteReader
from occ_jax.quantization import Quantizer
from occ_jax.transforms import (
    AlongAxis,
    BlockDiagonal,
    Blockwise,
    Chain,
    Inverse,
    Kronecker,
    Transform,
    block_diagonal,
)

DEFAULT_MATRIX_BITS = 6
"""Bits by which a stored matrix is finer than its typical entry."""


def to_spec(item: Transform | Quantizer, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> tuple[dict[str, Any], bytes]:
    """A transform or quantizer as a JSON object and side information.

    Args:
        item: what to write.
        matrix_bits: resolution of matrices (rotations, KLTs), in bits below their typical entry.

    Raises:
        ValueError: the class has no name in the format.

    Example:
        >>> from occ_jax.transforms import DCT
        >>> to_spec(Blockwise(DCT(), 64))
        ({'name': 'blockwise', 'of': {'name': 'dct'}, 'size': 64}, b'')
    """
    for name, form in _FORMS.items():
        if type(item) is form.kind:
            fields, data = form.write(item, matrix_bits)
            return {"name": name, **fields}, data
    raise ValueError(f"{type(item).__name__} has no name in the file format: register it in occ_jax.codec.forms")


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
    if depth == 0 and num_entries(spec) > MAX_ENTRIES:
        raise data.fail(f"sizes that make {num_entries(spec):,} entries, where {MAX_ENTRIES:,} are the most")
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
        ValueError: the class has no name in the format, or it is larger than a reader takes.

    Example:
        >>> from occ_jax.transforms import DCT
        >>> coded = code_transform(Blockwise(DCT(), 64))
        >>> coded.decoded()
        Blockwise(transform=DCT(), size=64)
    """
    coded = CodedTransform(*to_spec(transform, matrix_bits=matrix_bits))
    if num_entries(coded.spec) > MAX_ENTRIES:
        raise ValueError(
            f"a transform of {num_entries(coded.spec):,} entries cannot be stored, {MAX_ENTRIES:,} are the most:"
            " make it blockwise"
        )
    return coded


class UnknownName(ValueError):
    """A name that this version of the format does not have."""


def stored_transform(transform: Transform, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> Transform:
    """What a decoder will have in the place of ``transform``: choose coordinates with this one, then quantize in them.

    Only matrices change; they are rounded to ``matrix_bits`` and made orthogonal again.
    """
    return code_transform(transform, matrix_bits=matrix_bits).decoded()


def _combinator(kind: type, *static: str) -> Form:
    """Combinators of one transform with integer settings."""

    def write(item: Any, bits: int) -> tuple[dict[str, Any], bytes]:
        inner, data = to_spec(item.transform, matrix_bits=bits)
        return {"of": inner, **{name: getattr(item, name) for name in static}}, data

    def read(spec: Mapping[str, Any], data: ByteReader, depth: int) -> Any:
        lowest = {"axis": -8, "size": 1}
        values = {name: field(spec, name, data, lowest[name], 2**31 - 1) for name in static}
        return kind(_read_transform(spec.get("of"), data, depth + 1), **values)

    return Form(kind=kind, write=write, read=read)


def _read_transform(spec: Any, data: ByteReader, depth: int) -> Transform:
    item = from_spec(spec, data, depth=depth)
    if not isinstance(item, Transform):
        raise data.fail("a part of a transform is a quantizer")
    return item


def _write_chain(item: Chain, bits: int) -> tuple[dict[str, Any], bytes]:
    if len(item.transforms) > MAX_LINKS:
        raise ValueError(f"{len(item.transforms)} transforms in one cannot be stored, {MAX_LINKS} are the most")
    links = [to_spec(link, matrix_bits=bits) for link in item.transforms]
    return {"of": [spec for spec, _ in links]}, b"".join(data for _, data in links)


def _read_chain(spec: Mapping[str, Any], data: ByteReader, depth: int) -> Chain:
    links = spec.get("of")
    if not isinstance(links, list) or len(links) > MAX_LINKS:
        raise data.fail(f"a chain is a list of at most {MAX_LINKS} specs")
    return Chain(tuple(_read_transform(link, data, depth + 1) for link in links))


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


def _write_blocks(item: BlockDiagonal, bits: int) -> tuple[dict[str, Any], bytes]:
    fields, data = _write_chain(Chain(tuple(item.blocks())), bits)
    return {**fields, "size": item.size}, data


def _read_blocks(spec: Mapping[str, Any], data: ByteReader, depth: int) -> BlockDiagonal:
    return block_diagonal(list(_read_chain(spec, data, depth).transforms), field(spec, "size", data, 1, 2**31 - 1))


_FORMS: Mapping[str, Form] = {
    "chain": Form(kind=Chain, write=_write_chain, read=_read_chain),
    "inverse": _combinator(Inverse),
    "along_axis": _combinator(AlongAxis, "axis"),
    "blockwise": _combinator(Blockwise, "size"),
    "block_diagonal": Form(kind=BlockDiagonal, write=_write_blocks, read=_read_blocks),
    "kronecker": Form(kind=Kronecker, write=_write_kronecker, read=_read_kronecker),
    **FORMS,
}
