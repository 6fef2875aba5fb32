"""How large a compressed file is, in bytes of the file system and in bits per weight, with every byte accounted for."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from occ_jax.codec import CodedTensor, ledger, open_container, tensor_ledger
from occ_jax.quantization.codebook import Codebook, codebook_to_bytes

from ..roles import is_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a container; the fields of ``occ inspect --json``.

    Attributes:
        file_bytes: as the file system has it.
        linear_bits_per_weight: of the linear layers: their sections and all of the shared tables.
        file_bits_per_weight: of the whole file, over all weights that it stores.
        ledger: what every byte is for; the entries add up to ``file_bytes``.
    """

    file_bytes: int
    linear_bits_per_weight: float
    file_bits_per_weight: float
    ledger: dict[str, int]


def measure_sizes(file: Path) -> Sizes:
    """Measure a container.

    Raises:
        FormatError: it cannot be read.
    """
    lines = ledger(file)
    own = {name: sum(sections.values()) for name, sections in tensor_ledger(file).items()}
    with open_container(file) as container:
        counts = {name: math.prod(container.header.tensors[name].shape) for name in container}
    linear = [name for name in own if is_linear(name)]
    linear_bytes = sum(own[name] for name in linear) + lines.get("codebooks", 0)
    file_bytes = file.stat().st_size
    return Sizes(
        file_bytes=file_bytes,
        linear_bits_per_weight=8 * linear_bytes / max(1, sum(counts[name] for name in linear)),
        file_bits_per_weight=8 * file_bytes / max(1, sum(counts.values())),
        ledger=lines,
    )


def linear_bits(coded: Mapping[str, CodedTensor], codebook: Codebook) -> float:
    """Bits per weight of the linear layers among coded tensors, as :func:`measure_sizes` will find them in the file."""
    linear = [tensor for name, tensor in coded.items() if is_linear(name)]
    total = sum(tensor.num_bytes for tensor in linear) + len(codebook_to_bytes(codebook))
    return 8 * total / sum(tensor.num_elements for tensor in linear)
