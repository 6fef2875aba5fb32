"""Finished tensors on disk, so that an interrupted compression goes on where it stopped and ends in the same bytes."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

from occ_jax.codec import CodedTensor, FormatError, open_container, write_container
from occ_jax.quantization.codebook import Codebook, codebook_from_bytes, codebook_to_bytes

from ..calibration import Fingerprint
from ..checkpoints.named import cache_directory
from .allocation import Allocation
from .settings import Settings

_ALLOCATION = "allocation.json"


class Staging:
    """A directory that holds the allocation and the tensors of one compression until all of them are there.

    Args:
        directory: a place for this compression alone; see :func:`staging_directory`.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load_allocation(self) -> Allocation | None:
        """The allocation of an earlier attempt; ``None`` if it did not come so far."""
        try:
            fields = json.loads((self._directory / _ALLOCATION).read_text())
            codebook = codebook_from_bytes(bytes.fromhex(fields["codebook"]))
            return Allocation(step=float.fromhex(fields["step"]), codebook=codebook)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save_allocation(self, allocation: Allocation) -> None:
        """Keep an allocation; tensors of another one are forgotten."""
        for file in self._directory.glob("*.occ.safetensors"):
            file.unlink()
        fields = {"step": allocation.step.hex(), "codebook": codebook_to_bytes(allocation.codebook).hex()}
        aside = self._directory / f"{_ALLOCATION}.part"
        aside.write_text(json.dumps(fields))
        os.replace(aside, self._directory / _ALLOCATION)

    def load(self, name: str, codebook: Codebook) -> CodedTensor | None:
        """A finished tensor; ``None`` if there is none, or it is damaged."""
        try:
            with open_container(self._file(name)) as container:
                coded = container[name]
        except FormatError:
            return None
        return coded if coded.codebook is None else dataclasses.replace(coded, codebook=codebook)

    def save(self, name: str, coded: CodedTensor) -> None:
        """Keep a finished tensor."""
        write_container(self._file(name), {name: coded})

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.occ.safetensors"


def staging_directory(fingerprint: Fingerprint, settings: Settings) -> Path:
    """The place in the user's cache for one compression: named by everything that determines its result."""
    identity = json.dumps([fingerprint.digest, dataclasses.asdict(settings), 1], sort_keys=True)
    return cache_directory() / "unfinished" / hashlib.sha256(identity.encode()).hexdigest()[:32]
