"""The file: one safetensors file with a byte string per tensor and one JSON header in its metadata."""

import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from occ_jax.codec.coding import CODECS, check_tensor
from occ_jax.codec.errors import FormatError, damaged
from occ_jax.codec.header import (
    CODEBOOK_PREFIX,
    MAX_HEADER_BYTES,
    MAX_RANK,
    Entry,
    Header,
    missing_tensor,
    parse_header,
    tensor_crc32,
    write_header,
)
from occ_jax.codec.tensor import CodedTensor, canonical_json
from occ_jax.quantization.codebook import Codebook, codebook_from_bytes, codebook_to_bytes

METADATA_KEY = "occ"
"""Key of the JSON header in the metadata of the safetensors file."""


class Container:
    """An open file. Tensors are read one at a time, on demand, and checked when they are read.

    Behaves as a read-only mapping from names to :class:`~occ_jax.codec.tensor.CodedTensor`; use it in a ``with``
    statement or :meth:`close` it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._place = str(path)
        self._codebooks: dict[int, Codebook] = {}
        header_size, self._file = _open_safetensors(self.path)
        try:
            text = (self._file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise FormatError(f"{path} is safetensors without an occ header: give a file that occ_jax wrote.")
            self.occ_header_text = text
            self.header = parse_header(text, self._blob_sizes(), self._place)
            for name, entry in self.header.tensors.items():
                check_tensor(*self._describe(name, entry))
        except BaseException:
            self.close()
            raise
        self.header_bytes = 8 + header_size

    def _blob_sizes(self) -> dict[str, int]:
        sizes = {}
        for name in self._file.keys():  # noqa: SIM118 (not a dict)
            blob = self._file.get_slice(name)
            if blob.get_dtype() != "U8" or len(blob.get_shape()) != 1:
                raise damaged(self._place, f"{name!r} is not a string of bytes")
            sizes[name] = blob.get_shape()[0]
        return sizes

    def _describe(self, name: str, entry: Entry) -> tuple[Mapping[str, Any], tuple[int, ...], tuple[int, ...], str]:
        return self.header.specs[entry.spec], entry.shape, entry.sizes, f"{self._place}, tensor {name!r},"

    @property
    def model(self) -> Any:
        """The JSON value that the writer stored with the file."""
        return self.header.model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __getitem__(self, name: str) -> CodedTensor:
        """Read one tensor.

        Raises:
            FormatError: there is no such tensor, or its bytes fail their checksum.
        """
        entry = self.header.tensors.get(name)
        if entry is None:
            raise missing_tensor(self._place, name, self.names)
        spec, shape, sizes, place = self._describe(name, entry)
        blob = self._file.get_tensor(name).tobytes()
        if tensor_crc32(name, spec, shape, sizes, blob) != entry.crc32:
            raise damaged(place, "its checksum does not match")
        ends = np.cumsum(sizes).tolist()
        sections = {
            section: blob[end - size : end] for section, size, end in zip(CODECS[spec["codec"]].sections, sizes, ends)
        }
        codebook = self._codebook(spec["codebook"], place) if "codebook" in spec else None
        own = {key: value for key, value in spec.items() if key != "codebook"}
        return CodedTensor(spec=own, shape=shape, sections=sections, codebook=codebook, place=place)

    def _codebook(self, number: Any, place: str) -> Codebook:
        if type(number) is not int or not 0 <= number < len(self.header.codebooks):
            raise damaged(place, f"it names codebook {number!r} of {len(self.header.codebooks)}")
        if number not in self._codebooks:
            blob = self._file.get_tensor(f"{CODEBOOK_PREFIX}{number}").tobytes()
            where = f"{self._place}, codebook {number},"
            if zlib.crc32(blob) != self.header.codebooks[number]:
                raise damaged(where, "its checksum does not match")
            try:
                self._codebooks[number] = codebook_from_bytes(blob)
            except ValueError as error:
                raise damaged(where, error) from error
        return self._codebooks[number]

    def close(self) -> None:
        """Close the file."""
        self._file.__exit__(None, None, None)

    def __enter__(self) -> "Container":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open a compressed file for reading; only its header is read now.

    Raises:
        FormatError: the file is missing, truncated, damaged, not an occ file, or newer than this library.
    """
    return Container(path)


