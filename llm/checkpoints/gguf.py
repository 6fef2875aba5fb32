"""GGUF files: the format of llama.cpp, weights, config and tokenizer in one file."""

import functools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ..config import ModelConfig
from ..errors import OccError
from .base import Checkpoint, StoredTensor, StoredWeights
from .gguf_config import ROPE_FACTORS, gguf_model_config
from .gguf_tokenizer import gguf_tokenizer_files
from .layout import check_depth, tensor_shapes
from .tokenizer_files import check_vocabulary, load_tokenizer

_PERMUTED = frozenset({"llama"})
"""Architectures for which converters reorder the rows of q and k (llama.cpp rotates neighbouring rows there)."""


def is_gguf_file(path: Path) -> bool:
    """Whether ``path`` is a file called ``*.gguf``, or one that begins like a GGUF file."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return path.suffix == ".gguf" or stream.read(4) == b"GGUF"


def read_gguf_file(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a GGUF file. Its header is read now, tensors are read and dequantized on access.

    Rows of q and k are put back in the order of Hugging Face models; config and tokenizer are rebuilt from the
    metadata.

    Args:
        path: the file.
        name: what to call the model; the file's name by default.

    Raises:
        OccError: the file is damaged, one part of several, of another family, or of a type that the ``gguf`` package
            cannot dequantize.
    """
    if not path.is_file():
        raise OccError(f"{path}: no such file; check the path.")
    metadata, tensors = read_gguf_header(path)
    if metadata.get("split.count", 0) > 1:
        raise OccError(f"{path}: one part of a split model; join the parts with llama-gguf-split --merge.")
    factors = tensors[ROPE_FACTORS].read() if ROPE_FACTORS in tensors else None
    try:
        config = gguf_model_config(metadata, tensors, factors)
        files = gguf_tokenizer_files(metadata)
    except OccError as error:
        raise OccError(f"{path}: {error}") from error
    tokenizer = load_tokenizer(files, str(path))
    check_vocabulary(tokenizer, config.vocab_size, str(path))
    check_depth(config, len(tensors), str(path))
    stored = _hf_tensors(tensors, config, metadata["general.architecture"])
    return Checkpoint(
        name=name or path.stem,
        config=config,
        weights=StoredWeights(stored, config, str(path)),
        tokenizer=tokenizer,
        tokenizer_files=files,
        path=path,
    )


def read_gguf_header(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Read metadata (key -> value) and tensors (GGUF name -> stored tensor, shape row-major) of a file.

    Raises:
        OccError: the file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # products of sizes that lie overflow; they are checked
            reader = _CheckedReader(path)
            metadata = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # the gguf package raises whatever it runs into
        raise OccError(f"{path}: not a complete GGUF file ({error}); download it again.") from error
    if reader.byte_order != "I":
        raise OccError(f"{path}: written for another byte order; convert it with gguf-convert-endian.")
    tensors = {tensor.name: _stored_tensor(path, tensor) for tensor in reader.tensors}
    return metadata, tensors


class _CheckedReader(gguf.GGUFReader):
    """The package's reader, with two changes: nothing beyond the end of the file, and plain arrays (3x faster).

    The original returns short arrays at the end of the file, and then loops as often as a damaged header says.
    """

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> np.ndarray:
        dtype = np.dtype(dtype).newbyteorder(self.byte_order if override_order is None else override_order)
        end = int(offset) + int(count) * dtype.itemsize
        if end > self.data.size:
            raise ValueError(f"its header speaks of byte {end}, it has {self.data.size}")
        return np.frombuffer(self.data, dtype, int(count), int(offset))


def _stored_tensor(path: Path, tensor: gguf.ReaderTensor) -> StoredTensor:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    itemsize = tensor.data.dtype.itemsize
    if math.prod(tensor.data.shape) * itemsize != tensor.n_bytes:
        raise OccError(f"{path}: tensor {tensor.name} has an impossible size; download the file again.")
    read = functools.partial(
        _dequantize, path, tensor.name, tensor.tensor_type, tensor.data_offset, tensor.data.dtype, tensor.data.shape
    )
    return StoredTensor(file=path, shape=shape, read=read)


def _dequantize(
    path: Path, name: str, kind: gguf.GGMLQuantizationType, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    # Read, not mapped: the pages of a mapping would stay in memory. The open file is closed with the read.
    try:
        data = np.fromfile(path, dtype, math.prod(shape), offset=offset)
    except OSError as error:
        raise OccError(f"{path}: cannot be read any more ({error.strerror}); restore the file.") from error
    if data.size != math.prod(shape):
        raise OccError(f"{path}: ends within tensor {name}; restore the file.")
    if np.issubdtype(dtype, np.floating):
        return data.reshape(shape)
    try:
        with np.errstate(all="ignore"):  # damaged scales overflow; the caller refuses what is not finite
            return gguf.dequantize(data.reshape(shape), kind)
    except NotImplementedError as error:
        raise OccError(
            f"{path}: tensor {name} has the type {kind.name}, which the gguf package cannot dequantize; "
            "take the model in another type."
        ) from error


def _hf_tensors(tensors: Mapping[str, StoredTensor], config: ModelConfig, arch: str) -> dict[str, StoredTensor]:
    """Rename to Hugging Face names; names that no tensor of the model has stay, for the check of the layout."""
    model_arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(model_arch, config.num_layers)
    renamed = {}
    for hf_name in tensor_shapes(config):
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if name in tensors:
            renamed[name] = hf_name
    hf = {renamed.get(name, name): tensor for name, tensor in tensors.items() if name != ROPE_FACTORS}
    if arch in _PERMUTED:
        for name, tensor in hf.items():
            if ".q_proj." in name or ".k_proj." in name:
                heads = config.num_heads if ".q_proj." in name else config.num_kv_heads
                read = functools.partial(_read_unpermuted, tensor, heads)
                hf[name] = StoredTensor(file=tensor.file, shape=tensor.shape, read=read)
    return hf


def _read_unpermuted(tensor: StoredTensor, num_heads: int) -> np.ndarray:
    return unpermute_rotary_rows(tensor.read(), num_heads)


def unpermute_rotary_rows(w: np.ndarray, num_heads: int) -> np.ndarray:
    """Put the rows of q or k back in Hugging Face order: from pairs side by side to halves of a head.

    llama.cpp rotates rows ``2 i`` and ``2 i + 1`` of a head together, Hugging Face models rows ``i`` and ``i + n / 2``.

    Example:
        >>> print(unpermute_rotary_rows(np.array([0, 4, 1, 5, 2, 6, 3, 7]), num_heads=1))
        [0 1 2 3 4 5 6 7]
    """
    pairs = w.reshape(num_heads, -1, 2, *w.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)
