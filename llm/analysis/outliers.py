r"""Are outliers artifacts of coordinates? Where the largest weights sit, what is left of them, and what they are worth.

The largest 0.1 % of a matrix's entries are its outliers, above a threshold :math:`\tau`. Three questions:

**Where?** How many of them lie in the 1 % of the rows, and of the columns, that hold most of them.

**What is left after a rotation?** The entries of :math:`T W` above the *original* :math:`\tau`, over the number of
outliers. A rotation makes every row nearly Gaussian with the row's own energy :math:`\sigma_i^2`, which predicts
:math:`\sum_i d_{in} \operatorname{erfc}(\tau / \sigma_i \sqrt 2)` of them: what survives beyond chance has not
been an artifact of the columns' axes. And the energy of the outliers themselves: with :math:`S` the matrix of the
outliers alone, the share of :math:`\lVert T S \rVert^2` at the largest 0.1 % of :math:`T W`.

**What are they worth?** All entries are quantized with one step per matrix, a quarter of its root mean square, which
is the same in all coordinates. Once the largest 0.1 % *of these coordinates* are left exact, once they are quantized
like the rest: the same step, clipped to the range of the rest. The difference in KL divergence is the price of the
outliers. As a control, the errors that clipping makes in original coordinates are added to entries drawn at random.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import erfc

from occ_jax.metrics import hessian_weighted_error

from ..parallel import Track, in_pairs, untracked
from ..roles import kind_of, layer_of
from .divergence import Divergence, Trial
from .subject import Subject, from_coordinates, to_coordinates

SHARE = 1e-3
"""Share of a matrix's entries that are called outliers."""

CROWD = 0.01
"""Share of the rows, or columns, that hold most outliers."""

STEP_RMS = 0.25
"""Step of the quantizer, in root mean squares: fine enough that the rest does not hide the outliers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """The largest entries of one matrix in one coordinate system.

    Attributes:
        matrix, layer, kind, coordinates: which.
        num_weights: entries of the matrix.
        threshold_rms: the smallest of them, over the root mean square; 3.29 for a Gaussian.
        energy_share: of the matrix's energy that they hold.
        in_crowded_rows, in_crowded_columns: share of them in the 1 % of rows, of columns, that hold most.
        survivors: entries above the threshold of the original coordinates, over the number of outliers there.
        expected_survivors: the same for Gaussian rows of the same energies.
        energy_kept: share of the original outliers' energy that lies at the largest entries here.
    """

    matrix: str
    layer: int
    kind: str
    coordinates: str
    num_weights: int
    threshold_rms: float
    energy_share: float
    in_crowded_rows: float
    in_crowded_columns: float
    survivors: float
    expected_survivors: float
    energy_kept: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """What the outliers of one coordinate system are worth to the function.

    Attributes:
        coordinates: which; ``scattered`` is the control.
        kept: divergence with the outliers exact and the rest quantized.
        clipped: divergence with the outliers quantized like the rest.
        difference, difference_se: price of the outliers and its standard error, nats per token.
        predicted: second-order prediction of the difference.
    """

    coordinates: str
    kept: float
    clipped: float
    difference: float
    difference_se: float
    predicted: float


SCATTERED = "scattered"


def measure_outliers(subject: Subject, names: Sequence[str], *, track: Track = untracked) -> list[Outliers]:
    """Where the outliers of some matrices are and what is left of them in other coordinates."""

    def measure(name: str) -> list[Outliers]:
        w = np.asarray(subject.weights[name])
        largest = top_entries(w)
        threshold = float(np.abs(w[largest]).min())
        expected = expected_survivors(w, threshold)
        alone = jnp.asarray(np.where(largest, w, 0).astype(w.dtype))
        found = []
        for coordinates, transform in subject.transforms(name):
            y = np.asarray(to_coordinates(transform, jnp.asarray(w)))
            s = np.asarray(to_coordinates(transform, alone))
            found.append(_outliers(name, coordinates, y, s, threshold, expected))
        return found

    return [
        one for _, found in in_pairs(measure, track(names, "outliers"), names, shape=subject.shape) for one in found
    ]


def _outliers(
    name: str, coordinates: str, y: np.ndarray, moved_outliers: np.ndarray, threshold: float, expected: float
) -> Outliers:
    largest = top_entries(y)
    count, energy = int(largest.sum()), np.square(y, dtype=np.float64)
    moved = np.square(moved_outliers, dtype=np.float64)
    layer = layer_of(name)
    assert layer is not None, name
    return Outliers(
        matrix=name,
        layer=layer,
        kind=kind_of(name),
        coordinates=coordinates,
        num_weights=y.size,
        threshold_rms=float(np.abs(y[largest]).min() / np.sqrt(energy.mean())),
        energy_share=float(energy[largest].sum() / energy.sum()),
        in_crowded_rows=crowding(largest.sum(1)),
        in_crowded_columns=crowding(largest.sum(0)),
        survivors=float((np.abs(y) >= threshold).sum() / count),
        expected_survivors=expected,
        energy_kept=float(moved[largest].sum() / moved.sum()),
    )


def top_entries(y: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Mask of the largest magnitudes, :data:`SHARE` of all and at least one.

    Example:
        >>> top_entries(np.array([[1.0, -3.0], [2.0, 0.0]]))
        array([[False,  True],
               [False, False]])
    """
    magnitude = np.abs(y).ravel()
    count = max(1, round(SHARE * magnitude.size))
    mask = np.zeros(magnitude.size, bool)
    mask[np.argpartition(magnitude, -count)[-count:]] = True
    return mask.reshape(y.shape)


