r"""Steps and scale classes that a decoder computes from one integer per row and one per column.

Steps lie on a grid of ``resolution`` levels per octave and scales, relative to the step, on one of
``CLASSES_PER_OCTAVE``:

.. math::

    \Delta_{ij} = 2^{(r_i + c_j) / R}
    \qquad
    \mathrm{class}_{ij} = \operatorname{clip}\big(\lfloor (a_i + b_j) / 2^h \rfloor, 0, K - 1\big)
    \qquad
    \sigma_{\mathrm{class}} = \sigma_0 2^{\mathrm{class} / 4} \text{ steps}

A class says how many steps wide the weights are, nothing else, so one set of tables serves every tensor of every model.
What a grid costs: a scale that is off by a factor :math:`e^\epsilon` makes a Gaussian code
:math:`\epsilon^2 / \ln 2` bits longer, a step that is off changes the Lagrangian by as much; uniform errors on a grid
of :math:`R` levels per octave have :math:`\epsilon^2 = (\ln 2 / R)^2 / 12`, that is 0.0036 bit at
:math:`R = 4` and 0.0009 bit at :math:`R = 8`, once for each rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

CLASSES_PER_OCTAVE = 4
"""Scale classes per factor of two."""

NUM_CLASSES = 48
"""Number of scale classes: standard deviations of 1/4 to 860 steps, rates of nothing to 9 bits."""

SMALLEST_SIGMA = 0.25
"""Standard deviation of class 0, in steps: so small that every trellis gives it no bits."""

CLASS_SHIFT = 1
"""The default ``h``: levels of rows and columns are twice as fine as the classes of their sums."""

LARGEST_LEVEL = 1 << 14
"""Levels stay inside ``[-2**14, 2**14]``."""


def class_sigmas(num_classes: int = NUM_CLASSES) -> Float[np.ndarray, " classes"]:
    """Standard deviation that each scale class stands for, in steps.

    Example:
        >>> class_sigmas()[[0, 8, 12]]
        array([0.25, 1.  , 2.  ])
    """
    return SMALLEST_SIGMA * 2.0 ** (np.arange(num_classes) / CLASSES_PER_OCTAVE)


def scale_classes(
    row_level: Int[Array, "*batch rows"] | Int[np.ndarray, "*batch rows"],
    column_level: Int[Array, "*batch columns"] | Int[np.ndarray, "*batch columns"],
    num_classes: int = NUM_CLASSES,
    *,
    shift: int = 0,
) -> Int32[Array, "*batch rows columns"]:
    """Scale class of every weight, from integers only.

    Example:
        >>> scale_classes(jnp.array([-3, 4]), jnp.array([0, 1, 9]), 8, shift=1)
        Array([[0, 0, 3],
               [2, 2, 6]], dtype=int32)
    """
    total = jnp.asarray(row_level, jnp.int32)[..., :, None] + jnp.asarray(column_level, jnp.int32)[..., None, :]
    return jnp.clip(total >> shift, 0, num_classes - 1)


@partial(jax.jit, static_argnames="resolution")
def log2_levels(x: Float[Array, "..."], resolution: int) -> Int32[Array, "..."]:
    """Level of each positive number on a grid of ``resolution`` per octave; zeros go to the lowest level.

    Example:
        >>> log2_levels(jnp.array([1.0, 2.0, 0.7]), 4)
        Array([ 0,  4, -2], dtype=int32)
    """
    level = jnp.round(resolution * jnp.log2(jnp.asarray(x, jnp.float32)))
    return jnp.clip(level, -LARGEST_LEVEL, LARGEST_LEVEL).astype(jnp.int32)


def from_levels(level: Int[Array, "..."], resolution: int) -> Float[Array, "..."]:
    """The number of each level, in float32: inverse of :func:`log2_levels`."""
    return jnp.exp2(level.astype(jnp.float32) / resolution)


@partial(jax.jit, static_argnames=("shift", "num_iterations"))
def fit_class_levels(
    t: Float[Array, "*batch rows columns"], *, shift: int = CLASS_SHIFT, num_iterations: int = 3
) -> tuple[Int32[Array, "*batch rows"], Int32[Array, "*batch columns"]]:
    r"""Integer levels of rows and columns under which values in steps have the shortest Gaussian code.

    Alternates between the two maximum-likelihood updates

    .. math::

        \alpha_i^2 = \operatorname{mean}_j t_{ij}^2 / \beta_j^2
        \qquad
        \beta_j^2 = \operatorname{mean}_i t_{ij}^2 / \alpha_i^2

    and then rounds the columns, fits the rows to the rounded columns, rounds them, and the columns once more.

    Args:
        t: values, in steps.
        shift: levels are ``2**shift`` times as fine as classes.
        num_iterations: real-valued updates; they converge in two or three.

    Returns:
        Levels for :func:`scale_classes` with the same ``shift``.
    """
    energy = jnp.square(t.astype(jnp.float32))
    resolution = CLASSES_PER_OCTAVE << shift
    floor = jnp.float32(SMALLEST_SIGMA**2 / 16)  # far into the class of no bits: no need to tell zeros apart

    def row_power(columns):
        return jnp.maximum(jnp.einsum("...ij,...j->...i", energy, 1 / columns) / energy.shape[-1], floor)

    def column_power(rows):
        return jnp.maximum(jnp.einsum("...ij,...i->...j", energy, 1 / rows) / energy.shape[-2], 1e-6)

    def rounded(power):
        return log2_levels(jnp.sqrt(power), resolution)

    def power(level):
        return jnp.square(from_levels(level, resolution))

    columns = jnp.ones(t.shape[:-2] + t.shape[-1:], jnp.float32)
    for _ in range(num_iterations):
        rows = row_power(columns)
        columns = column_power(rows)
    columns = columns / jnp.exp(jnp.mean(jnp.log(columns), axis=-1, keepdims=True))
    column_level = rounded(columns)
    row_level = rounded(row_power(power(column_level)))
    column_level = rounded(column_power(power(row_level)))
    # The level of class 0, and half a class so that the shift rounds to the nearest.
    origin = round(resolution * -np.log2(SMALLEST_SIGMA)) + (1 << shift >> 1)
    return row_level + origin, column_level
