"""Networks as representations: two hidden layers with tanh, ReLU or sine, many trained at once."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

WIDTHS = (8, 16)
"""Hidden units that are tried."""

LEARNING_RATE = 1e-2
"""Peak of the cosine schedule."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """A nonlinearity and how fast the first layer lets it vary.

    Args:
        title: what to call it in figures.
        function: the nonlinearity.
        first_scale: range of the first layer's weights, which sets the frequencies at the start of training.
    """

    title: str
    function: Callable[[Array], Array]
    first_scale: float


def sine(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Sine to float32 accuracy for moderate arguments, in operations that every backend vectorises.

    .. math::

        \sin x = (-1)^k \left(r - \frac{r^3}{3!} + \dots - \frac{r^{11}}{11!}\right), \qquad
        k = \operatorname{round}(x / \pi), \quad r = x - k \pi

    Example:
        >>> [f"{y:.3f}" for y in sine(jnp.asarray([0.5, 30.0]))]
        ['0.479', '-0.988']
    """
    k = jnp.round(x * (1 / math.pi))
    r = x - k * math.pi
    square, series = jnp.square(r), jnp.zeros_like(x)
    for power in range(11, 0, -2):
        series = series * square + (-1) ** (power // 2) / math.factorial(power)
    return jnp.where(k % 2 == 0, series, -series) * r


ACTIVATIONS: Mapping[str, Activation] = {
    "tanh": Activation(title="MLP tanh", function=jnp.tanh, first_scale=8.0),
    "relu": Activation(title="MLP ReLU", function=jax.nn.relu, first_scale=2.0),
    "sine": Activation(title="MLP sine", function=sine, first_scale=30.0),
}
"""The networks by name; a sine network with fast first layer is a SIREN (Sitzmann et al., 2020, arXiv:2006.09661)."""


class MLP(nnx.Module):
    """Input, two hidden layers, one output; inputs lie in [-1, 1]."""

    def __init__(self, num_inputs: int, width: int, activation: Activation, *, rngs: nnx.Rngs):
        first, hidden = activation.first_scale, (6.0 / width) ** 0.5
        self.activation = activation
        self.first = _linear(num_inputs, width, first, first, rngs)
        self.second = _linear(width, width, hidden, hidden, rngs)
        self.last = _linear(width, 1, hidden, 0.0, rngs)

    def __call__(self, x: Float[Array, "points inputs"]) -> Float[Array, " points"]:
        """Values at points."""
        activate = self.activation.function
        x = activate(self.second(activate(self.first(x))))
        return self.last(x)[:, 0]


def _linear(num_inputs: int, num_outputs: int, weight: float, bias: float, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose weights and biases start uniform in the given ranges."""
    return nnx.Linear(num_inputs, num_outputs, kernel_init=_uniform(weight), bias_init=_uniform(bias), rngs=rngs)


def _uniform(reach: float) -> Any:
    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -reach, reach)

    return init


class Parameterised(abc.ABC):
    """Functions with a flat vector of parameters; hashable, as it is configuration."""

    @abc.abstractmethod
    def apply(self, theta: Float[Array, " parameters"], x: Float[Array, "points inputs"]) -> Float[Array, " values"]:
        """Values of the function with parameters ``theta``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Parameterised):
    """Shape of a network; gives its functions of a flat parameter vector.

    Example:
        >>> net = Architecture(num_inputs=1, width=8, activation=ACTIVATIONS["tanh"])
        >>> net.num_parameters
        97
    """

    num_inputs: int
    width: int
    activation: Activation

    def _split(self, rngs: nnx.Rngs) -> tuple[Any, Any]:
        return nnx.split(MLP(self.num_inputs, self.width, self.activation, rngs=rngs))

    @property
    def num_parameters(self) -> int:
        """Length of the parameter vector."""
        return sum((rows + 1) * cols for _, rows, cols in self._shapes())

    def initial(self, *, key: Key[Array, ""]) -> Float[Array, " parameters"]:
        """Parameters from which training starts."""
        return self.flatten(nnx.to_pure_dict(self._split(nnx.Rngs(key))[1]))

    def layers(self, theta: Float[Array, " parameters"]) -> dict[str, dict[str, Array]]:
        """The vector as ``first``, ``second`` and ``last``, each with ``kernel`` (inputs first) and ``bias``."""
        layers, start = {}, 0
        for name, rows, cols in self._shapes():
            middle, stop = start + rows * cols, start + rows * cols + cols
            layers[name] = {"kernel": theta[start:middle].reshape(rows, cols), "bias": theta[middle:stop]}
            start = stop
        return layers

    def flatten(self, layers: Mapping[str, Mapping[str, Array]]) -> Float[Array, " parameters"]:
        """The vector of :meth:`layers`."""
        parts = [layers[name][part].reshape(-1) for name, _, _ in self._shapes() for part in ("kernel", "bias")]
        return jnp.concatenate(parts)

    def _shapes(self) -> tuple[tuple[str, int, int], ...]:
        return ("first", self.num_inputs, self.width), ("second", self.width, self.width), ("last", self.width, 1)

    def apply(self, theta: Float[Array, " parameters"], x: Float[Array, "points inputs"]) -> Float[Array, " points"]:
        """Values of the network at points of [-1, 1]."""
        graph, state = nnx.split(
            nnx.eval_shape(lambda: MLP(self.num_inputs, self.width, self.activation, rngs=nnx.Rngs(0)))
        )
        nnx.replace_by_pure_dict(state, self.layers(theta))
        return nnx.merge(graph, state)(x)


@partial(jax.jit, static_argnames=("architecture", "num_steps"))
def train(
    architecture: Architecture,
    x: Float[Array, "points inputs"],
    values: Float[Array, "draws points"],
    *,
    keys: Key[Array, " seeds"],
    num_steps: int,
) -> Float[Array, "seeds draws parameters"]:
    r"""Fit a network to every draw from every seed, all at once; the draws of a seed start at the same point.

    Adam on :math:`\frac1n \sum_i (f(x_i; \theta) - f_i)^2` with a cosine schedule, all points in every step.
    """
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    optimizer = optax.adam(schedule)

    def fit_one(theta: Array, target: Array) -> Array:
        def loss(theta):
            return jnp.square(architecture.apply(theta, x) - target).mean()

        def step(carry, _):
            theta, state = carry
            gradient = jax.grad(loss)(theta)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its step counter
                updates, state = optimizer.update(gradient, state)
            return (theta + updates, state), None

        return jax.lax.scan(step, (theta, optimizer.init(theta)), length=num_steps)[0][0]

    start = jax.vmap(lambda key: architecture.initial(key=key))(keys)
    return jax.vmap(jax.vmap(fit_one, (None, 0)), (0, None))(start, values)


@partial(jax.jit, static_argnames="architecture")
def evaluate(
    architecture: Parameterised, thetas: Float[Array, "draws parameters"], x: Float[Array, "points inputs"]
) -> Float[Array, "draws values"]:
    """Values of many networks."""
    return jax.vmap(lambda theta: architecture.apply(theta, x))(thetas)


@partial(jax.jit, static_argnames="architecture")
def gauss_newton(
    architecture: Parameterised, thetas: Float[Array, "draws parameters"], x: Float[Array, "points inputs"]
) -> Float[Array, "parameters parameters"]:
    r"""Mean over networks of :math:`J^\top J / n`, with :math:`J_{ik} = \partial f(x_i) / \partial \theta_k`."""

    def one(theta: Array) -> Array:
        jacobian = jax.jacrev(lambda t: architecture.apply(t, x))(theta)
        return jnp.matmul(jacobian.T, jacobian, precision="highest") / jacobian.shape[0]

    return jax.lax.map(one, thetas).mean(0)


def inputs(points: Float[np.ndarray, "values axes"]) -> Float[Array, "values axes"]:
    """Points of the unit interval or square as network inputs."""
    return jnp.asarray(2 * points - 1, jnp.float32)
