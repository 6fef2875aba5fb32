r"""Low-dimensional structure: in one matrix, in the matrices of all layers together, and along the depth.

Every matrix is seen from the residual stream: by its columns where it reads the stream, by its rows where it writes
it, so that all layers are described in one space of :math:`d` channels by :math:`G_\ell`, the Gram matrix of unit
trace. Each measure has a control in which the structure in question is destroyed and everything else is kept:

* effective rank of a matrix, against the same entries in random places;
* effective rank of all layers stacked, :math:`\sum_\ell G_\ell`, against layers whose channels are permuted one by one;
* overlap :math:`\lVert U_\ell^\top U_{\ell + 1} \rVert_F^2 / k` of the top :math:`k = d / 10` directions of neighbours
  (the mean squared cosine of their principal angles), against permuted channels; :math:`k / d` is chance;
* prediction of a layer from the others by a smooth function of the depth, against the layers in random order. The skill
  is :math:`1 - \mathrm{SSE}_{smooth} / \mathrm{SSE}_{mean}`, both leaving out the predicted layer: above zero if
  the order of the layers says more than their mean.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh

from occ_jax.metrics import entropy_rank

from ..parallel import Track, in_pairs, untracked
from ..roles import READS_RESIDUAL, kind_of, layer_of, linear_name
from .subject import Subject

DEGREE, LAYERS_PER_DEGREE = 3, 4
"""Degree of the polynomial in the depth, and how many layers each degree takes: lower for networks of few layers."""

FEWEST_LAYERS = 4
"""Networks with fewer layers say nothing about a function of the depth."""

SHUFFLES = 200
"""Random orders of the layers."""

TOP = 0.1
"""Share of the directions whose subspaces are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank:
    """One matrix, and its overlap with the next one of its kind.

    Attributes:
        matrix, layer, kind: which.
        effective_rank: exponential of the entropy of the squared singular values, over the smaller side.
        shuffled_rank: the same with the entries in random places.
        overlap: mean squared cosine of the principal angles to the next layer's top directions; None for the last.
        overlap_permuted: the same with the next layer's channels permuted.
        overlap_chance: of random subspaces.
        median_angle: in degrees.
    """

    matrix: str
    layer: int
    kind: str
    effective_rank: float
    shuffled_rank: float
    overlap: float | None
    overlap_permuted: float | None
    overlap_chance: float
    median_angle: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth:
    """All layers of one kind together.

    Attributes:
        kind: of layer.
        stacked_rank: effective rank of all layers stacked, over the width.
        permuted_rank: the same with the channels of every layer permuted.
        entries, scales: skill of the smooth prediction of the entries, and of the log root mean square of the
            channels; None where there are too few layers.
        entries_shuffled, scales_shuffled: mean skill over random orders.
        entries_p, scales_p: share of the random orders that do as well, the actual one counted as one of them.
    """

    kind: str
    stacked_rank: float
    permuted_rank: float
    entries: float | None
    entries_shuffled: float | None
    entries_p: float | None
    scales: float | None
    scales_shuffled: float | None
    scales_p: float | None


def measure_structure(
    subject: Subject, kinds: Sequence[str], *, track: Track = untracked
) -> tuple[list[Rank], list[Depth]]:
    """Ranks of every matrix and of the layers together.

    Args:
        subject: the network.
        kinds: of linear layers.
        track: shows progress.
    """

    def measure(kind: str) -> tuple[list[Rank], Depth]:
        return _kind(subject, kind, np.random.default_rng(0))

    found = [parts for _, parts in in_pairs(measure, track(kinds, "structure"), kinds)]
    return [rank for ranks, _ in found for rank in ranks], [depth for _, depth in found]


def _kind(subject: Subject, kind: str, rng: np.random.Generator) -> tuple[list[Rank], Depth]:
    names = [linear_name(layer, kind) for layer in subject.layers]
    # Unit norm, channels of the residual stream as columns.
    matrices = [_seen_from_stream(name, subject.weights[name]) for name in names]
    width = matrices[0].shape[1]
    count = max(1, round(TOP * width))
    total, permuted_total = np.zeros((width, width)), np.zeros((width, width))
    subspaces, ranks = [], []
    for name, m in zip(names, matrices, strict=True):
        gram = m.T.astype(np.float64) @ m
        order = rng.permutation(width)
        total += gram
        permuted_total += gram[np.ix_(order, order)]
        eigenvalues, vectors = eigh(gram)
        subspaces.append(vectors[:, -count:])
        shuffled = rng.permutation(m.ravel()).reshape(m.shape)
        side = min(m.shape)
        ranks.append((name, _rank(eigenvalues) / side, _rank(_squared_singular_values(shuffled)) / side))
    rows = [
        _rank_row(entry, subspaces[i], subspaces[i + 1] if i + 1 < len(subspaces) else None, rng)
        for i, entry in enumerate(ranks)
    ]
    return rows, _depth(kind, matrices, total, permuted_total, subject.layers, rng)


