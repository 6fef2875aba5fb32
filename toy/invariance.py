r"""Reparameterisations that leave every function as it is, and what they do to the bytes.

Hidden units of a network may be permuted; with ReLU each may be scaled by :math:`s > 0` at its input and
:math:`1 / s` at its output; with tanh or sine its sign may be flipped; and between two linear layers any rotation
cancels, :math:`B A = (B R^\top)(R A)`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .coding import RatePoint, bytes_at, rate_distortion
from .coordinates import original
from .networks import ACTIVATIONS, Architecture, Parameterised, evaluate, gauss_newton, inputs, train
from .representations import relative_error
from .sources import SOURCES

WIDTH = 16
"""Hidden units of the networks, and inner dimension of the pair of linear layers."""

LARGEST_LOG2_SCALE = 3.0
"""Units are rescaled by up to this many octaves."""

_Thetas = Float[Array, "draws parameters"]
_Change = Callable[[Any, np.random.Generator], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearPair(Parameterised):
    """Two linear layers in a row: a flat vector of two square matrices, whose function is their product."""

    side: int

    def apply(self, theta: Float[Array, " parameters"], x: Float[Array, "points inputs"]) -> Float[Array, " values"]:
        """Entries of the product, whatever the points."""
        second, first = theta.reshape(2, self.side, self.side)
        return jnp.matmul(second, first, precision="highest").reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invariance:
    """One reparameterisation.

    Args:
        name: what was done to which network.
        is_shared: the same change for all networks, or each in its own way.
        function_change: largest change of a value, over the RMS of the functions.
        uniform_bytes: bytes per function with one step, before and after.
        sensitive_bytes: bytes per function with steps from the sensitivity, before and after.
    """

    name: str
    is_shared: bool
    function_change: float
    uniform_bytes: tuple[float | None, float | None]
    sensitive_bytes: tuple[float | None, float | None]


def permute(layers: Any, rng: np.random.Generator) -> Any:
    """Hidden units of both layers in another order."""
    for into, out in (("first", "second"), ("second", "last")):
        order = rng.permutation(WIDTH)
        layers = _units(layers, into, out, lambda w, order=order: w[..., order], lambda w, order=order: w[order])
    return layers


def rescale(layers: Any, rng: np.random.Generator) -> Any:
    """Every unit's input times a positive number, its output divided by it."""
    for into, out in (("first", "second"), ("second", "last")):
        scale = jnp.asarray(2.0 ** rng.uniform(-LARGEST_LOG2_SCALE, LARGEST_LOG2_SCALE, WIDTH), jnp.float32)
        layers = _units(layers, into, out, lambda w, s=scale: _columns(w, s), lambda w, s=scale: w / s[:, None])
    return layers


def flip_signs(layers: Any, rng: np.random.Generator) -> Any:
    """Some units with the opposite sign at input and output."""
    for into, out in (("first", "second"), ("second", "last")):
        sign = jnp.asarray(rng.choice([-1.0, 1.0], WIDTH), jnp.float32)
        layers = _units(layers, into, out, lambda w, s=sign: _columns(w, s), lambda w, s=sign: w * s[:, None])
    return layers


def _columns(w: Array, factors: Array) -> Array:
    return w * (factors if w.ndim == 1 else factors[None, :])


def _units(layers: Any, into: str, out: str, before: Callable[[Array], Array], after: Callable[[Array], Array]) -> Any:
    """Change what goes into a layer of units (kernel's columns, bias) and what comes out of it (kernel's rows)."""
    changed = {name: dict(layers[name]) for name in layers}
    changed[into] = {part: before(w) for part, w in changed[into].items()}
    changed[out]["kernel"] = after(changed[out]["kernel"])
    return changed


