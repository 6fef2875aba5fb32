r"""Entropy-constrained trellis-coded quantization of rows, and the alternation that designs its codebook.

On memoryless Gaussian rows the distance from the rate-distortion function is nearly the same from 1 bit up: by
``benchmarks/gaussian.py``, in coded bytes with all side information, 0.090 bit with 4 states, 0.075 with 8, 0.055 with
32 and 0.035 with 256, against 0.254 of scalar quantization with an ideal entropy coder.

References:
    Fischer & Wang, Entropy-constrained trellis-coded quantization, IEEE Trans. Information Theory, 1992.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from scipy.special import ndtr

from occ_jax.quantization.codebook import (
    MAX_SYMBOL,
    Codebook,
    Statistics,
    estimate,
    gather_statistics,
    search_tables,
)
from occ_jax.quantization.row_parallel import Devices
from occ_jax.quantization.ungerboeck import check_num_states, num_parities
from occ_jax.quantization.viterbi import search

HIGH_RATE_LMBDA = {1: 0.115, 4: 0.37, 8: 0.36, 16: 0.355, 32: 0.35, 64: 0.345, 128: 0.34, 256: 0.335}
r"""Squared steps per bit at which the search is on the line :math:`dD/dR = -2 \ln 2 \, D` of a high-rate quantizer."""


def gaussian_statistics(sigmas: Float[np.ndarray, " classes"], num_states: int) -> Statistics:
    """Expected statistics if values were Gaussian and fell to the nearest index of their parity: where a fit starts.

    Args:
        sigmas: standard deviation of each scale class, in steps.
        num_states: states of the trellis.
    """
    check_num_states(num_states)
    spacing = 1 if num_states == 1 else 2
    k = np.arange(-MAX_SYMBOL, MAX_SYMBOL + 1)
    point = spacing * k[None, None, :] + np.arange(num_parities(num_states))[None, :, None]
    sigma = np.asarray(sigmas, np.float64)[:, None, None]
    # The two ends of a cell on the side of the small tail, where their difference keeps its digits.
    mass = ndtr((spacing / 2 - np.abs(point)) / sigma) - ndtr((-spacing / 2 - np.abs(point)) / sigma)
    counts = mass.reshape(-1, k.size)
    return Statistics(counts, np.zeros_like(counts))


def fit(
    t: Float[Array, "rows length"],
    classes: Int32[Array, "rows length"],
    *,
    num_states: int,
    num_classes: int,
    lmbda: float | None = None,
    num_iterations: int = 6,
    precision: int = 12,
    start: Codebook | None = None,
    devices: Devices = None,
) -> tuple[Codebook, Int32[Array, "rows length"]]:
    """Alternate between the best paths for a codebook and the best codebook for the paths.

    Neither half can make the sum of distortion and ``lmbda`` times rate worse (but for the rounding of frequencies).

    Args:
        t: values, in steps.
        classes: scale class of each value.
        num_states: states of the trellis.
        num_classes: number of scale classes; those without a value get empty tables.
        lmbda: squared steps that one bit is worth; the high-rate slope when left out.
        num_iterations: paths searched; 3 are enough above 1.5 bits, low rates take more.
        precision: bits of the frequencies.
        start: codebook of the first search; that of Gaussian classes of the measured scales when left out.
        devices: devices to share the rows between.

    Returns:
        The codebook and the indices, each made for the other.

    Raises:
        ValueError: there is no trellis of so many states, or no iteration to do.
    """
    check_num_states(num_states)
    if num_iterations < 1:
        raise ValueError(f"a fit takes at least one iteration, got {num_iterations}")
    lmbda = HIGH_RATE_LMBDA[num_states] if lmbda is None else lmbda
    if start is None:
        start = estimate(gaussian_statistics(_class_rms(t, classes, num_classes), num_states), num_states)
    codebook, q = start, jnp.zeros(t.shape, jnp.int32)
    for _ in range(num_iterations):
        q = search(t, classes, search_tables(codebook), num_states=num_states, lmbda=lmbda, devices=devices)
        statistics = gather_statistics(t, q, classes, num_states, num_classes)
        codebook = estimate(statistics, num_states, precision=precision)
    return codebook, q


def _class_rms(t: Array, classes: Array, num_classes: int) -> Float[np.ndarray, " classes"]:
    flat = np.asarray(classes).reshape(-1)
    energy = np.bincount(flat, np.square(np.asarray(t, np.float64)).reshape(-1), num_classes)
    return np.sqrt(energy / np.maximum(np.bincount(flat, minlength=num_classes), 1) + 1e-4)


def gaussian_codebook(
    sigmas: Float[np.ndarray, " classes"],
    *,
    num_states: int,
    lmbda: float | None = None,
    num_iterations: int = 8,
    rows_per_class: int = 16,
    precision: int = 12,
) -> Codebook:
    """Codebook of Gaussian classes of given standard deviations in steps: what to start from before any data.

    Trained on pseudo-random rows, with the expected statistics mixed in at a weight of one sample for each table, so
    that every table can code every plausible index.
    """
    t = np.random.default_rng(0).standard_normal((len(sigmas) * rows_per_class, 1024))
    classes = np.repeat(np.arange(len(sigmas)), rows_per_class)
    t = jnp.asarray(t * np.asarray(sigmas)[classes, None], jnp.float32)
    classes = jnp.asarray(np.broadcast_to(classes[:, None], t.shape), jnp.int32)
    _, q = fit(t, classes, num_states=num_states, num_classes=len(sigmas), lmbda=lmbda, num_iterations=num_iterations)
    statistics = gather_statistics(t, q, classes, num_states, len(sigmas))
    expected = gaussian_statistics(sigmas, num_states)
    return estimate(jax.tree.map(np.add, statistics, expected), num_states, precision=precision)
