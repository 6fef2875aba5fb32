"""What a user chooses about learned coordinates."""

import dataclasses
from typing import Literal

from occ_jax.quantization.hessian import DAMPING

from ..compression.settings import LOW_RATE, Choice, decide
from ..errors import OccError
from .losses import FITTED_RATES, Integers, RateName
from .placements import SCALINGS, Placement
from .structures import Structure

ObjectiveName = Literal["scales", "int", "kl", "kl-coded"]
InitName = Literal["identity", "hadamard", "random", "klt", "learned"]

_BITS: dict[ObjectiveName, float] = {"scales": 2.0, "int": 3.0, "kl": 3.0, "kl-coded": 2.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """Settings of one training."""

    objective: ObjectiveName = "scales"
    """`scales`: rate of the entropy coder, layer by layer. `int`: error of integers with shared scales, layer by layer.
    `kl`: divergence of the network with such integers. `kl-coded`: rate and divergence under entropy coding."""
    rate: RateName = "field"
    """With `scales`, the code length: `field` is a closed form at high rate, `water` one that knows the water level at
    --bits, the others are fitted densities with noise."""
    temperature: float | None = None
    """With a fitted density, soft rounding instead of plain noise: from 1 down to this over the training. Noise
    overestimates rates below 2 bits; 0.1 is nearly rounding."""
    bits: float | None = None
    """Width of the integers (3), or bits per weight of the entropy coder where it matters (2)."""
    group_size: int = 128
    """Integers that share a scale."""
    feedback: bool = True
    """With integers, whether later weights will make up for the rounding errors of earlier ones (GPTQ)."""
    output_feedback: Choice = "auto"
    """With `scales`, whether the file will have feedback along the outputs, as `occ compress --output-feedback` says:
    the Fisher information then drops out of every rotation. `auto` is on below 3 bits, as it is there."""
    clip: bool = False
    """With integers, whether each group will have the part of its range that makes the smallest error (needed at 2)."""
    placements: tuple[Placement, ...] = ()
    """Where to learn; by default all places that cost nothing in the file."""
    structure: Structure = "butterfly"
    """Of the rotations that are stored with matrices (attention-inputs, o-inputs, mlp-inputs, hidden)."""
    init: InitName = "identity"
    """Coordinates in which training begins; `learned` ones are read from --transforms, and go on being trained."""
    steps: int | None = None
    """Steps of Adam; 200 layer by layer, 80 end to end, where each takes longer."""
    learning_rate: float = 0.003
    """At the beginning; falls to zero along a cosine."""
    window: int = 512
    """Tokens of a window, with the divergence."""
    batch: int = 1
    """Windows of a step, with the divergence. Matrices are moved and quantized once for all of them."""
    refresh: int = 8
    """End to end with integers, steps for which ranges and feedback stay as they were found: they change slowly."""
    row_share: float = 0.25
    """Share of the rows of every matrix that a step looks at layer by layer, drawn anew for each; at least 128."""
    block_share: float = 0.25
    """Share of the blocks that a step looks at layer by layer, likewise; at least 4."""
    damping: float = DAMPING
    """Share of the mean diagonal that is added to every second moment."""
    seed: int = 0
    """Seed of random coordinates, of noise, and of the labels that calibration draws."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise OccError(f"--steps {self.steps} learns nothing: choose 1 or more")
        if not 0 < self.learning_rate < float("inf"):
            raise OccError(f"--learning-rate {self.learning_rate} is out of range: choose a positive number")
        if self.bits is not None and not 0 < self.bits <= 16:
            raise OccError(f"--bits {self.bits} is not a rate: choose a number above 0, up to 16")
        if self.is_integer and self.width != self.target_bits:
            raise OccError(f"--bits {self.bits} is no width of integers: choose 2 to 8")
        if self.clip and not self.is_integer:
            raise OccError(
                f"--clip is about ranges of integers: it goes with --objective int or kl, not {self.objective}"
            )
        if self.rate != "field" and self.objective != "scales":
            raise OccError(f"--rate {self.rate} goes with --objective scales, not with {self.objective}")
        if self.temperature is not None and self.rate not in FITTED_RATES:
            raise OccError(f"--temperature goes with --rate {' or '.join(FITTED_RATES)}: {self.rate} has no noise")
        if self.temperature is not None and not 0 < self.temperature <= 1:
            raise OccError(f"--temperature {self.temperature} is out of range: choose a number above 0, up to 1")
        if not self.is_integer and (wrong := sorted(SCALINGS & set(self.placements))):
            raise OccError(
                f"--placements {wrong[0]}: under an entropy coder a factor for a row or column moves weights and steps "
                "alike and changes nothing; leave it out, or learn for integers with --objective int or kl"
            )
        if self.output_feedback == "always" and self.objective != "scales":
            raise OccError(
                f"--output-feedback always goes with --objective scales: {self.objective} has errors without it"
            )
        for option, share in (("--row-share", self.row_share), ("--block-share", self.block_share)):
            if not 0 < share <= 1:
                raise OccError(f"{option} {share} is out of range: choose a number above 0, up to 1")
        if self.is_integer:
            _ = self.integers  # refuses what integers cannot be
        if self.window < 2:
            raise OccError(f"--window {self.window} predicts nothing: choose 2 or more")
        if self.batch < 1:
            raise OccError(f"--batch {self.batch} shows a step nothing: choose 1 or more")
        if self.batch > 1 and not self.end_to_end:
            raise OccError(f"--batch goes with --objective kl or kl-coded: {self.objective} looks at no text")
        if self.refresh < 1:
            raise OccError(f"--refresh {self.refresh} is no number of steps: choose 1 or more")
        if not 0 < self.damping <= 1:
            raise OccError(f"--damping {self.damping} is out of range: choose a number above 0, up to 1")

    @property
    def num_steps(self) -> int:
        """Steps of Adam."""
        return (80 if self.end_to_end else 200) if self.steps is None else self.steps

    @property
    def is_integer(self) -> bool:
        """Whether weights become integers of a fixed width."""
        return self.objective in ("int", "kl")

    @property
    def feeds_rows(self) -> bool:
        """Whether rows of the file will make up for each other."""
        return self.objective == "scales" and decide(self.output_feedback, low_rate=self.target_bits < LOW_RATE)

    @property
    def end_to_end(self) -> bool:
        """Whether the network is run."""
        return self.objective.startswith("kl")

    @property
    def target_bits(self) -> float:
        """Width of the integers or bits per weight."""
        return _BITS[self.objective] if self.bits is None else self.bits

    @property
    def integers(self) -> Integers:
        """The integers that weights become."""
        return Integers(self.width, self.group_size, self.feedback, self.clip)

    @property
    def width(self) -> int:
        """Width of the integers."""
        return round(self.target_bits)
