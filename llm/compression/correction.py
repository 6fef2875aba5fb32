r"""Sensitivity, corrected by what the divergence really does where errors are large.

The model behind every step, :math:`D_{KL} \approx \frac12 \operatorname{tr}(G E H E^\top)`, is of second order and
holds for small errors. At low rates some layers cost more than it says, and others less. So the network is quantized
once, and for each group :math:`k` of matrices (linear layers of one kind in one third of the depth) half of the energy
of their errors is taken away, :math:`\hat W \leftarrow W + \sqrt{1/2}\, (\hat W - W)`, which by the model is worth half
of the group's share. The ratio of the measured fall to that,

.. math::

    \rho_k = \frac{D_{KL}(\hat W) - D_{KL}(\hat W \text{ with } k \text{ eased})}
                  {\frac12 \cdot \frac12 \sum_{W \in k} \operatorname{tr}(G E H E^\top)}

relative to the median of all groups, multiplies the Fisher information of the group's rows: their steps move by
:math:`\rho_k^{-1/2}`. A fall is believed only as far as it lies more than :data:`STANDARD_ERRORS` from what the median
lets expect, windows being compared in pairs, and a ratio up to :data:`LARGEST`. Half of the energy, not all: that is
about the slope at which a group's steps are moved, and errors that happen to help or to hurt each other across groups,
which other roundings would not repeat, count for less.

Embedding and head are left out: most of their rows belong to tokens that a few windows do not contain, so the windows
say that errors there cost little. On SmolLM2 at 2 bits their ratio was a third of the median, and to believe it raised
the divergence on other text by a tenth at equal bytes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from occ_jax.codec import CodedTensor, decode_tensors
from occ_jax.metrics import hessian_weighted_error

from ..calibration import spread
from ..checkpoints import Checkpoint
from ..coordinates import dense_network
from ..errors import OccError
from ..evaluation import Reference, Windows, evaluate
from ..model import LanguageModel
from ..parallel import Track
from ..roles import is_linear, kind_of, layer_of
from ..weights import DerivedWeights, Weights
from .finishing import cut_shorter
from .network import Network
from .plan import STEP_RESOLUTION
from .staging import Staging
from .survey import Survey

THIRDS = ("first", "middle", "last")

EASED = 0.5
"""Share of the energy of a group's errors that is taken away to see what it was worth."""

WINDOWS, LENGTH = 8, 512
"""Windows on which divergences are measured, and tokens of each."""

STANDARD_ERRORS = 2.0
"""A fall differs from what was expected by what lies beyond so many standard errors."""

LARGEST = 4.0
"""Most that the Fisher information of a group is raised, or lowered, relative to the median."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope:
    """What the errors of some matrices were worth, nats per token.

    Attributes:
        group: name of the group.
        num_weights: weights of its matrices.
        predicted: fall of the divergence that the second-order model expects when the errors are eased.
        fall: the measured one.
        fall_se: its standard error, over windows.
        levels: by how many levels of :data:`~occ_llm.compression.plan.STEP_RESOLUTION` the group's steps move.
    """

    group: str
    num_weights: int
    predicted: float
    fall: float
    fall_se: float
    levels: int = 0

    @property
    def ratio(self) -> float:
        """Measured over predicted; NaN where there are no errors."""
        return self.fall / self.predicted if self.predicted > 0 else math.nan


@final
class Easing:
    """The divergence of a quantized network with the errors of some matrices made smaller.

    Three dense copies of the network are in memory: the original's, the quantized one's, and one that is measured.

    Args:
        checkpoint: the original.
        network: as it was coded.
        coded: its quantized matrices, asked for when they are needed.
        tokens: text to measure on.

    Raises:
        OccError: the text is too short for a standard error.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        network: Network,
        coded: Callable[[], Mapping[str, CodedTensor]],
        tokens: Int[np.ndarray, "windows length"],
    ):
        shorter = cut_shorter(tokens, LENGTH)
        if len(shorter) < 2:
            raise OccError(
                f"correcting the sensitivity compares windows of {LENGTH} tokens, and there is but {len(shorter)}: "
                "give a longer text, or raise --finish-windows"
            )
        self._checkpoint, self._network, self._coded = checkpoint, network, coded
        self._windows = Windows(tokens=shorter[spread(len(shorter), WINDOWS)], num_bytes=1)

    def divergence(self, names: Sequence[str] = ()) -> tuple[float, ...]:
        """Mean divergence of each window from the original's predictions, with the errors of ``names`` eased."""
        eased = DerivedWeights(self._quantized, {name: self._rule(name) for name in names})
        model = LanguageModel.from_weights(*dense_network(self._network.config, eased))
        return evaluate(model, self._windows, reference=self._reference).kl_windows

    def predicted(self, names: Sequence[str]) -> float:
        """How far the divergence falls when ``names`` are eased, by the second-order model."""
        return EASED * sum(self._cost(name) for name in names)

    def _rule(self, name: str) -> Callable[[Weights], np.ndarray]:
        left = np.float32(math.sqrt(1 - EASED))

        def eased(quantized: Weights) -> np.ndarray:
            w = self._network.weights[name]
            return w + left * (quantized[name] - w)

        return eased

    def _cost(self, name: str) -> float:
        sensitivity, transform = self._network.sensitivity(name), self._network.stored_transform(name)
        w, w_hat = (transform.forward(jnp.asarray(side[name])) for side in (self._network.weights, self._quantized))
        hessian = jnp.asarray(sensitivity.hessian, jnp.float32)
        outputs = self._network.statistics.fisher_matrix(name) if is_linear(name) else sensitivity.rows
        rows = jnp.asarray(outputs, jnp.float32)
        return float(hessian_weighted_error(w, w_hat, hessian, row_weights=rows)) / 2

    @cached_property
    def _reference(self) -> Reference:
        return Reference(LanguageModel.from_weights(self._checkpoint.config, self._checkpoint.weights))

    @cached_property
    def _quantized(self) -> Weights:
        coded, decoded = self._coded(), {}
        for names in self._network.by_block().values():
            decoded |= dict(zip(names, decode_tensors([coded[name] for name in names]), strict=True))
        return DerivedWeights(self._network.weights, {name: lambda _, w=w: w for name, w in decoded.items()})


