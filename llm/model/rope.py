r"""Rotary position embedding and the ways to stretch it beyond the context a model was trained on.

A head of size :math:`d` is read as :math:`d / 2` complex numbers :math:`z_k = x_k + i\, x_{k + d/2}`, and the one at
position :math:`t` is turned by the angle :math:`t\, \omega_k` with :math:`\omega_k = \theta^{-2k/d}`, so that a product
of a query and a key depends on their distance only. Scaling changes :math:`\omega`, and for YaRN also the length.

References:
    Su et al., RoFormer, arXiv 2104.09864. Peng et al., YaRN, arXiv 2309.00071 (section 3).
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, length: int) -> tuple[Float[np.ndarray, " half"], float]:
    r"""Angular frequencies :math:`\omega_k` in radians per token, and the factor on cosine and sine.

    Args:
        config: of the model.
        length: number of positions in use; only the ``dynamic`` scaling depends on it.

    Example:
        >>> config = ModelConfig(family="llama", vocab_size=2, hidden_size=8, intermediate_size=8, num_layers=1,
        ...                      num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=100.0)
        >>> rope_frequencies(config, 16)
        (array([1. , 0.1], dtype=float32), 1.0)
    """
    dim, base, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    factor = 1.0
    if scaling is not None and scaling.kind == "dynamic":
        stretch = scaling.factor * max(length, config.max_position) / config.max_position - (scaling.factor - 1)
        base = base * stretch ** (dim / (dim - 2))
    omega = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is not None and scaling.kind == "linear":
        omega = omega / scaling.factor
    if scaling is not None and scaling.kind == "llama3":
        omega = _llama3(omega, scaling)
    if scaling is not None and scaling.kind == "yarn":
        omega, factor = _yarn(omega, base, scaling)
    return omega.astype(np.float32), factor


def _llama3(omega: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Keep what turns often within the original context, slow down what does not, interpolate between."""
    turns = scaling.original_max_position * omega / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * omega + (1 - keep) * omega / scaling.factor


def _yarn(omega: np.ndarray, base: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """Interpolate "by parts": a ramp over the frequency index between ``beta_fast`` and ``beta_slow`` turns."""
    dim = 2 * omega.size

    def index_of(turns: float) -> float:
        return dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if high == low else high
    stretch = np.clip((np.arange(omega.size) - low) / (high - low), 0.0, 1.0)
    if scaling.attention_factor is not None:
        factor = float(scaling.attention_factor)
    elif scaling.mscale and scaling.mscale_all_dim:
        factor = _yarn_factor(scaling.factor, scaling.mscale) / _yarn_factor(scaling.factor, scaling.mscale_all_dim)
    else:
        factor = _yarn_factor(scaling.factor, 1.0)
    return stretch * omega / scaling.factor + (1 - stretch) * omega, factor


def _yarn_factor(scale: float, mscale: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def rope_table(
    config: ModelConfig, positions: Int[Array, " length"], *, length: int, dtype: jnp.dtype
) -> Float[Array, "2 length half"]:
    """Cosine and sine of every angle; the angles themselves are float32, as the models were trained with.

    Args:
        config: of the model.
        positions: of the tokens.
        length: of the whole context, see :func:`rope_frequencies`.
        dtype: of the table.
    """
    omega, factor = rope_frequencies(config, length)
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(omega)[None, :]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)]).astype(dtype) * factor


def rotate(x: Float[Array, "... length heads head_dim"], table: Float[Array, "2 length half"]) -> Float[Array, "..."]:
    """Turn every head by the angles of its position."""
    shape = (1,) * (x.ndim - 3) + (table.shape[1], 1, table.shape[2])
    cos, sin = table[0].reshape(shape), table[1].reshape(shape)
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], axis=-1)
