r"""Rotation versus frequency: does the order of the channels mean anything?

A frequency transform assumes that neighbours are alike; a rotation does not care who is whose neighbour. So the coding
gain of the coefficient energies is measured for the DCT and for a Hadamard matrix with random signs, along both axes
of every matrix, in the order of the network and after random permutations of the channels. If the order means
something, the DCT loses by the permutation; the Hadamard transform should not notice. As a check that the test can
see an order where there is one, it is made on rows of a first-order autoregressive process, too.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer
from scipy import stats

from occ_jax.transforms import DCT, Transform, random_hadamard

from ..parallel import Track, in_pairs, untracked
from ..roles import LINEAR_KINDS, kind_of, layer_of
from .regimes import channel_gain_bits
from .subject import Subject, to_coordinates

PERMUTATIONS = 7
"""Random orders of the channels of each matrix."""

CHANCE = 1e-4
"""Probability that an order is noticed though it means nothing: a page makes about thirty such tests."""

AXES = ("inputs", "outputs")
TRANSFORMS = ("dct", "hadamard")

CONTROL = "autoregressive"
CORRELATION = 0.9
CONTROL_SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """One transform along one axis of one matrix.

    Attributes:
        matrix, layer, kind: which; the control has layer -1.
        axis: ``inputs`` for the columns, ``outputs`` for the rows.
        transform: ``dct`` or ``hadamard``.
        ordered_bits: coding gain in the order of the network, bits per weight.
        permuted_bits: the same after each of the permutations.
    """

    matrix: str
    layer: int
    kind: str
    axis: str
    transform: str
    ordered_bits: float
    permuted_bits: tuple[float, ...]

    @property
    def difference_bits(self) -> float:
        """What the order is worth."""
        return self.ordered_bits - float(np.mean(self.permuted_bits))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderWorth:
    """What the order of the channels is worth on the average over layers.

    Attributes:
        kind, axis, transform: which.
        mean_bits: of :attr:`Order.difference_bits`.
        limit_bits: what one more random permutation would exceed with the probability :data:`CHANCE` only, by
            Student's distribution, as the permutations of a few layers say little about their own spread.
    """

    kind: str
    axis: str
    transform: str
    mean_bits: float
    limit_bits: float

    @property
    def is_noticed(self) -> bool:
        """Whether the order of the network is unlike a random one."""
        return abs(self.mean_bits) > self.limit_bits


def measure_order(subject: Subject, names: Sequence[str], *, track: Track = untracked) -> list[Order]:
    """Both transforms along both axes of some matrices, and of the control."""

    def measure(name: str) -> list[Order]:
        layer, kind = layer_of(name), kind_of(name)
        assert layer is not None, name
        rng = np.random.default_rng([layer, LINEAR_KINDS.index(kind)])
        w = np.asarray(subject.weights[name])
        along = zip(AXES, (w, w.T), strict=True)
        return [o for axis, m in along for o in _orders(m, rng, matrix=name, layer=layer, kind=kind, axis=axis)]

    found = [
        o
        for _, orders in in_pairs(measure, track(names, "order of channels"), names, shape=subject.shape)
        for o in orders
    ]
    rng = np.random.default_rng(0)
    control = autoregressive_rows(rng)
    return found + _orders(control, rng, matrix=CONTROL, layer=-1, kind=CONTROL, axis=AXES[0])


def _orders(m: np.ndarray, rng: np.random.Generator, **place) -> list[Order]:
    n = m.shape[1]
    transforms: dict[str, Transform] = {"dct": DCT(), "hadamard": random_hadamard(n, key=jax.random.key(n))}
    orders = [rng.permutation(n) for _ in range(PERMUTATIONS)]
    return [
        Order(
            transform=name,
            ordered_bits=gain_bits(transforms[name], m, np.arange(n)),
            permuted_bits=tuple(gain_bits(transforms[name], m, order) for order in orders),
            **place,
        )
        for name in TRANSFORMS
    ]


def gain_bits(transform: Transform, w: Float[np.ndarray, "rows n"], order: Integer[np.ndarray, " n"]) -> float:
    """Coding gain of the energies of the coefficients along the last axis in some order, in bits per coefficient."""
    return float(channel_gain_bits(to_coordinates(transform, jnp.asarray(w[:, order]))))


def autoregressive_rows(rng: np.random.Generator) -> Float[np.ndarray, "rows n"]:
    """Rows of a first-order autoregressive process: an order of channels that means something."""
    noise = rng.standard_normal((CONTROL_SIZE, CONTROL_SIZE)) * np.sqrt(1 - CORRELATION**2)
    rows = np.empty_like(noise)
    rows[:, 0] = rng.standard_normal(CONTROL_SIZE)
    for j in range(1, CONTROL_SIZE):
        rows[:, j] = CORRELATION * rows[:, j - 1] + noise[:, j]
    return rows.astype(np.float32)


def worth_of_order(orders: Iterable[Order]) -> list[OrderWorth]:
    """Average over the layers of each kind, for each axis and transform."""
    groups: dict[tuple[str, str, str], list[Order]] = {}
    for order in orders:
        groups.setdefault((order.kind, order.axis, order.transform), []).append(order)
    worth = []
    for (kind, axis, transform), members in groups.items():
        permuted = np.array([order.permuted_bits for order in members])
        # The order of the network against the mean of the permuted ones, if it were one of them.
        variance = permuted.var(1, ddof=1).mean() * (1 + 1 / PERMUTATIONS) / len(members)
        quantile = stats.t.ppf(1 - CHANCE / 2, len(members) * (PERMUTATIONS - 1))
        worth.append(
            OrderWorth(
                kind=kind,
                axis=axis,
                transform=transform,
                mean_bits=float(np.mean([order.difference_bits for order in members])),
                limit_bits=float(quantile * np.sqrt(variance)),
            )
        )
    return worth