def measure_slopes(
    easing: Easing, groups: Mapping[str, Sequence[str]], sizes: Mapping[str, int], staging: Staging, track: Track
) -> tuple[Slope, ...]:
    """Slopes of all groups and the levels that follow from them; what an earlier attempt has measured is kept.

    Args:
        easing: measures.
        groups: names of the matrices of each.
        sizes: weights of every matrix.
        staging: keeps what is measured.
        track: shows progress.
    """
    whole = np.asarray(staging.series("whole", easing.divergence))
    slopes = []
    for group in track(tuple(groups), "slopes"):
        names = groups[group]
        (predicted,) = staging.series(f"{group}, predicted", lambda names=names: [easing.predicted(names)])
        fall = whole - np.asarray(staging.series(group, lambda names=names: easing.divergence(names)))
        slopes.append(
            Slope(
                group=group,
                num_weights=sum(sizes[name] for name in names),
                predicted=predicted,
                fall=float(fall.mean()),
                fall_se=float(fall.std(ddof=1) / math.sqrt(fall.size)),
            )
        )
    moved = step_levels(slopes)
    return tuple(dataclasses.replace(slope, levels=levels) for slope, levels in zip(slopes, moved, strict=True))


def step_levels(slopes: Sequence[Slope]) -> list[int]:
    """By how many levels the steps of each group move; the mean over weights stays, and the rate with it.

    Example:
        >>> low, high = (Slope(group="", num_weights=1, predicted=1.0, fall=x, fall_se=0.0) for x in (0.5, 2.0))
        >>> step_levels([low, high]), step_levels([low, dataclasses.replace(high, fall_se=0.375)])
        ([4, -4], [3, -3])
    """
    seen = [slope for slope in slopes if slope.predicted > 0]
    usual = float(np.median([slope.ratio for slope in seen])) if seen else 0.0
    if usual <= 0:  # so small a divergence shows nothing
        return [0] * len(slopes)
    octaves = np.array([-math.log2(_fisher_factor(slope, usual)) / 2 for slope in slopes])
    weights = np.array([slope.num_weights for slope in slopes], np.float64)
    octaves -= octaves @ weights / weights.sum()
    return np.rint(STEP_RESOLUTION * octaves).astype(int).tolist()


def _fisher_factor(slope: Slope, usual: float) -> float:
    if slope.predicted <= 0:
        return 1.0
    doubt = STANDARD_ERRORS * slope.fall_se / slope.predicted
    believed = min(max(usual, slope.ratio - doubt), slope.ratio + doubt)
    return min(max(believed / usual, 1 / LARGEST), LARGEST)


def slope_groups(network: Network) -> dict[str, list[str]]:
    """Linear layers of one kind in one third of the depth, by the name of such a group."""
    groups: dict[str, list[str]] = {}
    for name in filter(is_linear, network.matrices):
        layer = layer_of(name)
        assert layer is not None, name
        groups.setdefault(f"{THIRDS[3 * layer // network.config.num_layers]} {kind_of(name)}", []).append(name)
    return groups


def corrected(survey: Survey, slopes: Sequence[Slope]) -> Survey:
    """The survey with the steps of every group moved."""
    groups = slope_groups(survey.network)
    moved = {
        name: survey.plans[name].with_steps_moved(slope.levels) for slope in slopes for name in groups[slope.group]
    }
    return dataclasses.replace(survey, plans={**survey.plans, **moved})
