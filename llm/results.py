"""Measured rate-distortion points: one row per compressed file, and what the rows together say."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

LARGEST_RATIO = 4.0
"""Of two divergences, for what lies between to be read off a straight line. Curves bend: over a factor of 4.6 (2 bits
and 3) the line has been seen 8 % above the file in the middle, and the error goes with the square of the logarithm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One compressed file and its measured quality.

    Attributes:
        coordinates: name of the coordinates.
        quantizer: name of the quantizer.
        feedback: whether rounding errors were fed back through the Hessian.
        linear_bits_per_weight: of the linear layers, all their side information included.
        file_bytes: size of the whole file as the file system has it.
        perplexity: on the evaluation windows.
        kl_mean: mean divergence from the original, nats per token.
        kl_se: its standard error.
        seconds: wall time of compression.
        kl_windows: divergence of each evaluation window, where it was kept.
    """

    coordinates: str
    quantizer: str
    feedback: bool
    linear_bits_per_weight: float
    file_bytes: int
    perplexity: float
    kl_mean: float
    kl_se: float
    seconds: float
    kl_windows: tuple[float, ...] = ()

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Row":
        """The row that was written as JSON; older ones have no windows."""
        return Row(**{**fields, "kl_windows": tuple(fields.get("kl_windows", ()))})

    @property
    def series(self) -> str:
        """What the rows of one curve have in common."""
        return f"{self.coordinates}, {self.quantizer}{' with feedback' if self.feedback else ''}"


SAME_RATE = 0.01
"""Relative difference of the bits of two files of one rate, which each meets to half of that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Files that differ by the draw of their random coordinates alone, as one.

    Attributes:
        row: named after the basis, with the mean of every number.
        draws: the files; one of what is not random.
    """

    row: Row
    draws: tuple[Row, ...]

    @property
    def number(self) -> int:
        """How many files there are."""
        return len(self.draws)

    @property
    def spread(self) -> float:
        """Standard deviation of the divergence between draws; zero of one."""
        return float(np.std([row.kl_mean for row in self.draws], ddof=1)) if self.number > 1 else 0.0


def over_draws(rows: Sequence[Row]) -> list[Draws]:
    """Rows with the draws of random coordinates taken together, at each rate by itself."""
    groups: list[list[Row]] = []
    for row in rows:
        group = next((group for group in groups if _is_another_draw(row, group)), None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return [_together(_basis(group[0]), group) for group in groups]


def is_same_rate(rate: float, other: float) -> bool:
    """Whether two files have the bits of one rate.

    Example:
        >>> is_same_rate(2.0, 2.01), is_same_rate(2.0, 2.04)
        (True, False)
    """
    return abs(rate - other) <= SAME_RATE * rate


def _is_another_draw(row: Row, group: Sequence[Row]) -> bool:
    first = group[0]
    alike = (_basis(row), row.quantizer, row.feedback) == (_basis(first), first.quantizer, first.feedback)
    near = is_same_rate(row.linear_bits_per_weight, first.linear_bits_per_weight)
    return alike and near and all(row.coordinates != other.coordinates for other in group)


def _basis(row: Row) -> str:
    """Name of the coordinates without the number of the draw."""
    name, _, number = row.coordinates.rpartition(" ")
    return name if number.isdigit() else row.coordinates


def _together(name: str, rows: Sequence[Row]) -> Draws:
    if len(rows) == 1:
        return Draws(row=dataclasses.replace(rows[0], coordinates=name), draws=tuple(rows))
    fields = "linear_bits_per_weight", "file_bytes", "perplexity", "kl_mean", "kl_se", "seconds"
    means = {field: float(np.mean([getattr(row, field) for row in rows])) for field in fields}
    same = len({len(row.kl_windows) for row in rows}) == 1
    windows = tuple(np.mean([row.kl_windows for row in rows], axis=0).tolist()) if same else ()
    means |= {"file_bytes": round(means["file_bytes"]), "kl_windows": windows, "coordinates": name}
    return Draws(row=dataclasses.replace(rows[0], **means), draws=tuple(rows))


def paired_change(row: Row, others: Sequence[Row]) -> tuple[float, float] | None:
    """Relative change of the divergence against the mean of other files, on the same windows.

    Args:
        row: a file.
        others: the files to compare it with.

    Returns:
        The change and its standard error, both as shares of the others' mean divergence: over windows and, of several
        others, which are draws of one basis, over these, too. ``None`` where fewer than two windows were kept, or not
        the same number for all.
    """
    windows = [row.kl_windows, *(other.kl_windows for other in others)]
    if len({len(w) for w in windows}) != 1 or len(row.kl_windows) < 2 or not others:
        return None
    own, draws = np.asarray(windows[0]), np.asarray(windows[1:])
    baseline = draws.mean(0)
    difference = (own - baseline) / baseline.mean()
    change, of_windows = float(difference.mean()), _standard_error(difference)
    of_draws = _standard_error(draws.mean(1)) / baseline.mean() if len(draws) > 1 else 0.0
    return change, float(np.hypot(of_windows, (1 + change) * of_draws))


def _standard_error(values: Float[np.ndarray, " n"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))


def bytes_at_kl(rows: Sequence[Row], kl: float) -> float | None:
    """File size at which a curve reaches a divergence, ``log KL`` taken as linear in bytes between neighbours.

    Returns:
        Bytes, or ``None`` where no two rows within :data:`LARGEST_RATIO` enclose ``kl`` (nothing is extrapolated).
    """
    points = sorted((np.log(row.kl_mean), row.file_bytes) for row in rows)
    logs, sizes = [log for log, _ in points], [size for _, size in points]
    weights = _neighbours(float(np.log(kl)), logs, logs)
    return None if weights is None else float(weights @ sizes)


def change_of_bytes(row: Row, curve: Sequence[Row]) -> tuple[float, float | None] | None:
    """Relative change of the size of a file against what a curve needs for its divergence.

    Returns:
        The change, and its standard error by the jackknife over windows (Efron and Stein, "The jackknife estimate of
        variance", 1981): every comparison is made without each window, of the file and of the curve. ``None`` in the
        place of either where :func:`bytes_at_kl` says nothing, or no windows were kept.
    """
    needed = bytes_at_kl(curve, row.kl_mean)
    if needed is None:
        return None
    number = len(row.kl_windows)
    if number < 2 or {len(other.kl_windows) for other in curve} != {number}:
        return row.file_bytes / needed - 1, None
    without = [bytes_at_kl([_without(i, other) for other in curve], _without(i, row).kl_mean) for i in range(number)]
    found = [row.file_bytes / size - 1 for size in without if size is not None]
    error = _standard_error(np.asarray(found)) * (number - 1) if len(found) == number else None
    return row.file_bytes / needed - 1, error


def _without(window: int, row: Row) -> Row:
    return dataclasses.replace(row, kl_mean=float(np.delete(row.kl_windows, window).mean()))


def kl_at_bytes(rows: Sequence[Row], file_bytes: float | int) -> float | None:
    """Divergence of a curve at a file size, ``log KL`` taken as linear in bytes between neighbours.

    Returns:
        Nats per token, or ``None`` where no two rows within :data:`LARGEST_RATIO` enclose ``file_bytes`` (nothing is
        extrapolated).
    """
    points = sorted((row.file_bytes, np.log(row.kl_mean)) for row in rows)
    sizes, logs = [size for size, _ in points], [log for _, log in points]
    weights = _neighbours(file_bytes, sizes, logs)
    return None if weights is None else float(np.exp(weights @ logs))


def change_at_bytes(row: Row, curve: Sequence[Row]) -> tuple[float, float] | None:
    """Relative change of the divergence against a curve at the size of a file, window by window.

    Returns:
        As :func:`paired_change`, with the logarithm of each window's divergence taken as linear in bytes between the
        files of the curve; ``None`` where :func:`kl_at_bytes` says nothing.
    """
    files = sorted(curve, key=lambda other: other.file_bytes)
    sizes, logs = [other.file_bytes for other in files], [float(np.log(other.kl_mean)) for other in files]
    weights = _neighbours(row.file_bytes, sizes, logs)
    if weights is None or len({len(other.kl_windows) for other in files}) != 1:
        return None
    there = np.exp(weights @ np.log([other.kl_windows for other in files]))
    return paired_change(row, [dataclasses.replace(row, kl_windows=tuple(there.tolist()))])


def _neighbours(
    at: float | int, ascending: Sequence[float | int], logs: Sequence[float]
) -> Float[np.ndarray, " points"] | None:
    """Weights of a linear interpolation between the neighbours of ``at``, unless there are none near enough."""
    right = int(np.searchsorted(ascending, at))
    if right == len(ascending) or (right == 0 and at < ascending[0]):
        return None
    weights = np.zeros(len(ascending))
    if at == ascending[right]:
        weights[right] = 1.0
        return weights
    left = right - 1
    if abs(logs[right] - logs[left]) > np.log(LARGEST_RATIO) + 1e-9:
        return None
    weights[right] = (at - ascending[left]) / (ascending[right] - ascending[left])
    weights[left] = 1 - weights[right]
    return weights


def series_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by :attr:`Row.series`, in the order of their first row."""
    return {name: [row for row in rows if row.series == name] for name in dict.fromkeys(row.series for row in rows)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualBytes:
    """Divergence of every curve at the same file sizes.

    Attributes:
        anchor: the curve whose files have these sizes: the one with the lowest divergence at the median size.
        file_bytes: the sizes, ascending.
        kl: name of a curve -> divergence at each size, ``None`` where the curve does not reach.
    """

    anchor: str
    file_bytes: tuple[int, ...]
    kl: dict[str, tuple[float | None, ...]]


def at_equal_bytes(rows: Sequence[Row]) -> EqualBytes:
    """Compare all curves at the file sizes of the best one.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("nothing to compare: there are no rows")
    series = series_of(rows)
    middle = float(np.median([row.file_bytes for row in rows]))
    reached = {name: kl for name, curve in series.items() if (kl := kl_at_bytes(curve, middle)) is not None}
    anchor = min(reached, key=lambda name: reached[name]) if reached else next(iter(series))
    sizes = tuple(sorted({row.file_bytes for row in series[anchor]}))
    return EqualBytes(
        anchor=anchor,
        file_bytes=sizes,
        kl={name: tuple(kl_at_bytes(curve, size) for size in sizes) for name, curve in series.items()},
    )


def best_series(rows: Sequence[Row]) -> str:
    """One sentence: which curve needs the fewest bytes at the same divergence, and by how much.

    The comparison is made in the middle (in ``log KL``) of the range that every curve covers.
    """
    series = series_of(rows)
    low = max(min(row.kl_mean for row in curve) for curve in series.values())
    high = min(max(row.kl_mean for row in curve) for curve in series.values())
    if len(series) < 2 or low > high:
        return "KL divergence against file size"
    middle = float(np.sqrt(low * high))
    sizes = {name: size for name, curve in series.items() if (size := bytes_at_kl(curve, middle)) is not None}
    if len(sizes) < 2:
        return "KL divergence against file size"
    ranked = sorted(sizes, key=lambda name: sizes[name])
    saving = 100 * (1 - sizes[ranked[0]] / sizes[ranked[-1]])
    return f"{ranked[0]} is smallest, {saving:.1f} % below {ranked[-1]} (KL {middle:.2g})"
