r"""Coordinates learned for the coder: leading axes of the KLT, turned until other draws of the source take fewer bits.

.. math::

    \min_Q\; \mathbb{E} \sum_j -\log_2 P_j(\operatorname{round}(Q y)_j)

over rotations of the axes that are above the water level; the others get no bits in any case. For a Gaussian source the
KLT is the best there is, and what training finds there is noise: coded draws, which training has not seen, take more
bytes. For other sources axes may be found along which the coefficients are further from Gaussian.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from occ_jax.codec import encode_transform
from occ_jax.learned import RateDistortion, Step, cayley, code_length, fit
from occ_jax.transforms import Transform

from .coordinates import Coordinates

STEPS = 70
LEARNING_RATE = 8e-3
TEMPERATURE = 0.3
"""Of soft rounding: near the true rate also where a coefficient takes less than a bit."""


def learned(klt: Coordinates, typical: Float[np.ndarray, "draws size"], *, step: float) -> Coordinates:
    """The coordinates of a source that training makes of its KLT.

    Args:
        klt: of the source; all its axes have the sensitivity 1.
        typical: parameters of draws other than those that are coded.
        step: of the quantizer that the coordinates are for.
    """
    y = typical @ klt.forward / step
    count = num_turned(np.square(y).mean(0))
    data = jnp.asarray(y[:, :count], jnp.float32)
    fitted = fit(
        cayley(count),
        _rate,
        key=jax.random.key(0),
        steps=STEPS,
        data=data,
        optimizer=optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS)),
        temperature=TEMPERATURE,
    )
    rotation = fitted.params.rotation()
    turn = np.asarray(rotation.matrix, np.float64)
    forward, inverse = klt.forward.copy(), klt.inverse.copy()
    forward[:, :count] = klt.forward[:, :count] @ turn.T
    inverse[:count] = turn @ klt.inverse[:count]
    own_bytes = encode_transform(rotation, count).num_bytes
    return dataclasses.replace(
        klt, name="learned", forward=forward, inverse=inverse, basis_bytes=klt.basis_bytes + own_bytes
    )


def num_turned(energies: Float[np.ndarray, " axes"]) -> int:
    r"""Leading axes above the water level of :math:`\tfrac1{12}` squared steps, up to the next power of two.

    Powers of two, so that few sizes are compiled.

    Example:
        >>> num_turned(np.array([9.0, 4.0, 1.0, 0.01, 0.0])), num_turned(np.array([1.0, 1.0, 1.0]))
        (4, 3)
    """
    above = max(2, int((energies > 1 / 12).sum()))
    return min(1 << (above - 1).bit_length(), energies.size)


def _rate(transform: Transform, y: Float[Array, "draws axes"], step: Step) -> RateDistortion:
    turned = transform.forward(y)
    bits = code_length(turned, key=step.key, family="laplace", scales="columns", temperature=step.temperature)
    return RateDistortion(bits, jnp.float32(0))