def crowding(counts: np.ndarray) -> float:
    """Share of the outliers in the fullest 1 % of the rows or columns, given how many each has.

    Example:
        >>> crowding(np.array([8, 1, 1, 0]))
        0.8
    """
    fullest = max(1, round(CROWD * counts.size))
    return float(np.sort(counts)[-fullest:].sum() / counts.sum())


def expected_survivors(w: Float[np.ndarray, "d_out d_in"], threshold: float) -> float:
    """Entries above a threshold if every row were Gaussian with its own energy, over the number of outliers."""
    deviation = np.sqrt(np.square(w, dtype=np.float64).mean(1))
    beyond = erfc(threshold / np.maximum(deviation, 1e-30) / np.sqrt(2)) * w.shape[1]
    return float(beyond.sum() / max(1, round(SHARE * w.size)))


def measure_prices(subject: Subject, trial: Trial, systems: Iterable[str]) -> Iterator[Price]:
    """The price of the outliers in each coordinate system; after the first, that of its errors at random entries.

    Args:
        subject: the network.
        trial: measures divergences.
        systems: coordinates that all matrices have, the original ones first.
    """
    control: Price | None = None
    for coordinates in systems:
        predicted: list[list[float]] = []

        def change(
            name: str, w: np.ndarray, place: str = coordinates, predicted: list[list[float]] = predicted
        ) -> list[np.ndarray]:
            transform = subject.transform(name, place)
            assert transform is not None, (name, place)
            y = np.asarray(to_coordinates(transform, jnp.asarray(w)))
            kept, *moved = (np.asarray(from_coordinates(transform, jnp.asarray(q))) for q in quantize(y))
            if place == "identity":
                moved.append(_scattered(kept, moved[0]))
            predicted.append([predicted_divergence(subject, name, jnp.asarray(m - kept)) for m in moved])
            return [kept, *moved]

        kept, *moved = (trial.measure(model) for model in trial.changed_by_each(change))
        totals = [float(total) for total in np.sum(predicted, 0)]
        yield _price(coordinates, kept, moved[0], totals[0])
        if len(moved) > 1:
            control = _price(SCATTERED, kept, moved[1], totals[1])
    if control is not None:
        yield control


def _scattered(kept: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """The errors of clipping at entries drawn at random."""
    errors = np.random.default_rng(kept.size).permutation((clipped - kept).ravel())
    return kept + errors.reshape(kept.shape)


def _price(coordinates: str, kept: Divergence, clipped: Divergence, predicted: float) -> Price:
    difference, error = clipped.less(kept)
    return Price(
        coordinates=coordinates,
        kept=kept.mean,
        clipped=clipped.mean,
        difference=difference,
        difference_se=error,
        predicted=predicted,
    )


def quantize(
    y: Float[np.ndarray, "d_out d_in"],
) -> tuple[Float[np.ndarray, "d_out d_in"], Float[np.ndarray, "d_out d_in"]]:
    """Coefficients rounded to one step: with exact outliers, and with outliers clipped to the range of the rest."""
    largest = top_entries(y)
    reach = float(np.abs(y[~largest]).max(initial=0.0))
    step = STEP_RMS * float(np.sqrt(np.mean(np.square(y), dtype=np.float64)))
    clipped = (np.rint(np.clip(y, -reach, reach) / step) * step).astype(y.dtype)
    return np.where(largest, y, clipped), clipped


def predicted_divergence(subject: Subject, name: str, error: Float[jax.Array, "d_out d_in"]) -> float:
    """Second-order increase of the divergence by an error of one matrix, nats per token."""
    sensitivity = subject.sensitivity(name)
    rows, hessian = jnp.asarray(sensitivity.rows, jnp.float32), jnp.asarray(sensitivity.hessian)
    return float(_half_form(error, hessian, rows))


@jax.jit
def _half_form(
    error: Float[jax.Array, "d_out d_in"], hessian: Float[jax.Array, "d_in d_in"], rows: Float[jax.Array, " d_out"]
) -> Float[jax.Array, ""]:
    return hessian_weighted_error(error, jnp.zeros_like(error), hessian, row_weights=rows) / 2