def _open_safetensors(path: Path) -> tuple[int, Any]:
    """Size of the safetensors header, checked, and the open file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened ({error.strerror}): check the path.") from error
    announced = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or announced > size - 8:
        raise damaged(str(path), f"it is truncated, {size} bytes are too few for its header")
    if announced > MAX_HEADER_BYTES:
        raise damaged(str(path), f"it announces a header of {announced} bytes, at most {MAX_HEADER_BYTES} are allowed")
    try:
        return announced, safe_open(path, framework="np").__enter__()
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(str(path), f"it is not valid safetensors ({error})") from error


def write_container(
    path: str | os.PathLike[str],
    tensors: Mapping[str, CodedTensor],
    *,
    model: Any = None,
    producer: str | None = None,
) -> None:
    """Write tensors to one file: all of it, or nothing.

    The file is written beside ``path``, flushed to the disk and renamed, so that an interrupt or a full disk leaves
    whatever was there before. Equal arguments give equal bytes.

    Args:
        path: where to; by convention ``*.occ.safetensors``.
        tensors: what to write; codebooks that several tensors share are written once.
        model: any JSON value that belongs to the whole model.
        producer: name and version of the program; this library's when left out.

    Raises:
        ValueError: a reserved or empty name, a tensor that a reader would refuse, or ``model`` is not JSON.
        OSError: the disk does not take it.

    Example:
        >>> from occ_jax.codec import decode_tensor, encode_raw
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_container(f"{folder}/x.occ.safetensors", {"w": encode_raw(np.ones(2))}, model={"rate": 2})
        ...     with open_container(f"{folder}/x.occ.safetensors") as container:
        ...         print(container.model, container.names, decode_tensor(container["w"]))
        {'rate': 2} ('w',) [1. 1.]
    """
    codebooks: dict[bytes, int] = {}
    written: dict[int, bytes] = {}
    specs: dict[bytes, int] = {}
    spec_list, entries, blobs = [], {}, {}
    for name in sorted(tensors):
        coded = tensors[name]
        if not name or name == "__metadata__" or name.startswith(CODEBOOK_PREFIX) or len(coded.shape) > MAX_RANK:
            raise ValueError(f"a tensor of shape {coded.shape} cannot be stored as {name!r}: reshape or rename it")
        spec = dict(coded.spec)
        if coded.codebook is not None:
            if id(coded.codebook) not in written:
                written[id(coded.codebook)] = codebook_to_bytes(coded.codebook)
            spec["codebook"] = codebooks.setdefault(written[id(coded.codebook)], len(codebooks))
        sizes = tuple(len(section) for section in coded.sections.values())
        check_tensor(spec, coded.shape, sizes, f"tensor {name!r}")
        number = specs.setdefault(canonical_json(spec), len(specs))
        spec_list += [spec] if number == len(spec_list) else []
        blob = b"".join(coded.sections.values())
        crc32 = tensor_crc32(name, spec, coded.shape, sizes, blob)
        entries[name] = Entry(spec=number, shape=coded.shape, sizes=sizes, crc32=crc32)
        blobs[name] = np.frombuffer(blob, np.uint8)
    for data, number in codebooks.items():
        blobs[f"{CODEBOOK_PREFIX}{number}"] = np.frombuffer(data, np.uint8)
    header = Header(
        producer=producer or f"occ_jax {metadata.version('occ_jax')}",
        model=model,
        specs=spec_list,
        codebooks=[zlib.crc32(data) for data in codebooks],
        tensors=entries,
    )
    write_whole(Path(path), blobs, {METADATA_KEY: write_header(header)})


def write_whole(path: Path, blobs: dict[str, np.ndarray], header: dict[str, str]) -> None:
    """Write a safetensors file beside ``path``, flush it and rename it: all of it, or nothing."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        try:
            save_file(blobs, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(f"cannot write {path} ({error}): free some space or choose another place") from error
        os.chmod(temporary, 0o666 & ~_umask())
        _flush(temporary, os.O_RDWR)  # opened anew: safetensors may have put another file in its place
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if os.name == "posix":
        _flush(path.parent, os.O_RDONLY)  # and its name


def _flush(path: str | Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
