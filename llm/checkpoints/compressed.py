"""The directory that ``occ compress`` writes, read back as an ordinary checkpoint."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from occ_jax.codec import Container, decode_tensors, decode_transform, open_container

from ..config import ModelConfig
from ..coordinates import HEAD_MIX, dense_network, head_mix
from ..errors import OccError
from ..folding import folded_gains
from ..roles import FINAL_NORM
from ..weights import DerivedWeights, Weights
from .base import Checkpoint
from .hf import CONFIG, parse_config, read_json_object
from .layout import check_layout, tensor_shapes
from .tokenizer_files import check_vocabulary, load_tokenizer, read_tokenizer_files

CONTAINER = "model.occ.safetensors"
"""Name of the file that holds the weights."""

BASIS = "model.norm.basis"
"""Basis of the residual stream, stored where a tied head needs it to apply the gain of the final norm."""

QUANT_METHOD = "occ"
"""What ``config.json`` says under ``quantization_config.quant_method``."""

GROUP_WEIGHTS = 1 << 25
"""Weights that are decoded together: enough lanes for the decoder to be fast, at 4 bytes each while they are in use."""


def is_compressed_directory(path: Path) -> bool:
    """Whether ``path`` is a directory that ``occ compress`` wrote."""
    return (path / CONTAINER).is_file()


class CompressedWeights(Weights):
    """Weights of a container, decoded when they are asked for.

    Neighbours are decoded together and the last such group is kept: reading in the order of the network decodes
    every tensor once and holds :data:`GROUP_WEIGHTS` weights (or one tensor, if it is larger).
    """

    def __init__(self, container: Container, names: tuple[str, ...]):
        self._container = container
        self._names = names
        self._groups = tuple(_groups(container, names))
        self._group_of = {name: index for index, group in enumerate(self._groups) for name in group}
        self._current: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __getitem__(self, name: str) -> np.ndarray:
        index = self._group_of[name]
        current = self._current
        if current[0] != index:
            self._current = current = (-1, {})  # let go before the next group is made
            names = self._groups[index]
            arrays = decode_tensors([self._container[n] for n in names])
            self._current = current = (index, dict(zip(names, arrays, strict=True)))
        return current[1][name]

    def __contains__(self, name: object) -> bool:
        return name in self._group_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_compressed_directory(path: Path) -> Checkpoint:
    """Open a compressed model; nothing is decoded before a weight is asked for.

    The checkpoint is the dense network: unit gains where norms were folded and not tuned afterwards, and a head of
    its own where the coordinates ask for one.

    Raises:
        OccError, FormatError: a file is missing or damaged, or the container and ``config.json`` disagree.
    """
    file = path / CONTAINER
    config = read_compressed_config(path)
    files = read_tokenizer_files(path)
    tokenizer = load_tokenizer(files, str(path))
    check_vocabulary(tokenizer, config.vocab_size, str(path))
    container = open_container(file)
    gains = tuple(name for name in folded_gains(config) if name in container)
    expected = stored_shapes(config, gains=gains, basis=BASIS in container)
    check_layout(expected, {name: container.header.tensors[name].shape for name in container}, str(file))
    tensors = tuple(name for name in expected if name != BASIS)
    weights = DerivedWeights(CompressedWeights(container, tensors), _unit_gains(config, without=gains))
    if BASIS in container:
        basis = decode_transform(container[BASIS])
        mix = {HEAD_MIX: lambda source: head_mix(basis, source[FINAL_NORM])}
        weights = DerivedWeights(weights, mix, without=frozenset({FINAL_NORM}))
    config, weights = dense_network(config, weights)
    return Checkpoint(
        name=path.resolve().name, config=config, weights=weights, tokenizer=tokenizer, tokenizer_files=files, path=path
    )


def read_compressed_config(directory: Path) -> ModelConfig:
    """Architecture of the original network, from the ``config.json`` of a compressed one.

    Raises:
        OccError: it is damaged, or says that the weights are in another format.
    """
    file = directory / CONFIG
    fields = read_json_object(file)
    quantization = fields.pop("quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method != QUANT_METHOD:
        raise OccError(f"{file}: quant_method is {method!r}, expected {QUANT_METHOD!r}; compress the model again.")
    return parse_config(file, fields)


def stored_shapes(config: ModelConfig, *, gains: tuple[str, ...], basis: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a container, in the order of the network.

    Args:
        config: architecture.
        gains: the folded gains that are stored, as fine-tuning has moved them away from one.
        basis: whether the basis of the residual stream is stored.
    """
    ones = {*folded_gains(config)} - {*gains}
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if name not in ones}
    return shapes | ({BASIS: (config.hidden_size,)} if basis else {})


def _unit_gains(config: ModelConfig, *, without: tuple[str, ...]) -> dict[str, Callable[[Weights], np.ndarray]]:
    ones = np.ones(config.hidden_size, np.float32)
    return {name: lambda source: ones for name in folded_gains(config) if name not in without}


def _groups(container: Container, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    size = 0
    for name in names:
        weights = int(np.prod(container.header.tensors[name].shape))
        if group and size + weights > GROUP_WEIGHTS:
            yield tuple(group)
            group, size = [], 0
        group.append(name)
        size += weights
    if group:
        yield tuple(group)
