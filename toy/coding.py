r"""Function-space rate-distortion curves with the library's own codec.

The step of coordinate :math:`j` is :math:`c / \sqrt{h_j}` on a grid of 8 levels per octave, so that every coordinate
adds :math:`c^2 / 12` to the error of the function (water-filling). Every coordinate names one table of a standing set.
Counted are all sections of the coded tensor: steps, names of tables, lanes and words. The standing tables belong to
the coder and are the same for every representation and in all coordinates.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from occ_jax.codec import CodedTensor, Lattice, Levels, decode_tensor, decode_tensors, encode_lattices, encode_tensor
from occ_jax.entropy import GeneralizedGaussian, cost_bits, stack
from occ_jax.quantization import fit_affine
from occ_jax.quantization.codebook import REACH, Codebook

from .coordinates import Coordinates

SHAPES = (2.0, 1.0, 0.5)
"""Shapes of the standing tables: Gaussian, Laplace, and a peak with heavy tails."""

WIDTHS = tuple(2.0 ** (i / 2) for i in range(-8, 17))
"""Standard deviations of the standing tables, in steps."""

STEP_RESOLUTION = 8
"""Levels of a coordinate's step per octave."""

SENSITIVITY_FLOOR = 1e-6
"""No step is larger than that of a coordinate with this fraction of the largest sensitivity."""