def _seen_from_stream(name: str, w: Float[np.ndarray, "d_out d_in"]) -> Float[np.ndarray, "other width"]:
    m = w if kind_of(name) in READS_RESIDUAL else w.T
    return m / np.linalg.norm(m)


def _rank(energies: Float[np.ndarray, " n"]) -> float:
    return float(entropy_rank(jnp.asarray(np.maximum(energies, 0) / energies.max(), jnp.float32)))


def _squared_singular_values(m: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, " n"]:
    m = m.astype(np.float64)
    return np.linalg.eigvalsh(m @ m.T if len(m) < m.shape[1] else m.T @ m)


def _rank_row(
    entry: tuple[str, float, float], here: np.ndarray, following: np.ndarray | None, rng: np.random.Generator
) -> Rank:
    name, rank, shuffled = entry
    layer = layer_of(name)
    assert layer is not None, name
    width, count = here.shape
    cosines = permuted = None
    if following is not None:
        cosines = principal_cosines(here, following)
        permuted = float(np.mean(principal_cosines(here, following[rng.permutation(width)]) ** 2))
    return Rank(
        matrix=name,
        layer=layer,
        kind=kind_of(name),
        effective_rank=rank,
        shuffled_rank=shuffled,
        overlap=None if cosines is None else float(np.mean(cosines**2)),
        overlap_permuted=permuted,
        overlap_chance=count / width,
        median_angle=None if cosines is None else float(np.degrees(np.median(np.arccos(cosines)))),
    )


def principal_cosines(u: Float[np.ndarray, "n k"], v: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """Cosines of the principal angles between the spans of two orthonormal sets.

    Example:
        >>> principal_cosines(np.eye(3)[:, :2], np.eye(3)[:, 1:]).round(6)
        array([1., 0.])

    References:
        Björck & Golub, Numerical methods for computing angles between linear subspaces, Math. Comp. 27, 1973.
    """
    return np.clip(np.linalg.svd(u.T @ v, compute_uv=False), 0, 1)


def _depth(
    kind: str,
    matrices: Sequence[np.ndarray],
    total: np.ndarray,
    permuted_total: np.ndarray,
    layers: Sequence[int],
    rng: np.random.Generator,
) -> Depth:
    width = len(total)
    entries = np.stack([m.ravel() for m in matrices])
    scales = np.stack([np.log(np.sqrt(np.mean(np.square(m, dtype=np.float64), 0)) + 1e-12) for m in matrices])
    smooth_entries = smooth_skill(entries @ entries.T, layers, rng)
    smooth_scales = smooth_skill(scales @ scales.T, layers, rng)
    return Depth(
        kind=kind,
        stacked_rank=_rank(np.linalg.eigvalsh(total)) / width,
        permuted_rank=_rank(np.linalg.eigvalsh(permuted_total)) / width,
        entries=smooth_entries[0],
        entries_shuffled=smooth_entries[1],
        entries_p=smooth_entries[2],
        scales=smooth_scales[0],
        scales_shuffled=smooth_scales[1],
        scales_p=smooth_scales[2],
    )


def smooth_skill(
    gram: Float[np.ndarray, "layers layers"], layers: Sequence[int], rng: np.random.Generator
) -> tuple[float | None, float | None, float | None]:
    r"""Skill of a polynomial in the depth, leaving one layer out, from the inner products of the layers alone.

    With the residuals :math:`A y` of leave-one-out prediction linear in the layers, their energy is
    :math:`\operatorname{tr}(A K A^\top)` for the Gram matrix :math:`K`.

    Args:
        gram: inner products of the layers.
        layers: their indices.
        rng: draws the random orders.

    Returns:
        The skill, its mean over random orders, and the share of orders that do as well; Nones for too few layers.
    """
    n = len(layers)
    if n < FEWEST_LAYERS:
        return None, None, None
    depth = np.polynomial.legendre.legvander(_to_unit(layers), min(DEGREE, n // LAYERS_PER_DEGREE))
    smooth, mean = _left_out(depth), _left_out(np.ones((n, 1)))

    def skill(k: np.ndarray) -> float:
        return 1 - float(np.trace(smooth @ k @ smooth.T) / np.trace(mean @ k @ mean.T))

    actual = skill(np.asarray(gram, np.float64))
    orders = (rng.permutation(n) for _ in range(SHUFFLES))
    shuffled = np.array([skill(np.asarray(gram, np.float64)[np.ix_(order, order)]) for order in orders])
    return actual, float(shuffled.mean()), float((1 + (shuffled >= actual - 1e-12).sum()) / (1 + SHUFFLES))


def _to_unit(layers: Sequence[int]) -> Float[np.ndarray, " n"]:
    x = np.asarray(layers, np.float64)
    return 2 * (x - x.min()) / (x.max() - x.min()) - 1


def _left_out(basis: Float[np.ndarray, "n terms"]) -> Float[np.ndarray, "n n"]:
    """Map from values to the residuals of their least-squares prediction from all others."""
    hat = basis @ np.linalg.pinv(basis)
    return (np.eye(len(basis)) - hat) / (1 - np.diagonal(hat))[:, None]
