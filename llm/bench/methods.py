"""A method of the bench: coordinates and a quantizer, and the file that they make of a model."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

from ..calibration import Statistics
from ..checkpoints import Checkpoint
from ..compression import CalibrationTokens, Settings, Sizes, Survey, compress, survey
from ..coordinates import CoordinateName
from ..parallel import Track, untracked
from .integers import EMBEDDING_BITS, compress_integers

QuantizerName = Literal[
    "int-rtn-64",
    "int-rtn-128",
    "int-gptq-64",
    "int-gptq-128",
    "int-rtn-128-clipped",
    "int-gptq-64-clipped",
    "int-gptq-128-clipped",
    "scalar-rtn",
    "scalar",
    "trellis-8",
    "trellis-8-finished",
    "trellis-8-outputs",
    "trellis-8-outputs-finished",
    "trellis-8-embedding-int8",
    "trellis-8-sequential",
    "trellis-8-sequential-finished",
    "trellis-8-corrected",
    "trellis-8-corrected-finished",
    "trellis-32",
    "trellis-32-outputs-finished",
    "trellis-256",
]

EXTRAS = ("clipped", "outputs", "corrected", "sequential", "finished")
"""Words of a quantizer's name for what is done beside quantization."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Coordinates and a quantizer.

    Attributes:
        coordinates: name of the coordinates.
        quantizer: ``int-rtn-G`` are asymmetric integers with a float16 scale for each group of G, rounded to the
            nearest; ``int-gptq-G`` the same with feedback; ``clipped`` ones search for the range of each group instead
            of taking all of it; ``scalar`` and ``trellis-S`` are entropy-coded with feedback, ``scalar-rtn`` without.
            Words behind them turn on what else there is: feedback along the ``outputs`` too, ``finished`` row scales
            and gains, blocks in ``sequential`` order, and a sensitivity ``corrected`` by measured slopes. With
            ``embedding-int8`` the embedding is held in 8 bits instead of being coded under the same dial.
        seed: of random coordinates.
        transforms: file of ``learned`` coordinates.
    """

    coordinates: CoordinateName
    quantizer: QuantizerName
    seed: int = 0
    transforms: Path | None = None

    @property
    def place(self) -> str:
        """Name of the coordinates in tables."""
        if self.transforms is not None:
            return f"{self.coordinates} ({self.transforms.stem})"
        return f"{self.coordinates} {self.seed}" if self.seed else self.coordinates

    @property
    def is_integer(self) -> bool:
        """Whether indices have a fixed width and are not entropy-coded."""
        return self.quantizer.startswith("int-")

    @property
    def feedback(self) -> bool:
        """Whether later weights make up for the rounding errors of earlier ones."""
        return "rtn" not in self.quantizer

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale, of integers."""
        return self._number if self.is_integer else None

    @property
    def states(self) -> int | None:
        """States of the trellis, of what is entropy-coded; 1 is scalar."""
        return None if self.is_integer else self._number

    @property
    def _number(self) -> int:
        numbers = [int(part) for part in self.quantizer.split("-") if part.isdigit()]
        return numbers[0] if numbers else 1

    @property
    def extras(self) -> tuple[str, ...]:
        """What is done beside quantization, in the order in which it is done."""
        return tuple(word for word in EXTRAS if word in self.quantizer.split("-"))

    @property
    def embedding_bits(self) -> int | None:
        """Width of the integers of the embedding, if it is not coded like the linear layers."""
        return EMBEDDING_BITS if "embedding-int8" in self.quantizer else None

    @property
    def label(self) -> str:
        """Name of the quantizer in tables; whether it has feedback is said beside it."""
        if self.is_integer:
            name = f"integers, groups of {self.group_size}"
        else:
            name = "scalar" if self.states == 1 else f"trellis {self.states}"
            name = f"{name}, embedding in 8 bits" if self.embedding_bits else name
        return ", ".join((name, *self.extras))


class Surveys(contextlib.AbstractContextManager):
    """The last survey of a model, used again as long as it serves."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._kept: Survey | None = None

    def of(self, checkpoint: Checkpoint, statistics: Statistics, settings: Settings, track: Track) -> Survey:
        """The survey for these settings."""
        if self._kept is None or not self._kept.serves(settings):
            self._kept = None  # also if the next one cannot be made
            self._stack.close()
            self._kept = self._stack.enter_context(survey(checkpoint, statistics, settings, track=track))
        return self._kept

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def make_file(
    method: Method,
    rate: float,
    checkpoint: Checkpoint,
    out: Path,
    statistics: Statistics,
    *,
    tokens: CalibrationTokens | None = None,
    surveys: Surveys | None = None,
    transform_bits: float = 0.0,
    track: Track = untracked,
) -> tuple[Sizes, float]:
    """Compress a model by a method into a directory that any reader of this project opens.

    Args:
        method: how.
        rate: width of the integers, or bits per weight of the linear layers, all side information but stored
            transforms included.
        checkpoint: the model.
        out: directory to write.
        statistics: of the folded network in original coordinates.
        tokens: calibration text for what runs it through the network again.
        surveys: of this model, kept from file to file.
        transform_bits: bits per linear weight that stored transforms take, on top of ``rate``.
        track: shows progress.

    Returns:
        Sizes of the file, stored transforms counted, and the wall time.

    Raises:
        OccError: the method cannot make such a file.
    """
    if method.group_size is not None:
        return compress_integers(
            checkpoint,
            out,
            statistics,
            method.coordinates,
            seed=method.seed,
            transforms=method.transforms,
            bits=int(rate),
            group_size=method.group_size,
            feedback=method.feedback,
            clip="clipped" in method.extras,
            track=track,
        )
    assert method.states is not None
    settings = Settings(
        bits=rate + transform_bits,
        coordinates=method.coordinates,
        transforms=method.transforms,
        seed=method.seed,
        states=method.states,
        feedback=method.feedback,
        output_feedback="always" if "outputs" in method.extras else "never",
        embedding_bits=method.embedding_bits,
        correct_sensitivity="corrected" in method.extras,
        sequential="sequential" in method.extras,
        finish="always" if "finished" in method.extras else "never",
    )
    surveyed = None if surveys is None else surveys.of(checkpoint, statistics, settings, track)
    made = compress(checkpoint, out, statistics, settings, tokens=tokens, surveyed=surveyed, track=track)
    return made.sizes, made.seconds
