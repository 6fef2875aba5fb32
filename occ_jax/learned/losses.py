r"""Rates and distortions that a gradient can follow, each a stand-in for what the codec will count.

A coefficient in steps, :math:`t = y / \Delta`, is coded as the integer next to it. For training the rounding is
replaced by noise, and the code length is that of an entropy model which is fitted to the coefficients themselves in
every step, so that there is nothing else to train:

.. math::

    R = \mathbb{E}_u \left[-\log_2 P_{\hat\theta(t)}(t + u)\right], \qquad u \sim \mathcal{U}[-\tfrac12, \tfrac12)

With scales shared by rows and columns, as the codec's scale classes are, :math:`\sigma_{ij} = \alpha_i \beta_j`, a
Gaussian code has a closed form at high rates, the *log-scale field* (:func:`scale_field_bits`): there is no noise in
it, and its gradient is exact.

Distortions of orthonormal coordinates are those of the coefficients; :func:`occ_jax.metrics.mse` and
:func:`occ_jax.metrics.hessian_weighted_error` are differentiable as they are. Integers with shared scales have no rate
to train, their distortion is all there is: :mod:`occ_jax.learned.integers`.

References:
    Ballé, Laparra & Simoncelli, End-to-end optimized image compression, ICLR 2017, section 3.
    Agustsson & Theis, Universally quantized neural compression, NeurIPS 2020.
"""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.entropy.fitting import MIN_SCALE, fit_generalized_gaussian
from occ_jax.entropy.models import DiscretizedGaussian, DiscretizedLaplace, EntropyModel, GeneralizedGaussian
from occ_jax.numerics import soft_round, soft_round_inverse
from occ_jax.quantization.base import uniform_noise

Family = Literal["gaussian", "laplace", "generalized_gaussian"]
"""Densities that a code length can be taken under."""

Scales = Literal["tensor", "rows", "columns", "field"]
"""What has a scale of its own: the tensor, each row, each column, or each row and each column (their product)."""

_WATER_LEVEL = 1 / 12
WATER_LMBDA = float(np.log2(np.e) / (2 * _WATER_LEVEL))
"""Bits that a squared step of distortion is worth where rate and distortion are in balance."""

_GAUSSIAN_BITS = float(np.log2(2 * np.pi * np.e) / 2)
_LOG2_E = float(np.log2(np.e))


@pytree_dataclass
class RateDistortion:
    """A point of the plane: what a loss returns to :func:`~occ_jax.learned.fit.fit`.

    Attributes:
        bits: rate, in bits per weight.
        distortion: mean squared or Hessian-weighted error, or a divergence.
    """

    bits: Float[Array, "..."]
    distortion: Float[Array, "..."]


def relax(
    t: Float[Array, "..."], *, key: Key[Array, ""], temperature: Float[Array, ""] | float | None = None
) -> Float[Array, "..."]:
    r"""What stands for the integer of each coefficient in training: noise in the place of rounding.

    Without a temperature :math:`t + u`. With one,

    .. math::

        m = s^{-1}(s(t) + u - \tfrac12) + \tfrac12, \qquad s = s_{1 / \tau} \text{ soft rounding},

    the middle of the unit interval that a coder of :math:`s(t) + u` gives the probability of. As :math:`\tau \to 0`
    it is the rounded integer itself, so that the rate becomes the true one also below 2 bits, where plain noise
    overestimates it.

    Args:
        t: coefficients, in steps.
        key: source of the noise.
        temperature: :math:`\tau`, positive; 1 is nearly plain noise, 0.1 nearly rounding.

    Example:
        >>> import jax
        >>> z = relax(jnp.zeros(1000), key=jax.random.key(0))
        >>> bool((jnp.abs(z) <= 0.5).all())
        True
    """
    if temperature is None:
        return uniform_noise(t, key=key)
    alpha = 1 / jnp.asarray(temperature, t.dtype)
    return soft_round_inverse(uniform_noise(soft_round(t, alpha), key=key) - 0.5, alpha) + 0.5


LEAST_COLUMN = 1e-6
"""Least mean square of a column, relative to its rows, where scales of both vary."""