LANE_SYMBOLS = 1 << 9
"""Symbols of a lane: short, as the tensors here are small and coded on the host."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatePoint:
    """One file: bytes for every function, and relative squared error of the functions decoded from it."""

    bytes_per_function: float
    error: float


@functools.cache
def standing_codebook() -> Codebook:
    """The tables that every file of the laboratory may name: each width in each shape.

    Example:
        >>> standing_codebook().num_classes
        75
    """
    tables = [_table(width, shape) for width in WIDTHS for shape in SHAPES]
    return Codebook(stack(tables), jnp.zeros((len(tables), 2 * REACH + 1), jnp.int8), num_states=1)


def _table(width: float, shape: float):
    scale = width * math.exp((math.lgamma(1 / shape) - math.lgamma(3 / shape)) / 2)
    return GeneralizedGaussian(scale=jnp.float32(scale), shape=jnp.float32(shape)).freq_table()


def best_tables(q: Int32[np.ndarray, "draws axes"]) -> Int32[np.ndarray, " axes"]:
    """Number of the standing table with the shortest code for every column."""
    bits, offset = _standing_costs()
    escape = bits.shape[1] - 1
    total = np.empty((len(bits), q.shape[1]))
    for t, (row, first) in enumerate(zip(bits, offset)):
        where = q - first
        total[t] = row[np.where((where >= 0) & (where < escape), where, escape)].sum(0)
    return total.argmin(0).astype(np.int32)


@functools.cache
def _standing_costs() -> tuple[Float[np.ndarray, "tables symbols"], Int32[np.ndarray, " tables"]]:
    tables = standing_codebook().tables
    return np.asarray(cost_bits(tables)), np.asarray(tables.offset)


def relative_steps(sensitivity: Float[np.ndarray, " axes"]) -> Int32[np.ndarray, " axes"]:
    """Levels of the steps that make every coordinate's error cost the same, relative to the most sensitive one.

    Example:
        >>> relative_steps(np.array([4.0, 1.0]))
        array([0, 8], dtype=int32)
    """
    relative = np.maximum(sensitivity / sensitivity.max(), SENSITIVITY_FLOOR)
    return np.rint(-STEP_RESOLUTION * np.log2(relative) / 2).astype(np.int32)


def quantize_columns(
    y: Float[np.ndarray, "draws axes"], step: float, step_levels: Int32[np.ndarray, " axes"]
) -> Lattice:
    """Indices of coefficients, one row for each function, with steps and a table for each column."""
    rows, steps = len(y), step * np.exp2(step_levels / STEP_RESOLUTION)
    q = np.clip(np.rint(y / steps[None, :]), -(2**31 - 1), 2**31 - 1).astype(np.int32)
    nothing = np.zeros(rows, np.int32)
    levels = Levels(
        base=step,
        step_rows=nothing,
        step_cols=step_levels,
        class_rows=nothing,
        class_cols=best_tables(q),
        resolution=STEP_RESOLUTION,
    )
    return Lattice(q, levels)


def encode_columns(files: Sequence[Lattice]) -> list[CodedTensor]:
    """Code the indices of several files at once, which takes fewer and wider calls.

    Example:
        >>> coded = encode_columns([quantize_columns(np.array([[0.26, 3.0]]), 0.5, np.array([0, 8], np.int32))])
        >>> print(decode_tensors(coded)[0])
        [[0.5 3. ]]
    """
    return encode_lattices(files, standing_codebook(), lane_symbols=LANE_SYMBOLS)


def rate_distortion(
    theta: Float[np.ndarray, "draws size"],
    coordinates: Coordinates,
    relative_error: Callable[[Float[np.ndarray, "draws size"]], float],
    targets: Sequence[float],
    *,
    power: float,
    uniform_step: bool = False,
) -> list[RatePoint]:
    r"""Files at steps that aim at several errors, and what they take and give.

    Args:
        theta: parameters of the functions.
        coordinates: coordinates in which they are coded.
        relative_error: relative squared error of the functions of decoded parameters.
        targets: relative errors that quantization should make, :math:`n c^2 / 12` over ``power``.
        power: mean square of the functions.
        uniform_step: one step for all coordinates, whatever their sensitivity.
    """
    y = theta @ coordinates.forward
    h = coordinates.sensitivity
    levels = np.zeros(h.size, np.int32) if uniform_step else relative_steps(h)
    # Error of the function per squared base step: every coordinate's sensitivity times its own squared step.
    per_step = float((h * np.exp2(2 * levels / STEP_RESOLUTION)).sum()) / 12
    files = encode_columns([quantize_columns(y, math.sqrt(target * power / per_step), levels) for target in targets])
    return [
        RatePoint(
            bytes_per_function=coded.num_bytes / len(theta),
            error=relative_error(decoded.astype(np.float64) @ coordinates.inverse),
        )
        for coded, decoded in zip(files, decode_tensors(files), strict=True)
    ]


def bytes_at(points: Sequence[RatePoint], error: float) -> float | None:
    """Bytes per function at an error, interpolated in its logarithm; None outside of what was measured.

    Example:
        >>> curve = [RatePoint(bytes_per_function=10.0, error=0.1), RatePoint(bytes_per_function=20.0, error=0.001)]
        >>> round(bytes_at(curve, 0.01), 6), bytes_at(curve, 0.5)
        (15.0, None)
    """
    ordered = sorted(points, key=lambda point: point.error)
    for finer, coarser in itertools.pairwise(ordered):
        if finer.error <= error <= coarser.error:
            span = math.log(coarser.error / finer.error)
            share = math.log(error / finer.error) / span if span else 0.0
            return finer.bytes_per_function + share * (coarser.bytes_per_function - finer.bytes_per_function)
    return None


def integer_error(
    theta: Float[np.ndarray, "draws size"],
    coordinates: Coordinates,
    relative_error: Callable[[Float[np.ndarray, "draws size"]], float],
    *,
    bits: int = 4,
    group_size: int = 32,
) -> float:
    """Relative error of the functions when their coordinates are packed integers in groups with shared scales."""
    y = jnp.asarray(theta @ coordinates.forward, jnp.float32)
    quantizer = jax.jit(fit_affine, static_argnames=("bits", "group_size"))(y, bits=bits, group_size=group_size)
    coded = encode_tensor(y, quantizer)
    return relative_error(decode_tensor(coded).astype(np.float64) @ coordinates.inverse)
