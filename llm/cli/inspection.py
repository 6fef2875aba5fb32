"""``occ inspect`` and ``occ models``: what a compressed file holds, and which models have a name."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ..checkpoints.compressed import CONTAINER
from ..checkpoints.named import NAMED_MODELS
from ..compression import measure_sizes
from ..errors import OccError
from ..stored_coordinates import holds_transforms
from .learn import show_transforms
from .terminal import Terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Account for every byte of a compressed file, or say what a file of `occ learn` holds."""

    path: Annotated[Path, tyro.conf.Positional]
    """A directory that `occ compress` wrote, the .occ.safetensors file in it, or a file that `occ learn` wrote."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Show the ledger; its lines add up to the size of the file."""
        terminal = Terminal(json_only=self.json)
        file = self.path / CONTAINER if self.path.is_dir() else self.path
        if not file.is_file():
            raise OccError(f"{file}: no such file; give a directory that `occ compress` wrote")
        if holds_transforms(file):
            show_transforms(terminal, file)
            return
        sizes = measure_sizes(file)
        rows = [(line, count, 100 * count / sizes.file_bytes) for line, count in sizes.ledger.items()]
        terminal.table(str(file), ("what", "bytes", "%"), [*rows, ("file", sizes.file_bytes, 100.0)])
        bits = (sizes.linear_bits_per_weight, sizes.file_bits_per_weight)
        terminal.table("bits per weight", ("linear layers", "whole file"), [bits])
        terminal.result(sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that have a name."""

    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Show names, descriptions and licenses."""
        terminal = Terminal(json_only=self.json)
        rows = [(m.name, m.description, m.license, "network" if m.needs_network else "") for m in NAMED_MODELS.values()]
        terminal.table("models", ("name", "what", "license", "needs"), rows)
        names = {m.name: {"description": m.description, "license": m.license} for m in NAMED_MODELS.values()}
        terminal.result({"models": names})
