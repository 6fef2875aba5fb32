"""GGUF files: the format of llama.cpp, weights, config and tokenizer in one file."""

import functools
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from ..config import ModelConfig
from ..errors import OccError
from .base import Checkpoint, StoredTensor, StoredWeights
from .gguf_config import ROPE_FACTORS, gguf_model_config
from .gguf_header import Kind, TensorPlace, read_gguf_header
from .gguf_tokenizer import gguf_tokenizer_files
from .layout import check_depth, tensor_shapes
from .tokenizer_files import check_vocabulary, load_tokenizer

_PLAIN: Mapping[Kind, str] = {Kind.F64: "<f8", Kind.F32: "<f4", Kind.F16: "<f2"}

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
    metadata, places = read_gguf_header(path)
    tensors = stored_tensors(path, places)
    if metadata.get("split.count", 0) > 1:
        raise OccError(f"{path}: one part of a split model; join the parts with llama-gguf-split --merge.")
    factors = tensors[ROPE_FACTORS].read() if ROPE_FACTORS in tensors and places[ROPE_FACTORS].kind in _PLAIN else None
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


def stored_tensors(path: Path, places: Mapping[str, TensorPlace]) -> dict[str, StoredTensor]:
    """Name -> tensor that is read and dequantized on access."""
    return {
        name: StoredTensor(file=path, shape=place.shape, read=functools.partial(_dequantize, path, name, place))
        for name, place in places.items()
    }


def _dequantize(path: Path, name: str, place: TensorPlace) -> np.ndarray:
    # Read, not mapped: the pages of a mapping would stay in memory.
    try:
        data = np.fromfile(path, np.uint8, place.num_bytes, offset=place.offset)
    except OSError as error:
        raise OccError(f"{path}: cannot be read any more ({error.strerror}); restore the file.") from error
    if data.size != place.num_bytes:
        raise OccError(f"{path}: ends within tensor {name}; restore the file.")
    if place.kind in _PLAIN:
        return data.view(_PLAIN[place.kind]).reshape(place.shape)
    try:
        with np.errstate(all="ignore"):  # damaged scales overflow; the caller refuses what is not finite
            return gguf.dequantize(data.reshape(gguf.quant_shape_to_byte_shape(place.shape, place.kind)), place.kind)
    except NotImplementedError as error:
        raise OccError(
            f"{path}: tensor {name} has the type {place.kind.name}, which the gguf package cannot dequantize; "
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
