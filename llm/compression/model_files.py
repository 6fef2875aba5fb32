"""The directory of a compressed model: container, config and tokenizer, and nothing that could run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occ_jax.codec import CodedTensor, write_container
from occ_jax.codec.header import FORMAT_VERSION

from ..checkpoints import Checkpoint
from ..checkpoints.compressed import CONTAINER, QUANT_METHOD, read_compressed_directory
from ..model import LanguageModel
from .sizes import Sizes, measure_sizes


def write_model(
    directory: Path, coded: Mapping[str, CodedTensor], checkpoint: Checkpoint, model: Mapping[str, Any]
) -> Sizes:
    """Write everything that a reader needs: container, config and tokenizer.

    Args:
        directory: an existing one.
        coded: every tensor.
        checkpoint: the original.
        model: what the header and the config say about how it was made.
    """
    write_container(directory / CONTAINER, coded, model=model)
    for name, content in checkpoint.tokenizer_files.items():
        (directory / name).write_bytes(content)
    quantization = {"quant_method": QUANT_METHOD, "format_version": FORMAT_VERSION, **model}
    fields = checkpoint.config.to_hf() | {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return measure_sizes(directory / CONTAINER)


def open_model(directory: Path) -> LanguageModel:
    """The network of such a directory, dense."""
    opened = read_compressed_directory(directory)
    return LanguageModel.from_weights(opened.config, opened.weights)
