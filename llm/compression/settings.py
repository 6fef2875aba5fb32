"""What a user chooses about a compression; everything else follows from the model and the text."""

import dataclasses
from pathlib import Path
from typing import Literal

from ..coordinates import CoordinateName
from ..errors import OccError
from ..stored_coordinates import require_file
from .targets import Goal, Kind

GOALS: tuple[Kind, ...] = ("bits", "bytes", "kl", "step")
STATES = (1, 4, 8, 16, 32, 64, 128, 256)

OUTPUTS_BELOW = 3.0
"""Bits per linear weight below which feedback along the outputs has been seen to pay."""

Choice = Literal["auto", "always", "never"]


def feeds_rows(choice: Choice, bits: float | None) -> bool:
    """Whether later rows make up for the errors of earlier ones in a file of so many bits per linear weight.

    Example:
        >>> feeds_rows("auto", 2.0), feeds_rows("auto", None), feeds_rows("always", 4.0)
        (True, False, True)
    """
    return choice == "always" or (choice == "auto" and bits is not None and bits < OUTPUTS_BELOW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one compression.

    Exactly one of ``bits``, ``bytes``, ``kl`` and ``step`` says how small, or how good, the file is to be.
    """

    bits: float | None = None
    """Bits per weight of the linear layers, all their side information included."""
    bytes: int | None = None
    """Bytes of the whole file."""
    kl: float | None = None
    """Divergence from the original on calibration text that is held back, nats per token."""
    step: float | None = None
    """The global quantization step itself (in units in which every error costs the same): smaller is finer."""
    coordinates: CoordinateName = "identity"
    """Basis of the residual stream, fused into the network; `learned` are those of --transforms."""
    transforms: Path | None = None
    """Transforms that `occ learn` wrote for this model."""
    states: int = 32
    """States of the trellis; 1 is scalar quantization. More are slower and better: 8 take twice the time of 1, and 32
    two and a half times that of 8, finishing apart."""
    feedback: bool = True
    """Let later weights make up for the rounding errors of earlier ones (GPTQ, LDLQ)."""
    output_feedback: Choice = "auto"
    """Let later rows, too, make up for the errors of earlier ones, by what the gradients of a layer's outputs have in
    common; auto does so where --bits asks for less than 3, and the other feedback is on."""
    embedding_bits: int | None = None
    """Hold the embedding (and a head of its own) in integers of this width, groups of 64, as others do; by default
    they follow the same dial as everything else, and take fewer bytes at equal quality."""
    damping: float = 0.01
    """Share of the mean diagonal that is added to every second moment."""
    sequential: bool = False
    """Quantize block after block, each with the inputs that the quantized ones before it produce."""
    correct_sensitivity: bool = False
    """Quantize once beforehand, measure what the errors of each group of layers really cost, and move its steps."""
    finish: Choice = "auto"
    """Tune norm gains and row scales to the original's predictions afterwards; auto does so below 3 bits."""
    finish_steps: int = 48
    """Steps of that, one window of 512 tokens each."""
    seed: int = 0
    """Seed of random coordinates and of the labels that calibration draws."""

    def __post_init__(self) -> None:
        goals = [kind for kind in GOALS if getattr(self, kind) is not None]
        if len(goals) != 1:
            raise OccError("say how small the file is to be with one of --bits, --bytes, --kl and --step")
        if self.bits is not None and not 0 < self.bits <= 16:
            raise OccError(f"--bits {self.bits} is not a rate: choose a number above 0, up to 16")
        if self.bits is None and not 0 < self.goal.value < float("inf"):
            raise OccError(f"--{goals[0]} {self.goal.value} makes no sense: choose a positive number")
        if self.finish_steps < 1:
            raise OccError(f"--finish-steps {self.finish_steps} tunes nothing: choose 1 or more, or --finish never")
        if self.states not in STATES:
            raise OccError(f"--states {self.states} is not a trellis: choose one of {', '.join(map(str, STATES))}")
        require_file("--coordinates", learned=self.coordinates == "learned", given=self.transforms is not None)
        if self.embedding_bits is not None and not 2 <= self.embedding_bits <= 8:
            raise OccError(f"--embedding-bits {self.embedding_bits} is no width of integers: choose 2 to 8")
        if self.embedding_bits is not None and self.bytes is not None:
            raise OccError("--embedding-bits takes the embedding off the dial that --bytes turns: give --bits instead")
        if self.sequential and not self.feedback:
            raise OccError("--sequential renews the feedback, and --no-feedback leaves none: drop one of them")
        if not 0 < self.damping <= 1:
            raise OccError(f"--damping {self.damping} is out of range: choose a number above 0, up to 1")

    @property
    def goal(self) -> Goal:
        """The one number that the file has to have."""
        kind: Kind = next(kind for kind in GOALS if getattr(self, kind) is not None)
        return Goal(kind=kind, value=float(getattr(self, kind)))

    @property
    def feeds_rows(self) -> bool:
        """Whether later rows make up for the errors of earlier ones."""
        return self.feedback and feeds_rows(self.output_feedback, self.bits)

    @property
    def quantizer(self) -> str:
        """Name of the quantizer in tables."""
        return "scalar" if self.states == 1 else f"trellis {self.states}"
