r"""Every matrix in every coordinate system: how its coefficients are distributed and what they cost.

All coordinates are orthonormal, so a matrix keeps its Frobenius norm (checked for each) and one step, half of the
matrix's root mean square, makes about the same error everywhere. Two rates are measured at that step: the entropy of
the indices under **one** table for the whole matrix, and the bytes of the project's **coder**, which knows one scale
for every row and every column. What separates the two is what unequal scales are worth. The coder's rate is moved to
the distortion :math:`\Delta^2 / 12` by :math:`\tfrac12 \log_2` of the ratio of errors, so that rates are compared at
equal distortion.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from occ_jax.codec import Levels, encode_lattice
from occ_jax.codec.lattice import dequantize_lattice
from occ_jax.entropy.empirical import empirical_entropy_bits
from occ_jax.metrics import coding_gain_bits, kurtosis, l2_norm, linf_rms_ratio, participation_ratio
from occ_jax.quantization.codebook import Codebook
from occ_jax.quantization.hessian import DAMPING
from occ_jax.quantization.scales import class_sigmas
from occ_jax.quantization.trellis import gaussian_codebook
from occ_jax.transforms import KLT, Transform

from ..calibration import sandwich
from ..compression.plan import plan_matrix
from ..parallel import Track, in_pairs, untracked
from ..roles import kind_of, layer_of
from .subject import LEARNED, Subject, inputs_of, to_coordinates

STEP_RMS = 0.5
"""Step, in root mean squares of the matrix: about 3 bits for a Gaussian."""

TOP = 0.01
"""Share of the coefficients that counts as the largest."""

HISTOGRAM_REACH, HISTOGRAM_WIDTH = 16.0, 0.25
"""Largest magnitude that has a bin of its own, and width of the bins, in root mean squares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regime:
    """One matrix in one coordinate system.

    Attributes:
        matrix, layer, kind, coordinates: which.
        num_weights: entries of the matrix.
        kurtosis: 3 for a Gaussian.
        linf_rms: largest magnitude over root mean square.
        effective_dimension: participation ratio of the energies of the columns, over their number.
        top_energy: share of the energy in the largest hundredth of the coefficients; 0.085 for a Gaussian.
        entropy_bits: per weight, one table for the whole matrix.
        rate_bits: per weight, coded bytes with the levels of rows and columns, at equal distortion.
        coding_gain_bits: of the energies of the columns.
        input_gain_bits: coding gain of the (damped) second moments of the inputs.
        norm_departure: relative change of the Frobenius norm; rounding alone should cause any.
    """

    matrix: str
    layer: int
    kind: str
    coordinates: str
    num_weights: int
    kurtosis: float
    linf_rms: float
    effective_dimension: float
    top_energy: float
    entropy_bits: float
    rate_bits: float
    coding_gain_bits: float
    input_gain_bits: float
    norm_departure: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many coefficients of one kind of layer have which magnitude, in units of their matrix's root mean square.

    Attributes:
        kind, coordinates: which.
        counts: in bins of :data:`HISTOGRAM_WIDTH`; the last one has everything beyond :data:`HISTOGRAM_REACH`.
    """

    kind: str
    coordinates: str
    counts: tuple[int, ...]

    @property
    def density(self) -> Float[np.ndarray, " bins"]:
        """Share of the coefficients per root mean square, without the last bin."""
        counts = np.asarray(self.counts, np.float64)
        return counts[:-1] / counts.sum() / HISTOGRAM_WIDTH


def measure_regimes(
    subject: Subject, names: Sequence[str], *, track: Track = untracked
) -> tuple[list[Regime], list[Histogram]]:
    """Measure some matrices in all coordinate systems.

    Args:
        subject: the network.
        names: of its matrices.
        track: shows progress.
    """
    standing_codebook()  # made here, or two threads would make it
    readers = {inputs_of(name): name for name in names}  # one matrix for every space of inputs

    def gains(inputs: str) -> dict[str, float]:
        name = readers[inputs]
        hessian = subject.statistics.hessian(name)
        return {c: input_gain_bits(t, hessian) for c, t in subject.transforms(name) if c != LEARNED}

    input_gains = dict(in_pairs(gains, readers, tuple(readers)))

    def measure(name: str) -> list[tuple[Regime, np.ndarray]]:
        w, input_gain = jnp.asarray(subject.weights[name]), input_gains[inputs_of(name)]
        found = []
        for coordinates, transform in subject.transforms(name):
            y = to_coordinates(transform, w)
            if coordinates not in input_gain:  # learned for this matrix, or for its inputs
                input_gain = input_gain | {coordinates: input_gain_bits(transform, subject.statistics.hessian(name))}
            regime = _regime(name, coordinates, w, y, input_gain[coordinates])
            found.append((regime, magnitude_counts(np.asarray(y))))
        return found

    regimes: list[Regime] = []
    totals: dict[tuple[str, str], np.ndarray] = {}
    for _, found in in_pairs(measure, track(names, "regimes"), names, shape=subject.shape):
        for regime, counts in found:
            regimes.append(regime)
            place = regime.kind, regime.coordinates
            totals[place] = totals.get(place, 0) + counts
    histograms = [Histogram(kind=k, coordinates=c, counts=tuple(n.tolist())) for (k, c), n in totals.items()]
    return regimes, histograms


def _regime(name: str, coordinates: str, w: Array, y: Array, input_gain: float) -> Regime:
    shape = _shape_measures(w, y)
    step = STEP_RMS * float(shape["rms"])
    coefficients = np.asarray(y)
    q = np.rint(coefficients / step).astype(np.int32)
    layer = layer_of(name)
    assert layer is not None, name
    return Regime(
        matrix=name,
        layer=layer,
        kind=kind_of(name),
        coordinates=coordinates,
        num_weights=y.size,
        kurtosis=float(shape["kurtosis"]),
        linf_rms=float(shape["linf_rms"]),
        effective_dimension=float(shape["dimension"]) / y.shape[1],
        top_energy=top_energy(coefficients),
        entropy_bits=empirical_entropy_bits(q),
        rate_bits=rate_at_equal_distortion(coefficients, q, step),
        coding_gain_bits=float(shape["gain"]),
        input_gain_bits=input_gain,
        norm_departure=float(shape["departure"]),
    )


@jax.jit
def _shape_measures(w: Float[Array, "d_out d_in"], y: Float[Array, "d_out d_in"]) -> dict[str, Float[Array, ""]]:
    energies = jnp.square(y).mean(0)
    return {
        "kurtosis": kurtosis(y),
        "linf_rms": linf_rms_ratio(y),
        "dimension": participation_ratio(energies),
        "gain": channel_gain_bits(y),
        "departure": jnp.abs(l2_norm(y) / l2_norm(w) - 1),
        "rms": jnp.sqrt(energies.mean()),
    }


def top_energy(y: Float[np.ndarray, "..."]) -> float:
    """Share of the energy in the largest hundredth of some coefficients.

    Example:
        >>> round(top_energy(np.arange(200.0)), 3)
        0.03
    """
    energies = np.square(y).ravel()
    rest = energies.size - math.ceil(TOP * energies.size)
    return float(np.partition(energies, rest)[rest:].sum(dtype=np.float64) / energies.sum(dtype=np.float64))


@jax.jit
def channel_gain_bits(y: Float[Array, "rows n"]) -> Float[Array, ""]:
    """Coding gain of the energies along the last axis, in bits per entry; a dead channel counts as 60 dB down.

    Example:
        >>> print(channel_gain_bits(jnp.asarray([[4.0, 1.0], [4.0, 1.0]])).round(3))
        0.544
    """
    energies = jnp.square(y).mean(0)
    return coding_gain_bits(jnp.maximum(energies, 1e-6 * energies.mean()))


def rate_at_equal_distortion(
    y: Float[np.ndarray, "d_out d_in"], q: Int[np.ndarray, "d_out d_in"], step: float
) -> float:
    r"""Bits per weight of real coded bytes, at the mean squared error :math:`\Delta^2 / 12`.

    Levels of rows and columns are counted; the tables, which a whole network shares, are not.

    Args:
        y: coefficients.
        q: their indices.
        step: :math:`\Delta`.
    """
    levels = _levels(y, step)
    coded = encode_lattice(q, levels, standing_codebook())
    error = np.asarray(dequantize_lattice(q, levels, standing_codebook())) - y
    mse = float(np.mean(np.square(error), dtype=np.float64))
    return 8 * coded.num_bytes / q.size + 0.5 * float(np.log2(mse / (step**2 / 12)))


def _levels(y: Float[np.ndarray, "d_out d_in"], step: float) -> Levels:
    """One step for the whole matrix, a scale for each row and column."""
    rows, cols = (np.ones(size, np.float32) for size in y.shape)
    return plan_matrix("", y, cols, rows).levels(step)


@functools.cache
def standing_codebook() -> Codebook:
    """Tables of Gaussians of every scale, the same for all matrices and coordinates."""
    return gaussian_codebook(class_sigmas(), num_states=1)


def input_gain_bits(transform: Transform, hessian: Float[np.ndarray, "d d"]) -> float:
    """Coding gain of the inputs' second moments in some coordinates, in bits per component."""
    if isinstance(transform, KLT):
        energies = np.asarray(transform.eigenvalues)
    else:
        energies = np.diagonal(sandwich(transform, hessian))
    return float(coding_gain_bits(jnp.asarray(energies + DAMPING * energies.mean(), jnp.float32)))


def magnitude_counts(y: Float[np.ndarray, "..."]) -> Int[np.ndarray, " bins"]:
    """Counts of the magnitudes over their root mean square, in the bins of :class:`Histogram`."""
    bins = round(HISTOGRAM_REACH / HISTOGRAM_WIDTH)
    relative = np.abs(y).ravel() / np.sqrt(np.mean(np.square(y), dtype=np.float64))
    return np.bincount(np.minimum(relative / HISTOGRAM_WIDTH, bins).astype(np.int64), minlength=bins + 1)
