r"""Where a network is sensitive: spectra of second moments and of the output Fisher, and a test of what they predict.

An error :math:`E` in a matrix costs, to second order, :math:`\tfrac12 \sum_i g_i\, e_i H e_i^\top` nats per token. For
an error of equal size in all directions the share of the increase that the top directions of :math:`H` carry is their
share of the trace. The test: errors of **equal norm**, with rows drawn from the top tenth of the eigenvectors of
:math:`H`, from the bottom tenth, or from all, in every matrix at once; the formula says what they cost, and the
divergence is measured on text that calibration has not seen.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from occ_jax.metrics import entropy_rank, participation_ratio

from ..calibration.statistics import TURNING_OUTPUTS
from ..roles import LINEAR_KINDS, kind_of, layer_of, linear_name
from .divergence import Trial
from .outliers import predicted_divergence
from .subject import Subject, inputs_of

DIRECTIONS = ("all", "high", "low")
"""Where errors lie: anywhere, in the top tenth, in the bottom tenth of the eigenvectors of H."""

TENTH = 0.1
TARGETS = (1e-3, 1e-2, 1e-1)
"""Divergences that the formula promises for the errors that lie anywhere; the other two have the same norms."""

SAMPLES = 48
"""Points of a spectrum that are kept for the figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Eigenvalues of one second moment or Fisher matrix.

    Attributes:
        what: ``inputs`` (H), ``outputs`` (the Fisher matrix) or ``outputs, diagonal``.
        layer, space: block, and the activations or the layer that it belongs to.
        dimension: size of the matrix.
        participation, entropy: effective dimensions.
        top_percent, top_tenth: share of the trace in the largest 1 % and 10 % of the eigenvalues.
        samples: eigenvalues over their mean, at :data:`SAMPLES` ranks from the first to the last.
    """

    what: str
    layer: int
    space: str
    dimension: int
    participation: float
    entropy: float
    top_percent: float
    top_tenth: float
    samples: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injection:
    """Errors of one norm in one set of directions, in all matrices at once.

    Attributes:
        directions: one of :data:`DIRECTIONS`.
        relative_norm: Frobenius norm of every matrix's error over that of the matrix.
        predicted: divergence by the second-order formula, nats per token.
        measured, measured_se: divergence on text that calibration has not seen, and its standard error.
    """

    directions: str
    relative_norm: float
    predicted: float
    measured: float
    measured_se: float


def measure_spectra(subject: Subject, layers: Iterable[int]) -> Iterator[Spectrum]:
    """Spectra of all inputs and outputs of some blocks."""
    for layer in layers:
        seen = set()
        for kind in LINEAR_KINDS:
            name = linear_name(layer, kind)
            if (inputs := inputs_of(name)) not in seen:
                seen.add(inputs)
                eigenvalues = np.asarray(subject.bases.of(name).eigenvalues, np.float64)
                yield _spectrum("inputs", layer, inputs.split(".")[-2], eigenvalues)
            if kind in TURNING_OUTPUTS:
                matrix = np.asarray(subject.statistics.fisher_matrix(name), np.float64)
                yield _spectrum("outputs", layer, kind, np.linalg.eigvalsh((matrix + matrix.T) / 2))
            else:
                yield _spectrum("outputs, diagonal", layer, kind, subject.statistics.fisher(name))


def _spectrum(what: str, layer: int, space: str, eigenvalues: np.ndarray) -> Spectrum:
    energies = np.sort(np.maximum(np.asarray(eigenvalues, np.float64), 0))[::-1]
    n = energies.size
    shares = jnp.asarray(energies / energies.max(), jnp.float32)
    ranks = np.rint(np.linspace(0, n - 1, SAMPLES)).astype(np.int64)
    return Spectrum(
        what=what,
        layer=layer,
        space=space,
        dimension=n,
        participation=float(participation_ratio(shares)),
        entropy=float(entropy_rank(shares)),
        top_percent=share_of_top(energies, 0.01),
        top_tenth=share_of_top(energies, TENTH),
        samples=tuple((energies[ranks] / energies.mean()).tolist()),
    )


def share_of_top(energies: Float[np.ndarray, " n"], share: float) -> float:
    """Share of a descending spectrum in its first entries: that of the loss increase of errors of equal size.

    Example:
        >>> share_of_top(np.array([6.0, 2.0, 1.0, 1.0]), 0.25)
        0.6
    """
    return float(energies[: max(1, round(share * energies.size))].sum() / energies.sum())


def measure_injections(
    subject: Subject, trial: Trial, directions: Iterable[str] = DIRECTIONS, targets: Sequence[float] = TARGETS
) -> Iterator[Injection]:
    """Errors of equal norm in several sets of directions: what the formula says, and what is measured.

    Args:
        subject: the network.
        trial: measures divergences.
        directions: of :data:`DIRECTIONS`, ``all`` first.
        targets: predictions for ``all``, which set the norms.
    """
    norms: list[float] = []
    for place in directions:
        predicted: list[float] = []

        def change(name: str, w: np.ndarray, place: str = place, predicted: list[float] = predicted) -> np.ndarray:
            error = error_in(subject, name, w, place)
            predicted.append(predicted_divergence(subject, name, jnp.asarray(error)))
            return w + error

        moved = trial.changed_by(change)
        unit = float(np.sum(predicted))
        norms = norms or [float(np.sqrt(target / unit)) for target in targets]
        for norm, found in zip(norms, trial.scaled(moved, norms), strict=True):
            yield Injection(
                directions=place,
                relative_norm=norm,
                predicted=unit * norm**2,
                measured=found.mean,
                measured_se=found.standard_error,
            )


def error_in(subject: Subject, name: str, w: np.ndarray, directions: str) -> np.ndarray:
    """A random error with the norm of the matrix, its rows in some eigenvectors of the inputs' second moment.

    Args:
        subject: the network.
        name: of the matrix.
        w: the matrix.
        directions: one of :data:`DIRECTIONS`.
    """
    layer = layer_of(name)
    assert layer is not None, name
    rng = np.random.default_rng([layer, LINEAR_KINDS.index(kind_of(name))])
    if directions == "all":
        error = rng.standard_normal(w.shape)
    else:
        basis = np.asarray(subject.bases.of(name).basis)
        count = max(1, round(TENTH * len(basis)))
        chosen = basis[:, :count] if directions == "high" else basis[:, -count:]
        error = rng.standard_normal((len(w), count)) @ chosen.T
    return (error * (np.linalg.norm(w) / np.linalg.norm(error))).astype(w.dtype)
