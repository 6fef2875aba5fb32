"""Where the bytes of a file go: every byte on one line, and the lines add up to the file's size."""

import os
from collections import Counter

from occ_jax.codec.coding import CODECS
from occ_jax.codec.container import Container, open_container


def ledger(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of a compressed file by what they are for.

    ``safetensors_header`` is the outer header without what it carries, ``occ_header`` the JSON header as it is
    escaped inside the outer one, ``alignment`` the spaces behind it, ``codebooks`` the tables that tensors share; all
    other lines sum one kind of section over the tensors. The sum of the lines is the size of the file.

    Raises:
        FormatError: the file cannot be read.
    """
    with open_container(path) as container:
        lines = Counter(_header_lines(container))
        for sections in _by_tensor(container).values():
            lines.update(sections)
    return {name: count for name, count in lines.items() if count}


def tensor_ledger(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Bytes of every tensor by section. What tensors share (headers, codebooks) is in :func:`ledger` only.

    Raises:
        FormatError: the file cannot be read.
    """
    with open_container(path) as container:
        return _by_tensor(container)


def _by_tensor(container: Container) -> dict[str, dict[str, int]]:
    specs = container.header.specs
    return {
        name: dict(zip(CODECS[specs[entry.spec]["codec"]].sections, entry.sizes))
        for name, entry in container.header.tensors.items()
    }


def _header_lines(container: Container) -> dict[str, int]:
    with container.path.open("rb") as file:
        outer = file.read(container.header_bytes)
    file_bytes = container.path.stat().st_size
    alignment = len(outer) - len(outer.rstrip(b" "))
    carried = container.occ_header_text
    # As JSON inside JSON: every quote and every backslash takes one byte more.
    carried_bytes = len(carried.encode()) + carried.count('"') + carried.count("\\")
    tensors = sum(sum(entry.sizes) for entry in container.header.tensors.values())
    return {
        "safetensors_header": len(outer) - alignment - carried_bytes,
        "occ_header": carried_bytes,
        "alignment": alignment,
        "codebooks": file_bytes - len(outer) - tensors,
    }
