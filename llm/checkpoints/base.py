"""What every reader returns: config, lazy weights and tokenizer of one model, whatever file it came from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..config import ModelConfig
from ..errors import OccError
from ..weights import Weights
from .layout import Shape, check_depth, check_layout, tensor_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor on disk: what is known without reading it, and how to read it.

    Attributes:
        file: the file that holds it.
        shape: its shape under Hugging Face conventions.
        read: reads it, in any float dtype; raises OccError where it cannot; keeps nothing between two calls.
    """

    file: Path
    shape: Shape
    read: Callable[[], np.ndarray]


class StoredWeights(Weights):
    """Weights on disk as float32, read one tensor at a time and only when asked for.

    Exactly the tensors that the config describes, in the order of the network: names and shapes are checked
    when the mapping is made, values (all finite) whenever one is read. Nothing is cached, so the memory in use is
    that of the tensors that the caller keeps.

    Args:
        tensors: Hugging Face name -> stored tensor.
        config: the model that they belong to.
        source: what to call the checkpoint in an error.

    Raises:
        OccError: a tensor is missing, is unknown or has another shape; on access: it cannot be read or holds a
            NaN or an infinity.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], config: ModelConfig, source: str):
        check_depth(config, len(tensors), source)
        expected = tensor_shapes(config)
        check_layout(expected, {name: tensor.shape for name, tensor in tensors.items()}, source)
        self._tensors = {name: tensors[name] for name in expected}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        with np.errstate(over="ignore"):  # of float64: becomes infinite and is refused below
            w = np.asarray(tensor.read(), np.float32)
        if w.shape != tensor.shape:
            raise OccError(f"{tensor.file}: tensor {name} has changed its shape to {w.shape}; restore the file.")
        # A float64 sum of finite float32 values cannot overflow, and a NaN or an infinity survives it.
        if not np.isfinite(w.sum(dtype=np.float64)):
            raise OccError(f"{tensor.file}: tensor {name} holds NaN or infinite values; take an intact checkpoint.")
        return w

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # the default of Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A language model at rest.

    Attributes:
        name: what to call the model in tables and model cards.
        config: its architecture.
        weights: Hugging Face name -> float32 array, lazy: every access reads one tensor from disk.
        tokenizer: text to ids; adds special tokens only if the model's own tokenizer does.
        tokenizer_files: file name -> content of what a copy of the model needs (``tokenizer.json``, ...).
        path: the file or directory that the weights are read from, ``None`` if they live in memory.
    """

    name: str
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    tokenizer_files: Mapping[str, bytes]
    path: Path | None = None
