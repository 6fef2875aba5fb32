"""From what a user types to a checkpoint: a name, a path or a hub id."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OccError
from .base import Checkpoint
from .compressed import is_compressed_directory, read_compressed_directory
from .gguf import is_gguf_file, read_gguf_file
from .hf import read_hf_directory
from .hub import fetch_from_hub, parse_hub_id
from .named import NAMED_MODELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A format of models on disk.

    Attributes:
        format: what to call it in an error.
        matches: whether a path that exists is in this format; looks no further than it must.
        read: opens the path, or raises :class:`~occ_llm.errors.OccError` saying what is wrong with it.
    """

    format: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]


READERS: tuple[Reader, ...] = (
    Reader(format="compressed directory", matches=is_compressed_directory, read=read_compressed_directory),
    Reader(format="GGUF file", matches=is_gguf_file, read=read_gguf_file),
    Reader(format="Hugging Face directory", matches=Path.is_dir, read=read_hf_directory),
)
"""The formats, most specific first: the first that matches reads."""


def load_checkpoint(source: str | Path, *, readers: Sequence[Reader] = READERS) -> Checkpoint:
    """Open a model. Weights are read later, tensor by tensor, when they are asked for.

    ``source`` is, in this order,

    1. a name (``tiny``, ``smollm2-135m-q4_1``; write ``./tiny`` for a directory of that name),
    2. the path of a Hugging Face directory, of a ``.gguf`` file, or of a directory that ``occ compress`` wrote,
    3. a hub id, ``organisation/name`` or ``organisation/name@revision``.

    Args:
        source: what the user typed.
        readers: the formats on disk, first match wins.

    Raises:
        OccError: nothing of that name, or the model cannot be opened; the message says why and what to do.
    """
    if isinstance(source, str) and source in NAMED_MODELS:
        return NAMED_MODELS[source].load()
    path = Path(source).expanduser()
    if path.exists():
        return read_path(path, readers)
    hub_id = parse_hub_id(str(source))
    if hub_id is None or path.suffix in (".gguf", ".safetensors"):
        raise OccError(
            f"{source}: no such file or directory; give a path, a hub id such as HuggingFaceTB/SmolLM2-135M, "
            f"or one of {', '.join(NAMED_MODELS)}."
        )
    checkpoint = read_path(fetch_from_hub(*hub_id), readers)
    return dataclasses.replace(checkpoint, name=hub_id[0].rpartition("/")[2])


def read_path(path: Path, readers: Sequence[Reader] = READERS) -> Checkpoint:
    """Open a model on disk with the first reader that knows its format.

    Raises:
        OccError: no reader does, or the model cannot be opened.
    """
    for reader in readers:
        if reader.matches(path):
            return reader.read(path)
    formats = " or a ".join(reader.format for reader in readers)
    raise OccError(f"{path}: not a model; give a {formats}.")
