"""What a user chooses about a compression; everything else follows from the model and the text."""

import dataclasses

from ..coordinates import CoordinateName
from ..errors import OccError

STATES = (1, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one compression.

    Exactly one of ``bits`` and ``step`` says how small the file is to be.
    """

    bits: float | None = None
    """Bits per weight of the linear layers, all their side information included."""
    step: float | None = None
    """The global quantization step itself (in units in which every error costs the same): smaller is finer."""
    coordinates: CoordinateName = "identity"
    """Basis of the residual stream, fused into the network."""
    states: int = 1
    """States of the trellis; 1 is scalar quantization. More are slower and better."""
    feedback: bool = True
    """Let later weights make up for the rounding errors of earlier ones (GPTQ, LDLQ)."""
    damping: float = 0.01
    """Share of the mean diagonal that is added to every second moment."""
    seed: int = 0
    """Seed of random coordinates and of the labels that calibration draws."""

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.step is None):
            raise OccError("say how small the file is to be with either --bits or --step")
        if self.bits is not None and not 0 < self.bits <= 16:
            raise OccError(f"--bits {self.bits} is not a rate: choose a number above 0, up to 16")
        if self.step is not None and not 0 < self.step < float("inf"):
            raise OccError(f"--step {self.step} is not a step: choose a positive number")
        if self.states not in STATES:
            raise OccError(f"--states {self.states} is not a trellis: choose one of {', '.join(map(str, STATES))}")
        if not 0 < self.damping <= 1:
            raise OccError(f"--damping {self.damping} is out of range: choose a number above 0, up to 1")

    @property
    def quantizer(self) -> str:
        """Name of the quantizer in tables."""
        return "scalar" if self.states == 1 else f"trellis {self.states}"
