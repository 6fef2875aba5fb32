"""The experiment: every source in every representation, in every kind of coordinates, through the codec."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from occ_jax.errors import InputError
from occ_jax.metrics import rate_at_distortion

from .bases import BASES
from .coding import RatePoint, bytes_at, integer_error, rate_distortion
from .coordinates import Coordinates, hessian_basis, original, rotated, source_klt
from .invariance import Invariance, measure_invariances
from .learned import LearnedAxes, learn_axes, learned
from .measures import Distribution, Sensitivity, describe_coefficients, describe_sensitivity
from .networks import ACTIVATIONS, WIDTHS
from .representations import Fitted, fit_basis, fit_networks
from .sources import NUM_VALUES, SOURCES, ar1_covariance

LEVELS = (1e-2, 1e-1)
"""Relative squared errors at which bytes are compared: the first one, or for poor fits the second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How much is run.

    Args:
        sources: names of the families.
        representations: bases and networks.
        reparameterise: also change networks in ways that leave their functions as they are.
        draws: functions that are coded together.
        others: further draws from which the KLT is estimated.
        seeds: initialisations of every network.
        steps: training steps.
        widths: hidden units that are tried.
        targets: relative errors that quantization aims at.
        accuracy: relative error that a fit should reach.
    """

    sources: tuple[str, ...] = tuple(SOURCES)
    representations: tuple[str, ...] = (*BASES, *ACTIVATIONS)
    reparameterise: bool = True
    draws: int = 16
    others: int = 2048
    seeds: int = 3
    steps: int = 500
    widths: tuple[int, ...] = WIDTHS
    targets: tuple[float, ...] = (1e-3, 6e-3, 1.2e-2, 7e-2, 4e-1)
    accuracy: float = 1e-3

    def __post_init__(self):
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or not self.sources:
            raise InputError(f"there is no function {', '.join(unknown)!r}: choose from {', '.join(SOURCES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regime:
    """One kind of coordinates of one representation.

    Args:
        distribution: of the coefficients.
        energies: mean squares of the coefficients, weighted by their sensitivity, largest first.
        basis_bytes: what the basis takes if a file has to hold it.
        points: files, and what they give.
        integer_error: relative error with 4-bit groups; None where it was not measured.
    """

    distribution: Distribution
    energies: tuple[float, ...]
    basis_bytes: int
    points: tuple[RatePoint, ...]
    integer_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One source in one representation, from one seed."""

    source: str
    representation: str
    is_network: bool
    seed: int
    size: int
    fit_error: float
    is_accurate: bool
    sensitivity: Sensitivity
    regimes: dict[str, Regime]

    @property
    def aligned(self) -> str:
        """The best informed coordinates: the KLT of the source or, for a network, its Hessian's eigenbasis."""
        return "hessian" if self.is_network else "klt"

    def bytes_at(self, regime: str, level: float = LEVELS[0]) -> float | None:
        """Bytes per function at a relative error; None where no file has it, or there are no such coordinates."""
        return bytes_at(self.regimes[regime].points, level) if regime in self.regimes else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured.

    Args:
        protocol: how.
        cells: sources times representations times seeds.
        invariances: what reparameterisations do.
        ar1_bound_bytes: bytes per function of the AR(1) path's rate-distortion function at the first of :data:`LEVELS`.
    """

    protocol: Protocol
    cells: tuple[Cell, ...]
    invariances: tuple[Invariance, ...]
    ar1_bound_bytes: float | None


def run_experiment(protocol: Protocol, *, advance: Callable[[str], None] = lambda done: None) -> Results:
    """Run everything.

    Args:
        protocol: how much.
        advance: called with a label after each of :func:`num_parts` parts.
    """
    cells: list[Cell] = []
    for name in protocol.sources:
        axes = learn_axes(SOURCES[name].draw(protocol.others, stream=1), level=LEVELS[0])
        for representation in protocol.representations:
            cells += [measure(fitted, protocol, axes) for fitted in _fits(name, representation, protocol)]
            advance(f"{SOURCES[name].title}: {representation}")
    invariances: Sequence[Invariance] = ()
    if protocol.reparameterise:
        invariances = measure_invariances(protocol.draws, protocol.steps, protocol.targets)
        advance("reparameterisations")
    bound = ar1_bound_bytes(protocol) if "ar1" in protocol.sources else None
    return Results(protocol=protocol, cells=tuple(cells), invariances=tuple(invariances), ar1_bound_bytes=bound)


def num_parts(protocol: Protocol) -> int:
    """How often :func:`run_experiment` reports."""
    return len(protocol.sources) * len(protocol.representations) + protocol.reparameterise


def _fits(name: str, representation: str, p: Protocol) -> Sequence[Fitted]:
    source = SOURCES[name]
    if representation in BASES:
        return [fit_basis(source, representation, draws=p.draws, others=p.others, accuracy=p.accuracy)]
    size = {"draws": p.draws, "seeds": p.seeds, "steps": p.steps, "widths": p.widths}
    return fit_networks(source, representation, accuracy=p.accuracy, **size)


def coordinate_systems(fitted: Fitted, axes: LearnedAxes | None = None) -> Iterator[Coordinates]:
    """The coordinates that are tried; what needs other draws of the source is there for linear representations.

    Args:
        fitted: parameters of one representation.
        axes: learned from the source's functions.
    """
    yield original(fitted.hessian)
    yield rotated(fitted.hessian, seed=0)
    if describe_sensitivity(fitted.hessian).axis_alignment < 0.999:  # else the axes are eigenvectors
        yield hessian_basis(fitted.hessian)
    if fitted.typical is not None:
        klt = source_klt(fitted.hessian, fitted.typical)
        yield klt
        if axes is not None:
            design = fitted.functions(np.eye(fitted.theta.shape[1])).T
            yield learned(klt, axes, design)


def measure(fitted: Fitted, protocol: Protocol, axes: LearnedAxes | None = None) -> Cell:
    """Distribution, sensitivity and rate-distortion curves of fitted parameters, in :func:`coordinate_systems`."""
    regimes = {}
    for coordinates in coordinate_systems(fitted, axes):
        error = fitted.relative_error
        points = rate_distortion(fitted.theta, coordinates, error, protocol.targets, power=fitted.power)
        with_integers = coordinates.name in ("original", "rotated")
        y = fitted.theta @ coordinates.forward
        regimes[coordinates.name] = Regime(
            distribution=describe_coefficients(y),
            energies=tuple(np.sort(np.square(y).mean(0) * coordinates.sensitivity)[::-1].tolist()),
            basis_bytes=coordinates.basis_bytes,
            points=tuple(points),
            integer_error=integer_error(fitted.theta, coordinates, error) if with_integers else None,
        )
    fit_error = fitted.relative_error(fitted.theta)
    return Cell(
        source=fitted.source,
        representation=fitted.representation,
        is_network=fitted.is_network,
        seed=fitted.seed,
        size=fitted.theta.shape[1],
        fit_error=fit_error,
        is_accurate=fit_error <= protocol.accuracy,
        sensitivity=describe_sensitivity(fitted.hessian),
        regimes=regimes,
    )


def ar1_bound_bytes(protocol: Protocol) -> float:
    """Bytes per function of the AR(1) path's rate-distortion function, at the first of :data:`LEVELS`."""
    power = np.square(SOURCES["ar1"].draw(protocol.draws, stream=0)).mean()
    spectrum = jnp.asarray(np.linalg.eigvalsh(ar1_covariance(NUM_VALUES)), jnp.float32)
    return float(rate_at_distortion(spectrum, jnp.float32(LEVELS[0] * power))) * NUM_VALUES / 8
