r"""Coordinates learned for the coder: leading axes of the KLT, turned until other draws of the source take fewer bits.

.. math::

    \min_Q\; \mathbb{E} \sum_j -\log_2 P_j(\operatorname{round}(Q y)_j)

over rotations of the axes that are above the water level; the others get no bits in any case. For a Gaussian source the
KLT is the best there is, and what training finds there is noise: coded draws, which training has not seen, take more
bytes. For other sources axes may be found along which the coefficients are further from Gaussian.

Axes are learned once for a source, in the space of its functions; every linear representation writes them down for its
parameters.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from occ_jax.codec import encode_transform
from occ_jax.learned import RateDistortion, Step, cayley, code_length, fit
from occ_jax.metrics import water_level
from occ_jax.transforms import Transform

from .coordinates import Coordinates, source_klt

STEPS = 70
LEARNING_RATE = 8e-3
TEMPERATURE = 0.3
"""Of soft rounding: near the true rate also where a coefficient takes less than a bit."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LearnedAxes:
    """Axes in the space of functions, orthonormal in the mean square; those with more energy come first.

    Args:
        forward: coefficients are values of a function times this.
        basis_bytes: what a file takes that holds the turn from the KLT to them.
    """

    forward: Float[np.ndarray, "values axes"]
    basis_bytes: int


def learn_axes(functions: Float[np.ndarray, "draws values"], *, level: float) -> LearnedAxes:
    """What training makes of the axes of a source's KLT that are above the water level.

    Args:
        functions: draws of the source other than those that are coded.
        level: relative error of the files that the axes are for; the step is that of reverse water-filling.
    """
    num_values = functions.shape[1]
    klt = source_klt(np.eye(num_values) / num_values, functions)
    y = functions @ klt.forward
    energies = np.square(y).mean(0)
    water = float(water_level(jnp.asarray(energies, jnp.float32), jnp.float32(level * energies.mean())))
    above = np.flatnonzero(energies > water)
    step = math.sqrt(12 * water)
    fitted = fit(
        cayley(above.size),
        _rate,
        key=jax.random.key(0),
        steps=STEPS,
        data=jnp.asarray(y[:, above] / step, jnp.float32),
        optimizer=optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS)),
        temperature=TEMPERATURE,
    )
    rotation = fitted.params.rotation()
    forward = klt.forward[:, above] @ np.asarray(rotation.matrix, np.float64).T
    order = np.argsort(-np.square(functions @ forward).mean(0), kind="stable")
    return LearnedAxes(forward=forward[:, order], basis_bytes=encode_transform(rotation, above.size).num_bytes)


def learned(klt: Coordinates, axes: LearnedAxes, design: Float[np.ndarray, "values size"]) -> Coordinates:
    r"""The learned coordinates of a linear representation :math:`f = \Phi \theta`, from those of its source.

    As many axes of the representation's own KLT as were learned are turned to be as near to the learned ones as a
    rotation can bring them (orthogonal Procrustes): there, if the representation has all functions. The others stay.

    Args:
        klt: of the parameters; all its axes have the sensitivity 1.
        axes: of the source's functions.
        design: :math:`\Phi`.

    References:
        Schönemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika 31, 1966.
    """
    count = min(len(klt.inverse), axes.forward.shape[1])
    overlap = klt.inverse[:count] @ design.T @ axes.forward[:, :count]
    left, _, right = np.linalg.svd(overlap)
    turn = left @ right
    forward, inverse = klt.forward.copy(), klt.inverse.copy()
    forward[:, :count] = klt.forward[:, :count] @ turn
    inverse[:count] = turn.T @ klt.inverse[:count]
    own_bytes = klt.basis_bytes + axes.basis_bytes
    return dataclasses.replace(klt, name="learned", forward=forward, inverse=inverse, basis_bytes=own_bytes)


def _rate(transform: Transform, y: Float[Array, "draws axes"], step: Step) -> RateDistortion:
    turned = transform.forward(y)
    bits = code_length(turned, key=step.key, family="laplace", scales="columns", temperature=step.temperature)
    return RateDistortion(bits, jnp.float32(0))
