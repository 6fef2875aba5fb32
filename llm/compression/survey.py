"""What all files of a network in one system of coordinates share: factors of second moments, plans, rows to probe.

Nothing here depends on how small a file is to be, so one survey serves every rate and every trellis.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from ..calibration import Statistics
from ..checkpoints import Checkpoint
from ..checkpoints.layout import num_weights
from ..errors import said_of
from ..parallel import Track, in_pairs, untracked
from ..roles import is_linear
from ..scratch import scratch
from .allocation import probe_rows
from .factors import Factors, OutputFactors
from .network import Network, prepare_network
from .plan import MatrixPlan, plan_matrix
from .sensitivity import row_sensitivity
from .settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """The network as it will be coded, and what is known about each of its matrices.

    Attributes:
        network: folded, in its coordinates.
        factors: of the second moments of all inputs, on disk.
        outputs: of the Fisher matrices of the linear layers' outputs, if rows make up for each other.
        plans: relative steps and scale classes by name of the matrix, in the order of the network.
        probes: a few rows of every matrix.
        premises: the settings that this depends on.
        seconds: wall time that it took.
    """

    network: Network
    factors: Factors
    outputs: OutputFactors | None
    plans: Mapping[str, MatrixPlan]
    probes: Mapping[str, Float[np.ndarray, "rows d_in"]]
    premises: tuple
    seconds: float

    def serves(self, settings: Settings) -> bool:
        """Whether the survey was made under the same settings, as far as it depends on them."""
        return self.premises == _premises(settings.decided(num_weights(self.network.config)))


@contextlib.contextmanager
def survey(
    checkpoint: Checkpoint,
    statistics: Statistics,
    settings: Settings,
    *,
    track: Track = untracked,
) -> Iterator[Survey]:
    """Factor every second moment, fit every matrix's levels, and keep rows to probe; gone from disk at the end.

    Args:
        checkpoint: the model.
        statistics: of the folded network in original coordinates.
        settings: coordinates, seed, damping and whether there is feedback.
        track: shows progress.

    Raises:
        OccError: a matrix is not finite, or a second moment is singular.
    """
    settings = settings.decided(num_weights(checkpoint.config))
    started = time.perf_counter()
    with scratch("survey") as place:
        factors = Factors(place, damping=settings.damping, feedback=settings.feedback)
        outputs = OutputFactors(place) if settings.feeds_rows else None
        plans: dict[str, MatrixPlan] = {}
        probes: dict[str, np.ndarray] = {}
        with said_of(checkpoint.name):
            network = prepare_network(
                checkpoint.config,
                checkpoint.weights,
                statistics,
                coordinates=settings.coordinates,
                transforms=settings.transforms,
                seed=settings.seed,
            )
            groups = _groups(network, factors)
            inputs = tuple(groups)

            def look(name: str) -> list[tuple[MatrixPlan, np.ndarray]]:
                return [_look_at(reader, network, factors, outputs) for reader in groups[name]]

            for _, found in in_pairs(look, track(inputs, "plan"), inputs):
                plans |= {plan.name: plan for plan, _ in found}
                probes |= {plan.name: rows for plan, rows in found}
        plans = {name: plans[name] for name in network.matrices}
        yield Survey(
            network=network,
            factors=factors,
            outputs=outputs,
            plans=plans,
            probes=probes,
            premises=_premises(settings),
            seconds=time.perf_counter() - started,
        )


def _premises(settings: Settings) -> tuple:
    chosen = settings.coordinates, settings.transforms, settings.seed
    return *chosen, settings.damping, settings.feedback, settings.feeds_rows


def _groups(network: Network, factors: Factors) -> dict[str, list[str]]:
    """Matrices that read the same inputs: one factor serves them all."""
    groups: dict[str, list[str]] = {}
    for name in network.matrices:
        groups.setdefault(factors.inputs_of(name), []).append(name)
    return groups


def _look_at(
    name: str, network: Network, factors: Factors, outputs: OutputFactors | None
) -> tuple[MatrixPlan, np.ndarray]:
    w = network.coefficients(name)
    if not np.isfinite(w).all():
        raise ValueError(f"{name} holds NaN or infinite weights; take an intact checkpoint")
    if not is_linear(name):
        sensitivity = network.sensitivity(name)
        factor, rows = factors.of(name, lambda: sensitivity.hessian), sensitivity.rows
    else:
        factor = factors.of(name, lambda: network.sensitivity(name).hessian)
        if outputs is None:
            rows = row_sensitivity(name, network.statistics)
        else:
            rows = np.asarray(outputs.of(name, network.statistics.fisher_matrix(name)).weights)
    return plan_matrix(name, w, factor.relative_steps, rows), w[probe_rows(*w.shape)].copy()
