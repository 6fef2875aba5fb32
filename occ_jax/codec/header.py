"""The JSON header of a container: what each byte string is, checked before anything is allocated for it."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from occ_jax.codec.errors import FormatError, damaged, too_new
from occ_jax.codec.tensor import MAX_DIM, canonical_json, shorten

FORMAT_VERSION = 1
"""The format version that this module writes, and the newest that it reads."""

MAX_HEADER_BYTES = 1 << 26
"""Largest header that a reader accepts."""

MAX_RANK = 8
"""Most axes of a tensor."""

CODEBOOK_PREFIX = "occ.codebook."
"""Codebooks are byte strings of these names, numbered from 0; no tensor may be called so."""

_MAX_EXTENT = 1 << 48
_CHECKSUM = re.compile(r'\{"crc32":"([0-9a-f]{8})",')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the file: number of its spec, shape, lengths of its sections in order, checksum."""

    spec: int
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a container says about itself.

    Args:
        producer: name and version of the writing program.
        model: the caller's own JSON, anything that belongs to the whole model.
        specs: codec specs, each once.
        codebooks: CRC-32 of each codebook.
        tensors: entries by name.
    """

    producer: str
    model: Any
    specs: Sequence[Mapping[str, Any]]
    codebooks: Sequence[int]
    tensors: Mapping[str, Entry]


def tensor_crc32(name: str, spec: Mapping[str, Any], shape: Sequence[int], sizes: Sequence[int], blob: bytes) -> int:
    """Checksum of a tensor's bytes together with everything that says how to read them."""
    return zlib.crc32(blob, zlib.crc32(canonical_json([name, spec, list(shape), list(sizes)])))


def write_header(header: Header) -> str:
    """The header as JSON text, its own checksum first.

    Example:
        >>> write_header(Header(producer="p", model=None, specs=[], codebooks=[], tensors={}))[:39]
        '{"crc32":"165953c0","codebooks":[],"mod'
    """
    body = {
        "version": FORMAT_VERSION,
        "producer": header.producer,
        "model": header.model,
        "specs": list(header.specs),
        "codebooks": list(header.codebooks),
        "tensors": {name: [e.spec, list(e.shape), list(e.sizes), e.crc32] for name, e in header.tensors.items()},
    }
    text = canonical_json(body).decode("ascii")[1:]
    return f'{{"crc32":"{zlib.crc32(text.encode("ascii")):08x}",{text}'


def parse_header(text: str, blob_sizes: Mapping[str, int], place: str) -> Header:
    """Read a header and hold it against the byte strings that the file has.

    Args:
        text: the JSON text.
        blob_sizes: length of every byte string of the file by name.
        place: what to call the file in errors.

    Raises:
        FormatError: the header is not one, contradicts itself or the file, or is newer than this module.
    """
    checksum = _CHECKSUM.match(text)
    if not checksum:
        raise damaged(place, "its occ header does not start with a checksum")
    if zlib.crc32(text[checksum.end() :].encode("utf-8", "surrogatepass")) != int(checksum[1], 16):
        raise damaged(place, "the checksum of its occ header does not match")
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(place, "its occ header is not JSON") from error
    _check_version(body, place)
    specs, codebooks = body.get("specs"), body.get("codebooks")
    if not (isinstance(specs, list) and all(isinstance(spec, dict) for spec in specs)):
        raise damaged(place, "its list of specs is not one")
    if not (isinstance(codebooks, list) and all(_is_crc32(crc) for crc in codebooks)):
        raise damaged(place, "its list of codebooks is not one")
    if not (isinstance(body.get("tensors"), dict) and isinstance(body.get("producer"), str)):
        raise damaged(place, "its occ header has no tensors or no producer")
    tensors = {name: _parse_entry(name, record, len(specs), place) for name, record in body["tensors"].items()}
    _check_blobs(tensors, len(codebooks), blob_sizes, place)
    return Header(producer=body["producer"], model=body.get("model"), specs=specs, codebooks=codebooks, tensors=tensors)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_version(body: dict[str, Any], place: str) -> None:
    version = body.get("version")
    if type(version) is not int or version < 1:
        raise damaged(place, f"its format version is {shorten(version)}")
    if version > FORMAT_VERSION:
        raise too_new(place, f"format version {shorten(version)}, this one reads {FORMAT_VERSION}")
    requires = body.get("requires", [])
    if not isinstance(requires, list):
        raise damaged(place, "its list of required features is not one")
    if requires:
        raise too_new(place, f"it requires {shorten(requires[0])}")


def _is_crc32(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_lengths(value: Any, most: int, largest: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n <= largest for n in value)


def _parse_entry(name: str, record: Any, num_specs: int, place: str) -> Entry:
    where = f"{place}, tensor {shorten(name)},"
    if not (isinstance(record, list) and len(record) == 4):
        raise damaged(where, "its entry is not [spec, shape, sizes, crc32]")
    spec, shape, sizes, crc32 = record
    if type(spec) is not int or not 0 <= spec < num_specs:
        raise damaged(where, f"it names spec {shorten(spec)} of {num_specs}")
    if not _is_lengths(shape, MAX_RANK, MAX_DIM) or math.prod(max(n, 1) for n in shape) > _MAX_EXTENT:
        raise damaged(where, f"its shape is {shorten(shape)}")
    if not _is_lengths(sizes, MAX_RANK, _MAX_EXTENT):
        raise damaged(where, f"its section lengths are {shorten(sizes)}")
    if not _is_crc32(crc32):
        raise damaged(where, f"its checksum is {shorten(crc32)}")
    return Entry(spec=spec, shape=tuple(shape), sizes=tuple(sizes), crc32=crc32)


def _check_blobs(tensors: Mapping[str, Entry], num_codebooks: int, blobs: Mapping[str, int], place: str) -> None:
    expected = {name: sum(entry.sizes) for name, entry in tensors.items()}
    for name in expected:
        if name.startswith(CODEBOOK_PREFIX):
            raise damaged(place, f"a tensor has the reserved name {shorten(name)}")
    expected |= {f"{CODEBOOK_PREFIX}{i}": blobs.get(f"{CODEBOOK_PREFIX}{i}", -1) for i in range(num_codebooks)}
    for name in expected.keys() ^ blobs.keys():
        side = "announced and not there" if name in expected else "there and not announced"
        raise damaged(place, f"byte string {shorten(name)} is {side}")
    for name, size in expected.items():
        if blobs[name] != size:
            raise damaged(place, f"{shorten(name)} has {blobs[name]} bytes and its sections have {shorten(size)}")


def missing_tensor(place: str, name: str, names: Sequence[str]) -> FormatError:
    """The error for a tensor that a container does not hold."""
    some = ", ".join(map(repr, sorted(names)[:3])) or "none"
    return FormatError(f"{place} has no tensor {shorten(name)}: it holds {len(names)} ({some}, ...); check the name.")
