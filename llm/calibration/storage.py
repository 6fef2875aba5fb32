"""Statistics on disk: one safetensors file, written tensor by tensor as they are finished, read lazily."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from safetensors import SafetensorError, safe_open

from ..checkpoints.atomic import atomic_file
from ..config import ModelConfig
from ..errors import OccError
from ..weights import Weights
from .fingerprint import Fingerprint
from .statistics import TOKEN_COUNTS, Statistics, statistic_shapes

FORMAT = "occ_jax calibration"
VERSION = 2

_SAFETENSORS: Mapping[str, str] = {"float32": "F32", "float64": "F64", "int64": "I64"}


class StoredStatistics(Weights):
    """The tensors of a statistics file, each read when it is asked for.

    Args:
        path: a file that :func:`load_statistics` has checked.
        names: what it holds.
    """

    def __init__(self, path: Path, names: tuple[str, ...]):
        self._path = path
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with _opened(self._path) as file:
            return file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the default of Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_statistics(path: Path, statistics: Statistics, *, force: bool = False) -> None:
    """Write statistics as one file, one tensor in memory at a time; the file appears whole or not at all.

    Raises:
        OccError: ``path`` exists (without ``force``) or cannot be written.
    """
    dtype = next(w.dtype for name, w in statistics.tensors.items() if name != TOKEN_COUNTS)
    about: dict[str, Any] = {"fisher": statistics.has_fisher, "dtype": dtype}
    about |= {name: getattr(statistics, name) for name in ("config", "num_tokens", "fingerprint")}
    with atomic_file(path, force=force) as aside, statistics_writer(aside, **about) as write:
        for name in statistics.tensors:
            write(name, statistics.tensors[name])


@contextlib.contextmanager
def statistics_writer(
    path: Path,
    *,
    config: ModelConfig,
    num_tokens: int,
    fingerprint: Fingerprint,
    fisher: bool,
    dtype: np.dtype,
    written: Collection[str] = (),
) -> Iterator["StatisticsWriter"]:
    """A writer into a new file at ``path``, or into one that an earlier writer has begun.

    Args:
        path: a place that nobody reads before the end.
        config, num_tokens, fingerprint: of the statistics.
        fisher: whether there will be a Fisher.
        dtype: of all but the counts.
        written: statistics that the file holds already.

    Raises:
        ValueError: one is missing at the end.
    """
    shapes = statistic_shapes(config, fisher=fisher)
    dtypes = {name: np.dtype(np.int64) if name == TOKEN_COUNTS else np.dtype(dtype) for name in shapes}
    header, starts = _header(shapes, dtypes, _metadata(config, num_tokens, fingerprint))
    with open(path, "r+b" if written else "wb") as stream:
        if not written:
            stream.write(header)
        writer = StatisticsWriter(stream, shapes, dtypes, starts, written)
        yield writer
        if missing := writer.missing:
            raise ValueError(f"{path}: {len(missing)} statistics were never written, the first is {missing[0]}")


@final
class StatisticsWriter:
    """Puts statistics to their places in a file, in any order: ``write(name, array)``, once for each.

    All shapes are known beforehand, so the header is written first.

    Args:
        stream: the file, with its header.
        shapes, dtypes, starts: of all statistics, by name.
        written: those that the file holds already.
    """

    def __init__(
        self,
        stream: BinaryIO,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, np.dtype],
        starts: Mapping[str, int],
        written: Collection[str],
    ):
        self._stream, self._shapes, self._dtypes, self._starts = stream, shapes, dtypes, starts
        self._written = set(written)

    @property
    def written(self) -> list[str]:
        """Names of what is in the file."""
        return sorted(self._written)

    @property
    def missing(self) -> list[str]:
        """Names of what remains to be written."""
        return [name for name in self._shapes if name not in self._written]

    def __call__(self, name: str, array: np.ndarray) -> None:
        """Write a statistic.

        Raises:
            ValueError: it has a wrong name, shape or dtype, or has been written before.
        """
        known = name not in self._written and self._shapes.get(name) == array.shape
        if not known or array.dtype != self._dtypes[name]:
            raise ValueError(f"{name} {array.shape} {array.dtype}: not a statistic that remains to be written")
        self._stream.seek(self._starts[name])
        self._stream.write(np.ascontiguousarray(array).view(np.uint8).data)
        self._written.add(name)

    def flush(self) -> None:
        """What was written is on the disk, should the process or the machine end here."""
        self._stream.flush()
        os.fsync(self._stream.fileno())


def load_statistics(path: Path) -> Statistics:
    """Open a statistics file; tensors are read when they are asked for.

    Raises:
        OccError: no such file, not a statistics file, truncated, or of a newer format version.
    """
    path = Path(path)
    if path.is_dir():
        raise OccError(f"{path} is a directory; statistics are one file.")
    if not path.is_file():
        raise OccError(f"{path}: no such statistics file; make it with occ calibrate.")
    with _opened(path) as file:
        metadata, names = file.metadata() or {}, tuple(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    if metadata.get("format") != FORMAT:
        raise OccError(f"{path}: holds no calibration statistics; make them with occ calibrate.")
    if metadata.get("version") != str(VERSION):
        raise OccError(
            f"{path}: has format version {metadata.get('version')}, this program reads {VERSION}: "
            "collect it again with occ calibrate, or update the program."
        )
    config = ModelConfig.from_hf(json.loads(metadata["config"]))
    statistics = Statistics(
        config=config,
        tensors=StoredStatistics(path, names),
        num_tokens=int(metadata["num_tokens"]),
        fingerprint=Fingerprint(**json.loads(metadata["fingerprint"])),
    )
    if shapes != statistic_shapes(config, fisher=statistics.has_fisher):
        raise OccError(f"{path}: some statistics of the model are missing or have another shape; calibrate again.")
    return statistics


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise OccError(f"{path}: is damaged or not a safetensors file ({error}); calibrate again.") from error


def _metadata(config: ModelConfig, num_tokens: int, fingerprint: Fingerprint) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(config.to_hf()),
        "num_tokens": str(num_tokens),
        "fingerprint": json.dumps(dataclasses.asdict(fingerprint)),
    }


def _header(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Header of a safetensors file and the position in the file of every tensor."""
    sizes = [math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()]
    ends = list(itertools.accumulate(sizes))
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True):
        fields[name] = {
            "dtype": _SAFETENSORS[dtypes[name].name],
            "shape": list(shape),
            "data_offsets": [end - size, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    starts = {name: begin + end - size for name, size, end in zip(shapes, sizes, ends, strict=True)}
    return len(text).to_bytes(8, "little") + text, starts