def measure_invariances(draws: int, steps: int, targets: Sequence[float]) -> list[Invariance]:
    """All reparameterisations, each once shared and once for every network on its own."""
    results = []
    for name, change in (("relu", permute), ("relu", rescale), ("tanh", flip_signs)):
        net = Architecture(num_inputs=1, width=WIDTH, activation=ACTIVATIONS[name])
        thetas, x = _trained(net, draws, steps)
        for is_shared in (True, False):
            changed = _changed(net, thetas, change, is_shared)
            label = f"{ACTIVATIONS[name].title}: {change.__name__.replace('_', ' ')}"
            results.append(compare(label, is_shared, net, x, thetas, changed, targets))
    pair, thetas = linear_pairs(draws)
    for is_shared in (True, False):
        changed = rotate_between(thetas, is_shared)
        results.append(compare("linear pair: rotate", is_shared, pair, jnp.zeros((1, 1)), thetas, changed, targets))
    return results


def _trained(net: Architecture, draws: int, steps: int) -> tuple[_Thetas, Array]:
    source = SOURCES["bandlimited"]
    targets, x = source.draw(draws, stream=0), inputs(source.points())
    targets = jnp.asarray(targets / np.sqrt(np.square(targets).mean()), jnp.float32)
    return train(net, x, targets, keys=jax.random.split(jax.random.key(0), 1), num_steps=steps)[0], x


def _changed(net: Architecture, thetas: _Thetas, change: _Change, is_shared: bool) -> _Thetas:
    own = np.random.default_rng(0)
    rows = []
    for theta in thetas:
        layers = net.layers(theta)
        rows.append(net.flatten(change(layers, np.random.default_rng(0) if is_shared else own)))
    return jnp.stack(rows)


def linear_pairs(draws: int) -> tuple[LinearPair, _Thetas]:
    """Convolution matrices as two linear layers, split by their singular value decomposition."""
    matrices = SOURCES["convolution"].draw(draws, stream=0).reshape(-1, WIDTH, WIDTH)
    u, s, vt = np.linalg.svd(matrices)
    root = np.sqrt(s)
    pairs = np.stack([u * root[:, None, :], root[:, :, None] * vt], axis=1)
    return LinearPair(side=WIDTH), jnp.asarray(pairs.reshape(draws, -1), jnp.float32)


def rotate_between(thetas: _Thetas, is_shared: bool) -> _Thetas:
    """A random rotation between the two layers and back."""
    count = 1 if is_shared else len(thetas)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(count, WIDTH, WIDTH)))[0]
    second, first = np.moveaxis(np.asarray(thetas, np.float64).reshape(-1, 2, WIDTH, WIDTH), 1, 0)
    both = np.stack([second @ np.swapaxes(rotation, 1, 2), rotation @ first], axis=1)
    return jnp.asarray(both.reshape(thetas.shape), jnp.float32)


def compare(
    name: str, is_shared: bool, net: Parameterised, x: Array, before: _Thetas, after: _Thetas, targets: Sequence[float]
) -> Invariance:
    """How far the functions move when their parameters are changed, and the bytes before and after.

    Args:
        name: what was done.
        is_shared: whether all were changed in the same way.
        net: function of the parameters.
        x: points at which it is known.
        before, after: parameters.
        targets: relative errors that quantization aims at.
    """
    values = np.asarray(evaluate(net, before, x), np.float64)
    change = np.abs(np.asarray(evaluate(net, after, x), np.float64) - values).max() / np.sqrt(np.square(values).mean())
    sizes = {
        uniform: tuple(bytes_at(_curve(net, x, thetas, values, targets, uniform), 1e-2) for thetas in (before, after))
        for uniform in (True, False)
    }
    return Invariance(
        name=name,
        is_shared=is_shared,
        function_change=float(change),
        uniform_bytes=(sizes[True][0], sizes[True][1]),
        sensitive_bytes=(sizes[False][0], sizes[False][1]),
    )


def _curve(
    net: Parameterised, x: Array, thetas: _Thetas, values: np.ndarray, targets: Sequence[float], uniform: bool
) -> list[RatePoint]:
    hessian = np.asarray(gauss_newton(net, thetas, x), np.float64)

    def error(theta: np.ndarray) -> float:
        return relative_error(np.asarray(evaluate(net, jnp.asarray(theta, jnp.float32), x), np.float64), values)

    power = float(np.square(values).mean())
    theta = np.asarray(thetas, np.float64)
    return rate_distortion(theta, original(hessian), error, targets, power=power, uniform_step=uniform)
