"""Hugging Face directories: ``config.json``, single or sharded safetensors, ``tokenizer.json``."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from ..config import ModelConfig
from ..errors import OccError
from .base import Checkpoint, StoredTensor, StoredWeights
from .tokenizer_files import check_vocabulary, load_tokenizer, read_tokenizer_files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def read_hf_directory(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a model directory in the layout of ``save_pretrained``. Headers are read now, tensors on access.

    Args:
        path: the directory.
        name: what to call the model; the directory's name by default.

    Raises:
        OccError: a file is missing or damaged, the model is of another family or already quantized, or the
            tensors are not those that the config describes.
    """
    config = read_config(path)
    weights = StoredWeights(_stored_tensors(weight_files(path)), config, str(path))
    files = read_tokenizer_files(path)
    tokenizer = load_tokenizer(files, str(path))
    check_vocabulary(tokenizer, config.vocab_size, str(path))
    return Checkpoint(
        name=name or path.resolve().name,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        tokenizer_files=files,
        path=path,
    )


def read_config(directory: Path) -> ModelConfig:
    """Read ``config.json`` of a dense model.

    Raises:
        OccError: no such file, not JSON, another family, or weights stored in a quantized format.
    """
    file = directory / CONFIG
    if not file.is_file():
        raise OccError(f"{directory}: no {CONFIG}; give the directory of a model, as save_pretrained writes it.")
    fields = read_json_object(file)
    if (quantization := fields.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise OccError(f"{file}: the weights are already quantized ({method}); give the unquantized model.")
    return parse_config(file, fields)


def parse_config(file: Path, fields: dict[str, Any]) -> ModelConfig:
    """Architecture that the fields of ``file`` describe.

    Raises:
        OccError: another family, or a field with an impossible value.
    """
    try:
        return ModelConfig.from_hf(fields)
    except OccError as error:
        raise OccError(f"{file}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise OccError(f"{file}: a field has an impossible value ({reason}); download the file again.") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        OccError: it holds anything else.
    """
    try:
        fields = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise OccError(f"{file}: not valid JSON ({error}); download it again.") from error
    if not isinstance(fields, dict):
        raise OccError(f"{file}: holds no JSON object; download it again.")
    return fields


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory: one, or the shards that its index names.

    Raises:
        OccError: there are none, or the index names a file that is not there.
    """
    index = directory / WEIGHTS_INDEX
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if index.is_file():
        return _sharded(directory, index)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise OccError(
            f"{directory}: only pickled weights; convert them with transformers "
            "(from_pretrained, then save_pretrained writes safetensors)."
        )
    raise OccError(f"{directory}: neither {WEIGHTS} nor {WEIGHTS_INDEX}; download the weights.")


def _sharded(directory: Path, index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise OccError(f"{index}: no weight_map; download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise OccError(f"{index}: names a shard outside its own directory ({name}); download it again.")
        if not (directory / name).is_file():
            raise OccError(f"{directory / name}: no such file, but {index.name} names it; download the missing shard.")
    return [directory / name for name in names]


def _stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, (dtype, shape) in read_safetensors_header(file).items():
            if dtype not in _FLOATS:
                raise OccError(
                    f"{file}: tensor {name} is stored as {dtype}; convert it to float16, bfloat16 or float32."
                )
            read = functools.partial(_read_tensor, file, name)
            tensors[name] = StoredTensor(file=file, shape=shape, read=read)
    return tensors


def read_safetensors_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (safetensors dtype, shape) of a file; the package checks that the file is whole.

    Raises:
        OccError: the file is truncated or no safetensors file.
    """
    with _opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  not a mapping
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _read_tensor(file: Path, name: str) -> np.ndarray:
    # Opened anew every time: a mapping that stays open would keep the pages of every tensor read in memory.
    with _opened(file) as tensors:
        return tensors.get_tensor(name)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise OccError(f"{file}: not a complete safetensors file ({error}); download it again.") from error
