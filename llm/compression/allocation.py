"""One constant for the whole file: how large the steps must be for the target, from a few rows of every matrix.

Rows are independent of each other given the Hessian, so quantizing some of them (with feedback, in full width)
tells what all of them cost. Their code lengths by scale class make one curve of rate against step for any set of
matrices; their symbols make the tables of the file. Two or three such probes settle the step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, cached_property

import jax
import numpy as np
from jaxtyping import Float

from occ_jax.entropy.stacks import host_cost_bits
from occ_jax.quantization.codebook import (
    Codebook,
    SearchTables,
    Statistics,
    codebook_to_bytes,
    estimate,
    search_tables,
)
from occ_jax.quantization.scales import NUM_CLASSES, class_sigmas
from occ_jax.quantization.trellis import gaussian_codebook, gaussian_statistics
from occ_jax.quantization.ungerboeck import num_parities

from ..roles import is_linear
from .plan import MatrixPlan, expected_bits, solve_step

MAX_PROBES = 2
_SETTLED = 0.02  # relative change of the step from probe to probe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Allocation:
    """The outcome: one step and one codebook for every matrix of the file."""

    step: float
    codebook: Codebook
    linear_bits: float
    """Expected bits per weight of the linear layers, without side information."""
    class_bits: Float[np.ndarray, " classes"]
    """Expected code length of a coefficient of each scale class, bits."""
    excess: float = 0.0
    """Bits per weight that whole matrices took beyond what the probes let expect."""
    classes_at: float | None = None
    """Step for which the scale classes are chosen, if not :attr:`step` itself."""

    @cached_property
    def tables(self) -> SearchTables:
        """The codebook, unfolded once for the search."""
        return search_tables(self.codebook)


Probe = Callable[[float, Codebook], Statistics]
"""Quantize the probe rows of every matrix at a step, with a codebook; say which symbols came out."""


def allocate(
    plans: Mapping[str, MatrixPlan],
    probe: Probe,
    *,
    num_states: int,
    target: Callable[[str], bool] = is_linear,
    target_bits: float | None = None,
    step: float = 1.0,
    pilot: Callable[[Allocation], float] | None = None,
    near: Allocation | None = None,
) -> Allocation:
    """Choose the global step and the codebook.

    Args:
        plans: of all matrices, by name.
        probe: quantizes the probe rows.
        num_states: states of the trellis.
        target: names of the matrices that ``target_bits`` counts.
        target_bits: bits that their indices and the shared tables are to take; or ``None``.
        step: the step itself, if there is no target.
        pilot: codes a few whole matrices and returns how many bits per weight they take beyond what was expected; one
            correction for all that the probes do not see.
        near: the allocation of a neighbouring rate of the same network; its codebook and its correction are where the
            search starts, so that one probe will do before the pilot.

    Raises:
        ValueError: no step reaches the target.
    """
    linear = [plan for name, plan in plans.items() if is_linear(name)]
    counted = [plan for name, plan in plans.items() if target(name)]
    weights = sum(plan.num_weights for plan in counted)
    start = near or _gaussian_start(num_states)
    codebook, class_bits, excess = start.codebook, start.class_bits, start.excess

    def solved(start: float, excess: float, *, measured: bool = True) -> float:
        if target_bits is None:
            return float(np.float32(step))
        tables = 8.0 * len(codebook_to_bytes(codebook)) if measured else 0.0
        return solve_step(counted, class_bits, target_bits - tables - excess * weights, start)

    current = solved(start.step, excess, measured=near is not None)
    for _ in range(1 if near else MAX_PROBES):
        statistics = probe(current, codebook)
        codebook = refined_codebook(statistics, num_states)
        class_bits = mean_class_bits(statistics, codebook, fallback=class_bits)
        previous, current = current, solved(current, excess)
        if abs(np.log(current / previous)) < _SETTLED:
            break
    if pilot is not None and target_bits is not None:
        found = Allocation(step=current, codebook=codebook, linear_bits=np.nan, class_bits=class_bits)
        excess = pilot(found)
        current = solved(current, excess)
    expected = expected_bits(linear, class_bits, current) / sum(plan.num_weights for plan in linear)
    return Allocation(step=current, codebook=codebook, linear_bits=expected, class_bits=class_bits, excess=excess)


@cache
def _gaussian_start(num_states: int) -> Allocation:
    """What is expected of Gaussian coefficients, before anything was measured: the same for all files."""
    codebook = gaussian_codebook(class_sigmas(), num_states=num_states)
    class_bits = mean_class_bits(gaussian_statistics(class_sigmas(), num_states), codebook)
    return Allocation(step=1.0, codebook=codebook, linear_bits=np.nan, class_bits=class_bits)


def mean_class_bits(
    statistics: Statistics, codebook: Codebook, *, fallback: Float[np.ndarray, " classes"] | None = None
) -> Float[np.ndarray, " classes"]:
    """Mean code length of a coefficient of each scale class, in bits; does not fall from class to class.

    Args:
        statistics: symbols that occurred.
        codebook: prices them.
        fallback: for classes with few coefficients.
    """
    freq, offset = np.asarray(codebook.tables.freq), np.asarray(codebook.tables.offset)
    costs = host_cost_bits(codebook.tables).astype(np.float64)
    column = np.arange(-statistics.max_symbol, statistics.max_symbol + 1)[None, :] - offset[:, None]
    escape = freq.shape[1] - 1
    column = np.where((column >= 0) & (column < escape), column, escape)
    spent = (statistics.counts * np.take_along_axis(costs, column, 1)).reshape(NUM_CLASSES, -1).sum(1)
    count = statistics.counts.reshape(NUM_CLASSES, -1).sum(1)
    mean = spent / np.maximum(count, 1e-12)
    if fallback is not None:
        mean = np.where(count >= 1000, mean, fallback)
    return np.maximum.accumulate(mean)


def refined_codebook(statistics: Statistics, num_states: int) -> Codebook:
    """Codebook of measured symbols, with the expectation for Gaussian classes mixed in at a small weight."""
    prior = gaussian_statistics(class_sigmas(), num_states)
    seen = statistics.counts.reshape(NUM_CLASSES, -1).sum(1) > 0
    weight = np.repeat(4.0 * seen, num_parities(num_states))[:, None]
    prior = jax.tree.map(lambda x: x * weight, prior)
    return estimate(jax.tree.map(np.add, statistics, prior), num_states)


def probe_rows(num_rows: int, num_cols: int, *, share: int = 8, smallest: int = 32, largest: int = 1 << 20) -> slice:
    """Evenly spaced rows: one in ``share``, at least ``smallest``, and at most ``largest`` coefficients in all.

    Example:
        >>> probe_rows(576, 576), probe_rows(49152, 576), probe_rows(20, 64)
        (slice(0, None, 8), slice(0, None, 27), slice(0, None, 1))
    """
    stride = max(1, min(share, num_rows // smallest))
    stride = max(stride, -(-num_rows * num_cols // largest))
    return slice(0, None, stride)
