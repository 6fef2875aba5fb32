"""What a user chooses about a compression; everything else follows from the model and the text."""

import dataclasses
from pathlib import Path
from typing import Literal

from occ_jax.quantization.hessian import DAMPING

from ..coordinates import CoordinateName
from ..errors import OccError
from ..stored_coordinates import require_file
from .targets import Goal, Kind

GOALS: tuple[Kind, ...] = ("bits", "bytes", "kl", "step")
STATES = (1, 4, 8, 16, 32, 64, 128, 256)

LOW_RATE = 3.0
"""Bits per weight below which finishing is worth its time and feedback along the outputs has been seen to pay."""

LOW_RATE_KL = 0.08
"""Divergence that about as many bits leave of SmolLM2-135M, nats per token: ``auto`` goes by it under ``--kl``."""

Choice = Literal["auto", "always", "never"]


def decide(choice: Choice, *, low_rate: bool) -> bool:
    """What a choice comes to where it is for low rates.

    Example:
        >>> decide("auto", low_rate=True), decide("auto", low_rate=False), decide("always", low_rate=False)
        (True, False, True)
    """
    return choice == "always" or (choice == "auto" and low_rate)


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
    twice that of 8, finishing apart."""
    feedback: bool = True
    """Let later weights make up for the rounding errors of earlier ones (GPTQ, LDLQ)."""
    output_feedback: Choice = "auto"
    """Let later rows, too, make up for the errors of earlier ones, by what the gradients of a layer's outputs have in
    common; auto does so at low rates: below 3 --bits, as many of all weights in --bytes, above a --kl of 0.08."""
    embedding_bits: int | None = None
    """Hold the embedding (and a head of its own) in integers of this width, groups of 64, as others do; by default
    they follow the same dial as everything else, and take fewer bytes at equal quality."""
    damping: float = DAMPING
    """Share of the mean diagonal that is added to the second moment of every layer's inputs."""
    sequential: bool = False
    """Quantize block after block, each with the inputs that the quantized ones before it produce."""
    correct_sensitivity: bool = False
    """Quantize once beforehand, measure what the errors of each group of layers really cost, and move its steps."""
    finish: Choice = "auto"
    """Tune norm gains and row scales to the original's predictions afterwards; auto does so at low rates."""
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

    def decided(self, num_weights: int) -> "Settings":
        """The same settings with nothing left to ``auto``.

        Args:
            num_weights: of the model's matrices.

        Example:
            >>> Settings(bytes=30_000_000).decided(134_000_000).finish
            'always'
        """
        goal, low_rate = self.goal, False  # whoever gives a step knows what it comes to, and says the rest, too
        match goal.kind:
            case "bits":
                low_rate = goal.value < LOW_RATE
            case "bytes":
                low_rate = 8 * goal.value < LOW_RATE * num_weights
            case "kl":
                low_rate = goal.value > LOW_RATE_KL
        finishes, feeds = (decide(c, low_rate=low_rate) for c in (self.finish, self.output_feedback))
        return dataclasses.replace(
            self,
            finish="always" if finishes else "never",
            output_feedback="always" if feeds and self.feedback else "never",
        )

    @property
    def feeds_rows(self) -> bool:
        """Whether later rows make up for the errors of earlier ones; ask after :meth:`decided`."""
        return self.output_feedback == "always"

    @property
    def quantizer(self) -> str:
        """Name of the quantizer in tables."""
        return "scalar" if self.states == 1 else f"trellis {self.states}"
