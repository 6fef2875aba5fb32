"""The global step at which an entropy-coded network has a given rate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import OccError
from .losses import Coded, RateName
from .problem import Problem

TOLERANCE = 0.005
"""Bits per weight by which the rate may miss."""


def coded_at(
    bits: float,
    rate: RateName,
    problem: Problem,
    measure: Callable[[Coded], float],
    *,
    temperature: Float[Array, ""] | None = None,
    attempts: int = 20,
) -> Coded:
    """The objective at the step that gives a rate.

    Args:
        bits: per weight.
        rate: code length.
        problem: matrices.
        measure: bits per weight of an objective.
        temperature: of soft rounding, under a fitted density.
        attempts: evaluations, at most.

    Raises:
        OccError: no step gives this rate.
    """

    def objective(log2_step: float) -> Coded:
        return Coded(jnp.float32(2.0**log2_step), rate, temperature)

    # The rate falls with the logarithm of the step, by one at high rate and by less below; from above there is no bend
    # the other way, so that Newton steps with the last slope stay on one side.
    at = _width(problem) - bits
    found = measure(objective(at))
    slope = -1.0
    for _ in range(attempts):
        if abs(found - bits) < TOLERANCE:
            return objective(at)
        move = float(np.clip((bits - found) / slope, -8, 8))
        previous, at = found, at + move
        found = measure(objective(at))
        slope = float(np.clip((found - previous) / move, -1.2, -0.05))
    raise OccError(f"--bits {bits} cannot be reached: the rate stays at {found:.3f}; choose another")


def _width(problem: Problem) -> float:
    """About the mean binary logarithm of a weight in units in which every error costs the same."""
    logs = []
    firsts = [jax.tree.map(lambda leaf: leaf[0], matrix) for matrix in problem.blocks.values()]
    for matrix in (*firsts, *problem.outer.values()):
        rows = matrix.fisher if matrix.fisher.ndim == 1 else jnp.diagonal(matrix.fisher)
        power = jnp.mean(jnp.square(matrix.weight)) * jnp.mean(rows)
        if matrix.hessian is not None:
            power = power * jnp.mean(jnp.diagonal(matrix.hessian))
        logs.append(float(jnp.log2(power)) / 2)
    return float(np.mean(logs))
