"""Finished work on disk, so that an interrupted compression goes on where it stopped and ends in the same bytes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from occ_jax.codec import CodedTensor, FormatError, open_container, write_container
from occ_jax.quantization.codebook import Codebook, codebook_from_bytes, codebook_to_bytes

from ..calibration import Fingerprint
from ..checkpoints.named import sha256_of
from .allocation import Allocation
from .settings import Settings

_PROCEDURE = 12  # part of the name of a compression: to be raised when the same settings make another file


class Staging:
    """A directory that holds what one compression has found out until its file is written.

    These are the allocations that were asked for, what files at earlier steps have measured, the finished tensors of
    the file that is being made, and how far its tuning has come.

    Args:
        directory: a place for this compression alone; a :func:`~occ_llm.scratch.claimed` one.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def allocation(self, key: str, make: Callable[[], Allocation]) -> Allocation:
        """The allocation that an earlier attempt made under this key, or the one that ``make`` makes now."""
        file = self._directory / f"allocation-{key}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            fields = json.loads(file.read_text())
            return Allocation(
                step=float.fromhex(fields["step"]),
                codebook=codebook_from_bytes(bytes.fromhex(fields["codebook"])),
                linear_bits=float.fromhex(fields["linear_bits"]),
                class_bits=np.array([float.fromhex(bits) for bits in fields["class_bits"]]),
                excess=float.fromhex(fields["excess"]),
            )
        made = make()
        self._replace(file, _fields(made))
        return made

    def measured(self, step: float, measure: Callable[[], float]) -> float:
        """What the file at a step measured in an earlier attempt, or what ``measure`` finds now."""
        return self.series(step.hex(), lambda: [measure()])[0]

    def series(self, key: str, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """Numbers that an earlier attempt measured under this key, or those that ``measure`` finds now."""
        file = self._directory / "measured.json"
        known: dict[str, list[float]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(file.read_text())
        if key not in known:
            known[key] = list(measure())
            self._replace(file, known)
        return tuple(known[key])

    def finishing(self, step: float) -> Path:
        """Where the tuning of the file at a step keeps how far it has come."""
        return self._directory / f"finishing-{step.hex()}.safetensors"

    def part(self, name: str) -> "Staging":
        """A place of its own for work that comes before this one's; it goes with it."""
        return Staging(self._directory / name)

    def begin(self, step: float) -> None:
        """Forget finished tensors of files at other steps."""
        place = self._tensors(step)
        for other in self._directory.glob("tensors-*"):
            if other != place:
                shutil.rmtree(other)
        place.mkdir(exist_ok=True)

    def tensors(
        self,
        step: float,
        names: Sequence[str],
        codebook: Codebook,
        make: Callable[[Sequence[str]], Mapping[str, CodedTensor]],
    ) -> dict[str, CodedTensor]:
        """Some tensors of the file at a step that has begun: those that are finished, and what ``make`` makes now."""
        found = {name: coded for name in names if (coded := self._load(step, name, codebook)) is not None}
        made = make([name for name in names if name not in found])
        for name, coded in made.items():
            write_container(self._file(step, name), {name: coded})
        return {**found, **made}

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _tensors(self, step: float) -> Path:
        return self._directory / f"tensors-{step.hex()}"

    def _file(self, step: float, name: str) -> Path:
        return self._tensors(step) / f"{name}.occ.safetensors"

    def _load(self, step: float, name: str, codebook: Codebook) -> CodedTensor | None:
        try:
            with open_container(self._file(step, name)) as container:
                coded = container[name]
        except FormatError:
            return None
        return coded if coded.codebook is None else dataclasses.replace(coded, codebook=codebook)

    def _replace(self, file: Path, fields: dict[str, Any]) -> None:
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(fields))
        os.replace(aside, file)


def staging_name(
    fingerprint: Fingerprint,
    settings: Settings,
    *tokens: Int[np.ndarray, "..."] | None,
    near: Allocation | None = None,
) -> str:
    """What the place of one compression in the user's cache is called: by everything that determines its result.

    Args:
        fingerprint: of the model and the text behind the statistics.
        settings: of the compression.
        tokens: other text that the compression sees.
        near: allocation from which its search starts.
    """
    seen = [None if array is None else hashlib.sha256(array.astype("<i4").tobytes()).hexdigest() for array in tokens]
    chosen = dataclasses.asdict(settings)
    if (learned := chosen.pop("transforms")) is not None:
        chosen["transforms"] = sha256_of(learned) if learned.is_file() else str(learned)
    identity = json.dumps([fingerprint.digest, chosen, seen, near and _fields(near), _PROCEDURE], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _fields(allocation: Allocation) -> dict[str, Any]:
    """An allocation as JSON, exactly."""
    return {
        "step": allocation.step.hex(),
        "codebook": codebook_to_bytes(allocation.codebook).hex(),
        "linear_bits": allocation.linear_bits.hex(),
        "class_bits": [float(bits).hex() for bits in allocation.class_bits],
        "excess": float(allocation.excess).hex(),
    }
