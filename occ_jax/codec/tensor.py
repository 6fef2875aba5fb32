"""One coded tensor: everything that is needed to rebuild it, and what that costs."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from occ_jax.codec.errors import FormatError, damaged
from occ_jax.quantization.codebook import Codebook, codebook_to_bytes

MAX_DIM = 2**31 - 1
"""Largest length of an axis."""

MAX_ELEMENTS_PER_BYTE = 1024
"""No tensor may unfold to more elements than this many per byte of its own: the guard against decompression bombs."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CodedTensor:
    """A tensor as JSON and bytes.

    Args:
        spec: how to read the sections: a JSON object of strings, integers, booleans, lists and objects (no floats,
            so that its canonical text is unambiguous), with the name of the codec under ``"codec"``.
        shape: shape of the tensor.
        sections: byte strings by name, in the order in which a file holds them.
        codebook: frequency tables and reconstruction points, usually shared by many tensors.
        place: what to call this tensor in error messages.

    Example:
        >>> coded = CodedTensor(spec={"codec": "raw", "dtype": "float32"}, shape=(1,), sections={"values": bytes(4)})
        >>> coded.num_bytes, coded.num_bits
        (4, 320)
    """

    spec: Mapping[str, Any]
    shape: tuple[int, ...]
    sections: Mapping[str, bytes]
    codebook: Codebook | None = None
    place: str = "the coded tensor"

    @property
    def num_elements(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's own sections."""
        return sum(len(section) for section in self.sections.values())

    @property
    def num_bits(self) -> int:
        """Bits of everything a decoder needs: sections, spec and shape as JSON, and the whole codebook.

        In a file the spec and the codebook are shared; :func:`~occ_jax.codec.ledger.ledger` counts them once.
        """
        described = len(canonical_json(self.spec)) + len(canonical_json(list(self.shape)))
        shared = 0 if self.codebook is None else len(codebook_to_bytes(self.codebook))
        return 8 * (self.num_bytes + described + shared)


def canonical_json(value: Any) -> bytes:
    """JSON text with sorted keys and no spaces, in ASCII: equal values have equal texts.

    Example:
        >>> canonical_json({"b": [1, True], "a": "é"})
        b'{"a":"\\\\u00e9","b":[1,true]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns as which a tensor is coded: its last axis, and all others together.

    Example:
        >>> matrix_shape((8, 3, 5)), matrix_shape((7,)), matrix_shape(())
        ((24, 5), (1, 7), (1, 1))
    """
    return math.prod(shape[:-1]), (shape[-1] if shape else 1)


def integer_field(spec: Mapping[str, Any], name: str, lowest: int, highest: int, place: str) -> int:
    """A required integer of a spec, checked against its range."""
    value = spec.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise damaged(place, f"the spec says {name} = {shorten(value)}, expected an integer of {lowest} to {highest}")
    return value


def check_size(sizes: Mapping[str, int], name: str, expected: int, place: str) -> None:
    """Refuse a section whose length is not what the shape demands."""
    if sizes[name] != expected:
        raise damaged(place, f"section {name!r} holds {sizes[name]} bytes and its shape needs {shorten(expected)}")


def shorten(value: Any) -> str:
    """A value for an error message, cut to a readable length."""
    if type(value) is int and abs(value) >= 10**20:
        return f"{'-' if value < 0 else ''}2**{abs(value).bit_length() - 1} or more"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def require_codebook(coded: CodedTensor) -> Codebook:
    """The codebook of a tensor that cannot be read without one."""
    if coded.codebook is None:
        raise FormatError(f"{coded.place} has no codebook: give the one it was encoded with.")
    return coded.codebook
