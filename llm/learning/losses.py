r"""Layer-wise objectives: what the compressor would spend on every matrix in given coordinates, and what it would cost.

An entropy-coded matrix has the steps that its plan gives it (:mod:`occ_llm.compression.plan`),

.. math::

    t_{ij} = \frac{\sqrt{g_i}}{c\, U_{jj}} w_{ij}, \qquad H^{-1} = U^\top U ,

with weight, Fisher information and second moment in the coordinates in question. Every error then costs the same, so at
high rate the distortion is constant and the rate is all there is (``field``). As :math:`\sum_j \log U_{jj}` does not
depend on a rotation, :math:`H` drops out of it. At lower rates (``water`` and the fitted densities) single columns
count, and with them :math:`H`. A factor for each row or column changes nothing here: it moves the weights and their
steps alike.

Integers with shared scales have a constant rate; their objective is half the weighted error that rounding to the
nearest makes, the divergence in nats per token to second order.
"""

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.learned import (
    WATER_LMBDA,
    RateDistortion,
    affine_reconstruction,
    code_length,
    scale_field_bits,
    water_filled,
)
from occ_jax.metrics import hessian_weighted_error

from ..calibration import conjugate, moved_diagonal, space_of
from ..calibration.statistics import INPUT_OF, fisher_name, hessian_name
from ..config import ModelConfig
from ..coordinates import Coordinates, moves
from ..errors import OccError
from ..roles import linear_name
from .problem import Matrix

RateName = Literal["field", "water", "laplace", "generalized_gaussian"]
"""Code lengths: closed forms of Gaussian scale fields at high rate and with a water level, or fitted densities."""

SCALE_BITS = 16
"""Of the scale of a group of integers; its zero point has as many bits as an index."""


@pytree_dataclass
class Coded:
    """Entropy-coded at one global step.

    Attributes:
        step: the global constant.
        rate: code length.
    """

    step: Float[Array, ""]
    rate: RateName = static_field(default="field")

    @property
    def needs_hessians(self) -> bool:
        """Whether second moments of the inputs count."""
        return self.rate != "field"

    @property
    def lmbda(self) -> float:
        """Weight of the distortion."""
        return WATER_LMBDA if self.rate == "water" else 0.0

    def point(
        self, w: Float[Array, "d_out d_in"], rows: Float[Array, " d_out"], hessian: Array | None, key: Key[Array, ""]
    ) -> RateDistortion:
        """Bits per weight of a matrix, and its distortion in squared steps."""
        t = w * (jnp.sqrt(rows) / self.step)[:, None]
        none = jnp.zeros((), t.dtype)
        if self.rate == "field":
            return RateDistortion(scale_field_bits(t), none)
        assert hessian is not None
        t = t / relative_steps(hessian)[None, :]
        if self.rate == "water":
            return water_filled(t)
        return RateDistortion(code_length(t, key=key, family=self.rate, scales="field"), none)


@pytree_dataclass
class Integers:
    """Integers with a float16 scale and a zero point for each group of weights, rounded to the nearest.

    Attributes:
        bits: width.
        group_size: weights that share a scale.
    """

    bits: int = static_field()
    group_size: int = static_field()

    needs_hessians = True
    lmbda = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise OccError(f"--bits {self.bits} is no width of integers: choose 2 to 8")
        if self.group_size < 2:
            raise OccError(f"--group-size {self.group_size} shares nothing: choose 2 or more")

    def reconstruct(self, w: Float[Array, "d_out d_in"]) -> Float[Array, "d_out d_in"]:
        """What the integers make of a matrix; gradients go straight through the rounding."""
        return affine_reconstruction(w, self.bits, group_size=self.group_size)

    def point(
        self, w: Float[Array, "d_out d_in"], rows: Float[Array, " d_out"], hessian: Array | None, key: Key[Array, ""]
    ) -> RateDistortion:
        """Bits per weight of a matrix, and the divergence that its rounding makes."""
        assert hessian is not None
        error = hessian_weighted_error(w, self.reconstruct(w), hessian, row_weights=rows) / 2
        groups = math.ceil(w.shape[1] / self.group_size) / w.shape[1]
        return RateDistortion(jnp.float32(self.bits + groups * (SCALE_BITS + self.bits)), error)


Objective = Coded | Integers


def relative_steps(hessian: Float[Array, "d d"]) -> Float[Array, " d"]:
    r"""Diagonal of :math:`U` with :math:`H^{-1} = U^\top U`, differentiable; the second moment is damped already.

    Example:
        >>> print(relative_steps(jnp.diag(jnp.asarray([4.0, 1.0]))))
        [0.5 1. ]
    """
    return 1 / jnp.diagonal(jnp.linalg.cholesky(hessian[::-1, ::-1]))[::-1]


def block_points(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    matrices: Mapping[str, Matrix],
    key: Key[Array, ""],
) -> dict[str, RateDistortion]:
    """Each matrix of one block in coordinates whose only block is this one: bits per weight and distortion."""
    moved: dict[str, Array] = {}

    def hessian(kind: str, moment: Array) -> Array:
        tap = INPUT_OF[kind]
        if tap not in moved:
            moved[tap] = conjugate(space_of(config, hessian_name(0, tap), coordinates), moment)
        return moved[tap]

    points = {}
    for number, (kind, matrix) in enumerate(matrices.items()):
        name = linear_name(0, kind)
        rows = moved_diagonal(space_of(config, fisher_name(name), coordinates), matrix.fisher)
        w = moved_weight(config, name, coordinates, matrix.weight)
        if kind == "down":
            w = coordinates.hidden_of(0).forward(w)
        moment = None if matrix.hessian is None else hessian(kind, matrix.hessian)
        points[kind] = objective.point(w, positive(rows), moment, jax.random.fold_in(key, number))
    return points


def outer_points(
    config: ModelConfig, objective: Objective, coordinates: Coordinates, matrices: Mapping[str, Matrix], key: Array
) -> dict[str, RateDistortion]:
    """The embedding and a head of its own in the basis of the residual stream."""
    points = {}
    for number, (name, matrix) in enumerate(matrices.items()):
        w = moved_weight(config, name, coordinates, matrix.weight)
        moment = None if matrix.hessian is None else conjugate(coordinates.residual, matrix.hessian)
        points[name] = objective.point(w, matrix.fisher, moment, jax.random.fold_in(key, number))
    return points


def moved_weight(config: ModelConfig, name: str, coordinates: Coordinates, w: Array) -> Array:
    """A matrix in new coordinates; differentiable."""
    columns, rows = moves(config, name, coordinates)
    return rows.forward(columns.forward(w))


def positive(fisher: Float[Array, " n"]) -> Float[Array, " n"]:
    """As :func:`~occ_llm.compression.sensitivity.sensitivity_of` keeps them."""
    return jnp.maximum(fisher, 1e-3 * fisher.mean())