def scale_field(
    t: Float[Array, "rows columns"], *, scales: Scales = "field", floor: float = 1e-6, num_iterations: int = 3
) -> tuple[Float[Array, "rows 1"], Float[Array, "1 columns"]]:
    r"""Variances of rows and columns with the shortest Gaussian code, by alternating maximum likelihood.

    .. math::

        \alpha_i^2 = \operatorname{mean}_j t_{ij}^2 / \beta_j^2
        \qquad
        \beta_j^2 = \operatorname{mean}_i t_{ij}^2 / \alpha_i^2

    The real-valued half of :func:`occ_jax.quantization.scales.fit_class_levels`; rows are updated last, so that
    :math:`\operatorname{mean}_{j} t_{ij}^2 / (\alpha_i \beta_j)^2 = 1` for every row above the floor.

    Args:
        t: values.
        scales: which of the two vary; what does not is absorbed in the other.
        floor: least mean square of a row or column, in squared steps where ``t`` is in steps. Where both vary it is
            that of rows, and columns, which are relative to them, have :data:`LEAST_COLUMN`.
        num_iterations: updates of each; they converge in two or three.

    Returns:
        The squares :math:`\alpha^2` and :math:`\beta^2`.

    Example:
        >>> rows, columns = scale_field(jnp.asarray([[1.0, 2.0], [4.0, 8.0]]))
        >>> print((rows * columns).round(2))
        [[ 1.  4.]
         [16. 64.]]
    """
    if scales not in get_args(Scales):
        raise ValueError(f"scales are {scales!r}: choose one of {', '.join(get_args(Scales))}")
    energy = jnp.square(t.astype(np.promote_types(t.dtype, jnp.float32)))
    one = jnp.ones((), energy.dtype)
    rows, columns = one.reshape(1, 1), one.reshape(1, 1)
    if scales == "tensor":
        rows = jnp.maximum(energy.mean(keepdims=True), floor)
    elif scales == "rows":
        rows = jnp.maximum(energy.mean(1, keepdims=True), floor)
    elif scales == "columns":
        columns = jnp.maximum(energy.mean(0, keepdims=True), floor)
    else:
        rows = jnp.maximum(energy.mean(1, keepdims=True), floor)
        # Means as products: sums down columns are slow on CPUs, and no quotient of the size of t is formed.
        for _ in range(num_iterations):
            columns = jnp.maximum(jnp.matmul((1 / rows).T, energy, precision="highest") / t.shape[0], LEAST_COLUMN)
            rows = jnp.maximum(jnp.matmul(energy, (1 / columns).T, precision="highest") / t.shape[1], floor)
    return jnp.broadcast_to(rows, (t.shape[0], 1)), jnp.broadcast_to(columns, (1, t.shape[1]))


def scale_field_bits(
    t: Float[Array, "rows columns"], *, scales: Scales = "field", floor: float = 1e-6
) -> Float[Array, ""]:
    r"""Bits per weight of Gaussian coefficients at high rate, in closed form.

    .. math::

        R = \operatorname{mean}_{ij} \log_2 \alpha_i \beta_j + \tfrac12 \log_2 2 \pi e

    for ``t`` in steps. Differences between coordinate systems, which are all that training needs, do not depend on
    the step. The scales are a maximum of the likelihood, so they are held fixed in the gradient (the envelope
    theorem), which therefore costs one product: :math:`\partial R / \partial t_{ij} = t_{ij} / (\sigma_{ij}^2 \ln 2)`
    over the number of entries. Not a rate below about 1.5 bits: narrow scales make it negative.

    Args:
        t: coefficients, in steps.
        scales: what has a scale of its own.
        floor: least mean square of a row or column; entries below it have no gradient left to gain from.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (64, 64))
        >>> round(float(scale_field_bits(8 * x) - scale_field_bits(x)), 3)
        3.0
    """
    rows, columns = lax.stop_gradient(scale_field(t, scales=scales, floor=floor))
    energy = jnp.square(t.astype(rows.dtype)) / (rows * columns)
    log_scales = (jnp.log2(rows).mean() + jnp.log2(columns).mean()) / 2
    return log_scales + _LOG2_E / 2 * (energy.mean() - 1) + _GAUSSIAN_BITS


