"""The header of a GGUF file: its metadata and the places of its tensors, every size checked against the file.

The ``gguf`` package reads headers too, but takes 50 times as long for a vocabulary (an array object for every string)
and trusts the sizes that a damaged header states.

References:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import gguf

from ..errors import OccError

Kind = gguf.GGMLQuantizationType

_MAX_DIMENSIONS = 4
_SCALARS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where one tensor lies in the file.

    Attributes:
        kind: how its values are stored.
        shape: row-major, as NumPy has it (GGUF lists the fastest axis first).
        offset: its first byte in the file.
    """

    kind: Kind
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


def read_gguf_header(path: Path) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
    """Read metadata (key -> number, bool, string or list) and tensors (GGUF name -> place).

    Raises:
        OccError: the file is damaged, of an unknown version, or written for another byte order.
    """
    try:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(content).parse()
    except (ValueError, LookupError, struct.error) as error:  # mmap, too, says ValueError of an empty file
        raise OccError(f"{path}: not a complete GGUF file ({error}); download it again.") from error
    except OSError as error:
        raise OccError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error


class _Header:
    """A position in the file and what can be read there; ``struct`` refuses to read beyond the end."""

    def __init__(self, content: mmap.mmap):
        self._content = content
        self._position = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._position = 4
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise ValueError("written for another byte order; convert it with gguf-convert-endian")
        if version not in (2, 3):
            raise ValueError(f"it has version {version}, known are 2 and 3")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(self._number("I"))
        return metadata, self._tensors(num_tensors, int(metadata.get("general.alignment", 32)))

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorPlace]:
        tensors: dict[str, TensorPlace] = {}
        for _ in range(count):
            name = self._string()
            if name in tensors:
                raise ValueError(f"tensor {name} occurs twice")
            num_dimensions = self._number("I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
            shape = tuple(reversed(self._numbers("Q", num_dimensions)))
            kind = Kind(self._number("I"))
            tensors[name] = TensorPlace(kind=kind, shape=shape, offset=self._number("Q"))
        if alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        start = -(-self._position // alignment) * alignment
        return {name: self._placed(name, tensor, start) for name, tensor in tensors.items()}

    def _placed(self, name: str, tensor: TensorPlace, start: int) -> TensorPlace:
        placed = dataclasses.replace(tensor, offset=start + tensor.offset)
        block, _ = gguf.GGML_QUANT_SIZES[tensor.kind]
        if tensor.shape and tensor.shape[-1] % block:
            raise ValueError(f"rows of {tensor.shape[-1]} values in tensor {name} are not blocks of {block}")
        if (end := placed.offset + placed.num_bytes) > len(self._content):
            raise ValueError(f"tensor {name} ends at byte {end} of {len(self._content)}")
        return placed

    def _value(self, kind: int) -> Any:
        if kind == gguf.GGUFValueType.STRING:
            return self._string()
        if kind != gguf.GGUFValueType.ARRAY:
            return self._number(_SCALARS[gguf.GGUFValueType(kind)])
        kind, count = self._number("I"), self._number("Q")
        if kind == gguf.GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        return list(self._numbers(_SCALARS[gguf.GGUFValueType(kind)], count))

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._content, self._position)
        begin = self._position + 8
        self._position = begin + length
        if self._position > len(self._content):
            raise ValueError(f"a string ends at byte {self._position} of {len(self._content)}")
        return self._content[begin : self._position].decode("utf-8")

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        size = count * struct.calcsize(f"<{code}")
        if self._position + size > len(self._content):
            raise ValueError(f"{count} numbers end at byte {self._position + size} of {len(self._content)}")
        numbers = struct.unpack_from(f"<{count}{code}", self._content, self._position)
        self._position += size
        return numbers
