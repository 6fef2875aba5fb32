"""Fit a source in one representation at matched accuracy, and keep what coding needs to know about the result."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .bases import BASES, fit, ladder
from .networks import ACTIVATIONS, Architecture, evaluate, gauss_newton, inputs, train
from .sources import Source

_Values = Float[np.ndarray, "draws values"]
_Parameters = Float[np.ndarray, "draws size"]
_Tried = TypeVar("_Tried")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Draws of a source in one representation.

    Args:
        source, representation: names.
        seed: number of the network's seed; 0 for bases.
        theta: parameters, one row for each draw.
        typical: parameters of other draws, from which coordinates may be learned; None for networks.
        hessian: sensitivity of the mean squared error of the function.
        functions: values of the functions of given parameters.
        targets: values that the parameters stand for.
    """

    source: str
    representation: str
    seed: int
    theta: _Parameters
    typical: Float[np.ndarray, "others size"] | None
    hessian: Float[np.ndarray, "size size"]
    functions: Callable[[_Parameters], _Values]
    targets: _Values

    @property
    def is_network(self) -> bool:
        """Whether the parameters are weights of a network."""
        return self.typical is None

    @property
    def power(self) -> float:
        """Mean square of the functions."""
        return float(np.square(self.targets).mean())

    def relative_error(self, theta: _Parameters) -> float:
        """Squared error of the functions of ``theta`` over the energy of the functions."""
        return relative_error(self.functions(theta), self.targets)


def relative_error(values: _Values, targets: _Values) -> float:
    """Squared error over energy, all draws together.

    Example:
        >>> relative_error(np.array([[1.0, 1.0]]), np.array([[1.0, 2.0]]))
        0.2
    """
    return float(np.square(values - targets).sum() / np.square(targets).sum())


def fit_basis(source: Source, name: str, *, draws: int, others: int, accuracy: float) -> Fitted:
    """Coefficients in the smallest design of a basis that is accurate enough, else in the largest."""
    targets, typical = source.draw(draws, stream=0), source.draw(others, stream=1)
    designs = (BASES[name].design(source, size) for size in ladder(source))
    attempts = ((design, fit(design, targets)) for design in designs)
    design, theta = _first(attempts, lambda tried: relative_error(tried[1] @ tried[0].T, targets) <= accuracy)
    return Fitted(
        source=source.name,
        representation=name,
        seed=0,
        theta=theta,
        typical=fit(design, typical),
        hessian=design.T @ design / len(design),
        functions=lambda theta, design=design: theta @ design.T,
        targets=targets,
    )


def fit_networks(
    source: Source, name: str, *, draws: int, seeds: int, steps: int, widths: tuple[int, ...], accuracy: float
) -> list[Fitted]:
    """Networks of the smallest width that is accurate enough in the median seed, else of the largest; one per seed."""
    targets, x = source.draw(draws, stream=0), inputs(source.points())
    power = float(np.square(targets).mean())
    scaled = targets / np.sqrt(power)  # training sees functions of unit power
    keys = jax.random.split(jax.random.key(0), seeds)
    nets = (Architecture(num_inputs=source.num_axes, width=width, activation=ACTIVATIONS[name]) for width in widths)
    attempts = ((net, train(net, x, jnp.asarray(scaled, jnp.float32), keys=keys, num_steps=steps)) for net in nets)

    def is_accurate(tried: tuple[Architecture, Array]) -> bool:
        net, thetas = tried
        return bool(np.median([relative_error(_values(net, theta, x), scaled) for theta in thetas]) <= accuracy)

    net, thetas = _first(attempts, is_accurate)
    return [
        Fitted(
            source=source.name,
            representation=name,
            seed=seed,
            theta=np.asarray(theta, np.float64),
            typical=None,
            hessian=np.asarray(gauss_newton(net, theta, x), np.float64),
            functions=lambda theta, net=net: _values(net, theta, x),
            targets=scaled,
        )
        for seed, theta in enumerate(thetas)
    ]


def _first(attempts: Iterable[_Tried], is_accurate: Callable[[_Tried], bool]) -> _Tried:
    """The first attempt that is accurate enough, else the last."""
    tried = None
    for tried in attempts:
        if is_accurate(tried):
            break
    assert tried is not None
    return tried


def _values(net: Architecture, theta, x) -> _Values:
    return np.asarray(evaluate(net, jnp.asarray(theta, jnp.float32), x), np.float64)