def water_filled(t: Float[Array, "rows columns"], *, floor: float = 1e-6) -> RateDistortion:
    r"""Rate and distortion of Gaussian coefficients of which some lie under the water level.

    .. math::

        R = \operatorname{mean}_{ij} \tfrac12 \log_2^+ \frac{\sigma_{ij}^2}{\theta}, \qquad
        D = \operatorname{mean}_{ij} \min(\sigma_{ij}^2, \theta), \qquad \theta = \tfrac1{12}

    for ``t`` in steps, :math:`\sigma_{ij}^2 = \alpha_i^2 \beta_j^2` its field. The rate-distortion function of the
    field, at the distortion that rounding has at high rate; the rate of a scalar quantizer lies up to
    :math:`\tfrac12 \log_2 \tfrac{2 \pi e}{12} = 0.254` bits above it. With :data:`WATER_LMBDA` the Lagrangian has a
    gradient everywhere, which above the level is that of :func:`scale_field_bits`.

    Args:
        t: coefficients, in steps.
        floor: least mean square of a row or column.

    Example:
        >>> point = water_filled(jnp.asarray([[4.0, 0.01]] * 2))
        >>> print(f"{point.bits:.2f} {point.distortion:.3f}")
        1.90 0.042

    References:
        Cover & Thomas, Elements of Information Theory, section 10.3.3.
    """
    rows, columns = scale_field(t, floor=floor)
    variance = rows * columns
    bits = jnp.log2(jnp.maximum(variance, _WATER_LEVEL) / _WATER_LEVEL).mean() / 2
    return RateDistortion(bits, jnp.minimum(variance, _WATER_LEVEL).mean())


def fitted_model(t: Float[Array, "rows columns"], family: Family, scales: Scales = "tensor") -> EntropyModel:
    r"""The entropy model of a family, centred at zero, that fits coefficients: differentiable in them.

    Gaussian scales are root mean squares, Laplace scales mean absolute values (both alternated over rows and columns
    in a field); a generalised Gaussian has the field of the Gaussian and one shape, by moments.

    Args:
        t: coefficients, in steps, before any noise: the models add the unit box themselves.
        family: density.
        scales: what has a scale of its own.

    Raises:
        ValueError: unknown family or scales.
    """
    t = t.astype(np.promote_types(t.dtype, jnp.float32))
    if family == "laplace":
        # The maximum-likelihood updates of a Laplace field are those of a Gaussian one on square roots of |t|.
        root = jnp.sqrt(jnp.maximum(jnp.abs(t), jnp.finfo(t.dtype).tiny))
        rows, columns = scale_field(root, scales=scales, floor=MIN_SCALE)
        return DiscretizedLaplace(scale=rows * columns, loc=jnp.zeros((1, 1), t.dtype))
    rows, columns = scale_field(t, scales=scales, floor=MIN_SCALE**2)
    sigma = jnp.sqrt(rows * columns)
    if family == "gaussian":
        return DiscretizedGaussian(scale=sigma, loc=jnp.zeros((1, 1), t.dtype))
    if family == "generalized_gaussian":
        # The shape is found by bisection, through which no gradient goes; near its best value none is missing.
        unit = fit_generalized_gaussian(lax.stop_gradient(t / sigma))
        return GeneralizedGaussian(scale=sigma * unit.scale, shape=jnp.broadcast_to(unit.shape, (1, 1)))
    raise ValueError(f"family is {family!r}: choose one of {', '.join(get_args(Family))}")


def code_length(
    t: Float[Array, "rows columns"],
    *,
    key: Key[Array, ""],
    family: Family = "laplace",
    scales: Scales = "tensor",
    temperature: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    r"""Bits per weight of coefficients in steps, under the model of a family that is fitted to them.

    A matrix is ``rows x columns`` as it will be coded: with ``scales="field"`` one scale per row and one per column,
    as the codec's scale classes. Side information is not in it: about 5 bits for each scale.

    Args:
        t: coefficients, in steps.
        key: source of the noise.
        family: density.
        scales: what has a scale of its own.
        temperature: of soft rounding; plain noise when None.

    Example:
        >>> import jax
        >>> x = 4 * jax.random.normal(jax.random.key(0), (64, 64))
        >>> float(code_length(x, key=jax.random.key(1), family="gaussian"))
        4.0...
    """
    model = fitted_model(t, family, scales)
    return model.bits(relax(t, key=key, temperature=temperature)).mean()
