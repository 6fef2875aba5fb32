r"""The plan of a matrix: how large its steps are and how wide its coefficients, relative to one global constant.

In the coordinates in which every error costs the same, the step of weight :math:`(i, j)` is

.. math::

    \Delta_{ij} = c \, \frac{U_{jj}}{\sqrt{g_i}}, \qquad H^{-1} = U^\top U

and :math:`c` is the only thing that is left to choose for the whole file: reverse water-filling. Rows that do not
matter, columns that the others can make up for, and layers that change nothing get few bits by themselves.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from occ_jax.codec import Levels
from occ_jax.quantization.scales import CLASS_SHIFT, CLASSES_PER_OCTAVE, NUM_CLASSES, fit_class_levels, log2_levels

STEP_RESOLUTION = 8
"""Levels per octave of the steps of rows and columns; costs less than 0.002 bit."""

_LEVELS_PER_OCTAVE = CLASSES_PER_OCTAVE << CLASS_SHIFT

_ENTRIES_TOGETHER = 1 << 22
"""Coefficients that are there in float64 at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MatrixPlan:
    """Integer levels of the steps and scale classes of one matrix at the global constant 1.

    Attributes:
        name: Hugging Face name.
        step_rows, step_cols: levels of the relative steps, :data:`STEP_RESOLUTION` per octave.
        class_rows, class_cols: levels of the scale of the coefficients in those steps.
    """

    name: str
    step_rows: Int[np.ndarray, " d_out"]
    step_cols: Int[np.ndarray, " d_in"]
    class_rows: Int[np.ndarray, " d_out"]
    class_cols: Int[np.ndarray, " d_in"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.step_rows.size, self.step_cols.size

    @property
    def num_weights(self) -> int:
        """Entries of the matrix."""
        return self.step_rows.size * self.step_cols.size

    def levels(self, step: float, classes_at: float | None = None) -> Levels:
        """Levels as a file holds them.

        Args:
            step: global constant.
            classes_at: a constant nearby for which the scale classes are chosen, ``step`` itself if ``None``. Where the
                classes change, and with them the tables of all coefficients, the rate jumps by a hundredth and more.
        """
        moved = round(_LEVELS_PER_OCTAVE * float(np.log2(classes_at or step)))
        return Levels(
            base=step,
            step_rows=self.step_rows,
            step_cols=self.step_cols,
            class_rows=self.class_rows - moved,
            class_cols=self.class_cols,
            resolution=STEP_RESOLUTION,
            class_shift=CLASS_SHIFT,
        )

    def with_steps_moved(self, levels: int) -> "MatrixPlan":
        """The plan with all steps so many levels larger, and the coefficients narrower in them by as much."""
        narrower = levels * _LEVELS_PER_OCTAVE // STEP_RESOLUTION
        return dataclasses.replace(self, step_rows=self.step_rows + levels, class_rows=self.class_rows - narrower)

    def scale_histogram(self) -> tuple[Int[np.ndarray, " sums"], Float[np.ndarray, " sums"]]:
        """Sums of a row's and a column's class level, and how many coefficients have each."""
        rows, first_row = _histogram(self.class_rows)
        cols, first_col = _histogram(self.class_cols)
        counts = np.convolve(rows, cols)
        return first_row + first_col + np.arange(counts.size), counts.astype(np.float64)


def plan_matrix(
    name: str, w: Float[np.ndarray, "d_out d_in"], cols: Float[np.ndarray, " d_in"], rows: Float[np.ndarray, " d_out"]
) -> MatrixPlan:
    """Fit the levels of a matrix.

    Args:
        name: Hugging Face name.
        w: coefficients.
        cols: relative steps of the columns, the diagonal of the Hessian's factor.
        rows: Fisher information of the rows.
    """
    step_rows = np.asarray(log2_levels(jnp.asarray(rows, jnp.float32) ** -0.5, STEP_RESOLUTION))
    step_cols = np.asarray(log2_levels(jnp.asarray(cols, jnp.float32), STEP_RESOLUTION))
    t, power = _in_steps(w, np.exp2(step_rows / STEP_RESOLUTION), np.exp2(step_cols / STEP_RESOLUTION))
    # Levels are fitted far above the class of no bits and shifted, so that one fit serves every step.
    octaves = 8 - round(float(np.log2(np.sqrt(power) + 1e-30)))
    class_rows, class_cols = fit_class_levels(jnp.asarray(np.ldexp(t, octaves, out=t)))
    return MatrixPlan(
        name=name,
        step_rows=step_rows,
        step_cols=step_cols,
        class_rows=np.asarray(class_rows) - octaves * _LEVELS_PER_OCTAVE,
        class_cols=np.asarray(class_cols),
    )


def _in_steps(
    w: Float[np.ndarray, "d_out d_in"], row: Float[np.ndarray, " d_out"], column: Float[np.ndarray, " d_in"]
) -> tuple[Float32[np.ndarray, "d_out d_in"], float]:
    """Coefficients in their steps, and their mean square; some rows at a time are there in float64."""
    t, energy = np.empty(w.shape, np.float32), 0.0
    together = max(1, _ENTRIES_TOGETHER // w.shape[1])
    for first in range(0, len(w), together):
        rows = slice(first, first + together)
        block = w[rows] / (row[rows, None] * column[None, :])
        t[rows], energy = block, energy + float(np.vdot(block, block))
    return t, energy / w.size


def expected_bits(plans: Sequence[MatrixPlan], class_bits: Float[np.ndarray, " classes"], step: float) -> float:
    """Bits of all indices of some matrices at the global constant ``step``.

    Args:
        plans: the matrices.
        class_bits: mean code length of a coefficient of each scale class.
        step: global constant.
    """
    moved = _LEVELS_PER_OCTAVE * np.log2(step)
    total = 0.0
    for plan in plans:
        sums, counts = plan.scale_histogram()
        total += counts @ np.interp((sums - moved) / (1 << CLASS_SHIFT) - 0.5, np.arange(NUM_CLASSES), class_bits)
    return float(total)


class RateOutOfReachError(ValueError):
    """Indices cannot take the bits that were asked for.

    Attributes:
        most_bits: what they take at most, all together; the least is nothing.
    """

    def __init__(self, target_bits: float, num_weights: int, most_bits_per_weight: float):
        super().__init__(
            f"{target_bits / num_weights:.3f} bits per weight for the indices cannot be reached: beside the side "
            f"information the range is above 0 and up to {most_bits_per_weight:.1f}"
        )
        self.most_bits = num_weights * most_bits_per_weight


def solve_step(
    plans: Sequence[MatrixPlan], class_bits: Float[np.ndarray, " classes"], target_bits: float, start: float = 1.0
) -> float:
    """The global constant at which some matrices are expected to take ``target_bits`` bits.

    Raises:
        RateOutOfReachError: no constant does.
    """
    low, high = start, start
    for _ in range(200):
        if expected_bits(plans, class_bits, low) < target_bits:
            low /= 2
        elif expected_bits(plans, class_bits, high) > target_bits:
            high *= 2
        else:
            break
    else:
        raise RateOutOfReachError(target_bits, sum(plan.num_weights for plan in plans), float(class_bits.max()))
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if expected_bits(plans, class_bits, middle) > target_bits else (low, middle)
    return float(np.float32(np.sqrt(low * high)))


def _histogram(levels: Int[np.ndarray, " n"]) -> tuple[np.ndarray, int]:
    first = int(levels.min())
    return np.bincount(levels - first), first
