"""Dense Hugging Face directories, written tensor by tensor."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from ..config import ModelConfig
from ..errors import OccError
from ..weights import Weights
from .atomic import atomic_directory
from .hf import CONFIG, WEIGHTS, WEIGHTS_INDEX
from .layout import Shape, tensor_shapes

FloatType = Literal["float32", "float16", "bfloat16"]

_NUMPY: Mapping[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_SAFETENSORS: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

MAX_SHARD_BYTES = 5_000_000_000
"""Default size of a shard, that of ``save_pretrained``."""


def write_hf_directory(
    path: Path,
    *,
    config: ModelConfig,
    weights: Weights,
    tokenizer_files: Mapping[str, bytes],
    dtype: FloatType = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    force: bool = False,
    inputs: Iterable[Path] = (),
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a model that transformers and :func:`read_hf_directory` open. One tensor is in memory at a time.

    The directory appears whole or not at all. The weights are cast to ``dtype``, rounding to nearest even.

    Args:
        path: the output directory.
        config: the model; decides which tensors are written and in what order.
        weights: the tensors, maybe lazy.
        tokenizer_files: file name -> content, copied as they are.
        dtype: how to store the weights.
        max_shard_bytes: start a new file when one would grow beyond this.
        force: replace an existing model at ``path``.
        inputs: what the weights are read from, protected against being overwritten.
        on_tensor: called with the name of every tensor written (for a progress bar).

    Raises:
        OccError: as :func:`~occ_llm.checkpoints.atomic.atomic_directory`, or the first weight that cannot be read.
    """
    shards = list(_shards(tensor_shapes(config), _NUMPY[dtype].itemsize, max_shard_bytes))
    names = [WEIGHTS] if len(shards) == 1 else [shard_name(i, len(shards)) for i in range(len(shards))]
    with atomic_directory(path, force=force, inputs=inputs) as directory:
        for name, content in tokenizer_files.items():
            (directory / name).write_bytes(content)
        _write_json(directory / CONFIG, config.to_hf() | {"torch_dtype": dtype})
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(directory / name, weights, shard, dtype=dtype, on_tensor=on_tensor)
        if len(shards) > 1:
            _write_json(directory / WEIGHTS_INDEX, _index(names, shards, _NUMPY[dtype].itemsize))


def shard_name(index: int, count: int) -> str:
    """File name of a shard, numbered from 0, in the convention of ``save_pretrained``.

    Example:
        >>> shard_name(0, 2)
        'model-00001-of-00002.safetensors'
    """
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_safetensors(
    file: Path,
    weights: Weights,
    shapes: Mapping[str, Shape],
    *,
    dtype: FloatType = "float32",
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Write tensors of known shapes as one safetensors file, in the given order and one at a time.

    (``safetensors.numpy.save_file`` needs all of them in memory.) The format: the header's length as 8 bytes little
    endian, a JSON header padded with spaces to a multiple of 8, then the tensors row-major without gaps.

    References:
        https://github.com/huggingface/safetensors#format
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    sizes = [math.prod(shape) * _NUMPY[dtype].itemsize for shape in shapes.values()]
    ends = list(itertools.accumulate(sizes))
    for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True):
        header[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [end - size, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            stream.write(_cast(name, weights[name], shape, dtype).view(np.uint8).data)
            on_tensor(name)


def _cast(name: str, w: np.ndarray, shape: Shape, dtype: FloatType) -> np.ndarray:
    if w.shape != shape:
        raise ValueError(f"tensor {name} has shape {w.shape} where the model has {shape}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(w, _NUMPY[dtype])
    if dtype == "float16" and not np.isfinite(stored).all():
        raise OccError(f"tensor {name} holds values beyond the range of float16; store bfloat16 or float32.")
    return stored


def _shards(shapes: Mapping[str, Shape], itemsize: int, max_bytes: int) -> Iterator[dict[str, Shape]]:
    shard: dict[str, Shape] = {}
    total = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shard and total + size > max_bytes:
            yield shard
            shard, total = {}, 0
        shard[name] = shape
        total += size
    yield shard


def _index(names: Iterable[str], shards: Iterable[Mapping[str, Shape]], itemsize: int) -> dict[str, object]:
    shards = list(shards)
    total = sum(math.prod(shape) * itemsize for shard in shards for shape in shard.values())
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
