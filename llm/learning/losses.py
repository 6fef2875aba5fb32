r"""Layer-wise objectives: what the compressor would spend on every matrix in given coordinates, and what it would cost.

An entropy-coded matrix has the steps that its plan gives it (:mod:`occ_llm.compression.plan`),

.. math::

    t_{ij} = \frac{\sqrt{g_i}}{c\, U_{jj}} w_{ij}, \qquad H^{-1} = U^\top U ,

with weight, Fisher information and second moment in the coordinates in question. Every error then costs the same, so at
high rate the distortion is constant and the rate is all there is (``field``). As :math:`\sum_j \log U_{jj}` does not
depend on a rotation, :math:`H` drops out of it. Where rows make up for each other as well
(:mod:`occ_jax.quantization.output_feedback`) so does the Fisher matrix, of which :math:`g` is the diagonal otherwise.
At lower rates (``water`` and the fitted densities) single columns count, and with them :math:`H`. A factor for each row
or column changes nothing here: it moves the weights and their steps alike.

Integers with shared scales have a constant rate; their objective is half the weighted error, the divergence in nats per
token to second order. Rounded to the nearest, it is that of the rounding itself. With feedback an error :math:`d_{ij}`
in column :math:`j` costs :math:`g_i d_{ij}^2 / U_{jj}^2` after all later columns have made up for it, and is uniform
within the step :math:`s_{ij}` of its group:

.. math::

    D = \tfrac12 \sum_{ij} g_i \frac{s_{ij}^2}{12\, U_{jj}^2} .
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from occ_jax._pytree import pytree_dataclass, static_field
from occ_jax.learned import (
    WATER_LMBDA,
    Ranges,
    RateDistortion,
    affine_reconstruction,
    code_length,
    column_costs,
    fed_back_error,
    fed_back_reconstruction,
    find_ranges,
    scale_field_bits,
    water_filled,
)
from occ_jax.metrics import hessian_weighted_error
from occ_jax.transforms import AlongAxis, Transform, dual, forward_rows

from ..calibration import conjugate, moved_diagonal, space_of
from ..calibration.moments import positive
from ..calibration.statistics import fisher_name, hessian_name
from ..config import ModelConfig
from ..coordinates import Coordinates, moves
from ..errors import OccError
from ..roles import INPUT_OF, linear_name
from .problem import Matrix

RateName = Literal["field", "water", "laplace", "generalized_gaussian"]
"""Code lengths: closed forms of Gaussian scale fields at high rate and with a water level, or fitted densities."""

FITTED_RATES: tuple[RateName, ...] = ("laplace", "generalized_gaussian")
"""Those with noise in the place of rounding."""

SCALE_BITS = 16
"""Of the scale of a group of integers; its zero point has as many bits as an index."""

LEAST_ROWS = 128
"""Of a matrix in a sample: column scales that are fitted to so few are fitted to their noise by 0.006 bit."""

GRADIENT_SHARE = 0.25
"""Part of the columns from which the gradient in a second moment is taken."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """What errors along the columns of a moved matrix cost.

    Attributes:
        hessian: damped second moment of the inputs, in original coordinates; ``None`` where it does not count.
        space: transform of the inputs.
        key: of the columns whose costs have a gradient.
    """

    hessian: Float[Array, "d d"] | None
    space: Transform
    key: Key[Array, ""]

    @cached_property
    def costs(self) -> Float[Array, " d"]:
        """What feedback leaves of a unit error in every column, in the coordinates of the matrix."""
        assert self.hessian is not None
        return column_costs(conjugate(self.space, self.hessian), self.key, GRADIENT_SHARE)

    def cost(self, error: Float[Array, "k d"], rows: Float[Array, " k"]) -> Float[Array, ""]:
        """Divergence that an error in the coordinates of the matrix makes: it goes back to where the moment is."""
        assert self.hessian is not None
        error = dual(self.space).inverse(error)
        return hessian_weighted_error(error, jnp.zeros_like(error), self.hessian, row_weights=rows) / 2


@pytree_dataclass
class Coded:
    """Entropy-coded at one global step.

    Attributes:
        step: the global constant.
        rate: code length.
        temperature: of soft rounding, under a fitted density; plain noise if ``None``.
    """

    step: Float[Array, ""]
    rate: RateName = static_field(default="field")
    temperature: Float[Array, ""] | None = None

    adds_up = False  # distortions are means over weights

    @property
    def lmbda(self) -> float:
        """Weight of the distortion."""
        return WATER_LMBDA if self.rate == "water" else 0.0

    def point(
        self, w: Float[Array, "d_out d_in"], rows: Float[Array, " d_out"], inputs: Inputs, key: Key[Array, ""]
    ) -> RateDistortion:
        """Bits per weight of a matrix, and its distortion in squared steps."""
        t = w * (jnp.sqrt(rows) / self.step)[:, None]
        none = jnp.zeros((), t.dtype)
        if self.rate == "field":
            return RateDistortion(scale_field_bits(t), none)
        t = t * jnp.sqrt(inputs.costs)[None, :]
        if self.rate == "water":
            return water_filled(t)
        bits = code_length(t, key=key, family=self.rate, scales="field", temperature=self.temperature)
        return RateDistortion(bits, none)

    def at(self, temperature: Float[Array, ""]) -> "Coded":
        """The objective at another temperature, if it has one."""
        return self if self.temperature is None else dataclasses.replace(self, temperature=temperature)


@pytree_dataclass
class Integers:
    """Integers with a float16 scale and a zero point for each group of weights.

    Attributes:
        bits: width.
        group_size: weights that share a scale.
        feedback: whether rounding errors are fed back.
        clip: whether the range of every group is searched for.
    """

    bits: int = static_field()
    group_size: int = static_field()
    feedback: bool = static_field(default=False)
    clip: bool = static_field(default=False)

    lmbda = 1.0
    adds_up = True  # what matrices do to the divergence

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise OccError(f"--bits {self.bits} is no width of integers: choose 2 to 8")
        if self.group_size < 2:
            raise OccError(f"--group-size {self.group_size} shares nothing: choose 2 or more")

    def reconstruct(
        self,
        w: Float[Array, "d_out d_in"],
        passed_on: Float[Array, "d_in d_in"] | None,
        key: Key[Array, ""],
        ranges: Ranges | None = None,
    ) -> Float[Array, "d_out d_in"]:
        """A matrix with the errors of its integers: of rounding to the nearest, or a draw of what feedback leaves.

        Args:
            w: the matrix.
            passed_on: with feedback, the :func:`~occ_jax.learned.regressions` of its inputs.
            key: source of the draw.
            ranges: with feedback and ``clip``, what :meth:`search` finds.
        """
        if not self.feedback:
            return affine_reconstruction(w, self.bits, group_size=self.group_size, clip=self.clip)
        assert passed_on is not None
        assert (ranges is not None) == self.clip
        return fed_back_reconstruction(w, passed_on, self.bits, key=key, group_size=self.group_size, ranges=ranges)

    def search(self, w: Float[Array, "d_out d_in"], costs: Float[Array, " d_in"]) -> Ranges:
        """The ranges of a matrix with ``clip``, by what an error in each column costs."""
        return find_ranges(w, costs, self.bits, group_size=self.group_size)

    def point(
        self, w: Float[Array, "d_out d_in"], rows: Float[Array, " d_out"], inputs: Inputs, key: Key[Array, ""]
    ) -> RateDistortion:
        """Bits per weight of a matrix, and the divergence that its rounding makes."""
        if self.feedback:
            options = {"group_size": self.group_size, "clip": self.clip}
            error = jnp.dot(rows, fed_back_error(w, inputs.costs, self.bits, **options), precision="highest") / 2
        else:
            error = inputs.cost(w - self.reconstruct(w, None, key), rows)
        groups = math.ceil(w.shape[1] / self.group_size) / w.shape[1]
        return RateDistortion(jnp.float32(self.bits + groups * (SCALE_BITS + self.bits)), error)


Objective = Coded | Integers


def block_points(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    matrices: Mapping[str, Matrix],
    key: Key[Array, ""],
    *,
    row_share: float = 1.0,
) -> dict[str, RateDistortion]:
    """Each matrix of one block in coordinates whose only block is this one: bits per weight and distortion.

    Args:
        config: architecture.
        objective: what to measure.
        coordinates: with one block.
        matrices: of the block, by kind.
        key: source of the noise and of the sample.
        row_share: share of the rows that is looked at, drawn at random; what is found stands for all of them.
    """
    taps = {INPUT_OF[kind]: matrix.hessian for kind, matrix in matrices.items()}
    inputs = {
        tap: Inputs(h, space_of(config, hessian_name(0, tap), coordinates), jax.random.fold_in(key, len(matrices) + i))
        for i, (tap, h) in enumerate(taps.items())
    }
    points = {}
    for number, (kind, matrix) in enumerate(matrices.items()):
        name, tap = linear_name(0, kind), INPUT_OF[kind]
        rows_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
        chosen = sample(len(matrix.weight), row_share, rows_key, least=LEAST_ROWS)
        rows = _row_costs(matrix, space_of(config, fisher_name(name), coordinates), chosen)
        w = moved_weight(config, name, coordinates, matrix.weight, chosen)
        point = objective.point(coordinates.stored_of(0, tap).forward(w), rows, inputs[tap], noise_key)
        points[kind] = _of_all(objective, point, len(matrix.weight) / len(w))
    return points


def outer_points(
    config: ModelConfig,
    objective: Objective,
    coordinates: Coordinates,
    matrices: Mapping[str, Matrix],
    key: Key[Array, ""],
    *,
    row_share: float = 1.0,
) -> dict[str, RateDistortion]:
    """The embedding and a head of its own in the basis of the residual stream; arguments as :func:`block_points`."""
    points = {}
    for number, (name, matrix) in enumerate(matrices.items()):
        rows_key, columns_key, noise_key = jax.random.split(jax.random.fold_in(key, number), 3)
        chosen = sample(len(matrix.weight), row_share, rows_key, least=LEAST_ROWS)
        w = moved_weight(config, name, coordinates, matrix.weight, chosen)
        rows = matrix.fisher if chosen is None else matrix.fisher[chosen]
        point = objective.point(w, rows, Inputs(matrix.hessian, coordinates.residual, columns_key), noise_key)
        points[name] = _of_all(objective, point, len(matrix.weight) / len(w))
    return points


def moved_weight(
    config: ModelConfig, name: str, coordinates: Coordinates, w: Array, chosen: Int[Array, " k"] | None = None
) -> Array:
    """A matrix, or some of its rows, in new coordinates; differentiable.

    Args:
        config: architecture.
        name: of the matrix.
        coordinates: the new ones.
        w: ``d_out x d_in``.
        chosen: which of the moved rows to make; all by default.
    """
    columns, rows = moves(config, name, coordinates)
    return columns.forward(forward_rows(rows.transform if isinstance(rows, AlongAxis) else rows, w, chosen))


def _row_costs(matrix: Matrix, space: Transform, chosen: Int[Array, " k"] | None) -> Float[Array, " k"]:
    """What an error in each of the chosen rows of a moved matrix costs."""
    if not matrix.feeds_rows:
        return positive(moved_diagonal(space, matrix.fisher, chosen))
    return matrix.fisher if chosen is None else matrix.fisher[chosen]


def sample(number: int, share: float, key: Key[Array, ""], *, least: int) -> Int[Array, " k"] | None:
    """Which of some things stand for all of them in one step; ``None`` where it is all of them.

    Args:
        number: of the things.
        share: of them that is drawn.
        key: source of randomness.
        least: drawn in any case, or as many as there are.
    """
    size = min(number, max(least, math.ceil(share * number)))
    return None if size == number else jax.random.choice(key, number, (size,), replace=False)


def _of_all(objective: Objective, point: RateDistortion, scale: float) -> RateDistortion:
    """What a sample says about all rows: means stay, and sums grow with their number."""
    return RateDistortion(point.bits, scale * point.distortion) if objective.adds_up else point
