r"""How far each layer ends from the rate-distortion limit, in bits per weight.

**Source.** After one scale for each row and one for each column the entries of a weight matrix are close to i.i.d.
Gaussian, so the source is :math:`w_{ij} \sim N(0, a_i^2 b_j^2)`, independent, with the scales of greatest likelihood.

**Distortion.** :math:`D = \frac1n \sum_i g_i\, e_i H e_i^\top`, with the damped second moment :math:`H` that feedback
uses and the Fisher information :math:`g_i` of the outputs.

**Bound.** :math:`D` is the squared error of :math:`x_i = \sqrt{g_i}\, H^{1/2} w_i^\top`, whose covariance is
:math:`g_i a_i^2\, H^{1/2} B H^{1/2}` with :math:`B = \operatorname{diag}(b_j^2)`. With the eigenvalues
:math:`\lambda_k` of :math:`B^{1/2} H B^{1/2}` (the same numbers) the rate-distortion function of the layer is reverse
water-filling over the :math:`n` variances :math:`g_i a_i^2 \lambda_k`, exactly, and at every rate.

**Bound of i.i.d. weights.** Published distances take the weights of a matrix for i.i.d. :math:`N(0, \sigma^2)`, so
the variances are :math:`\sigma^2 g_i \operatorname{eig}_k(H)`. This bound is the higher one by the coding gain of the
scales: a code that uses them comes nearer to it, and may fall below.

**Reference of feedback.** Successive feedback with :math:`H^{-1} = U^\top U` sees column :math:`j` with the variance
:math:`\sigma_{ij}^2 = g_i a_i^2 b_j^2 / U_{jj}^2`. As :math:`\prod_j U_{jj}^{-2} = \det H`, both sets of variances have
one geometric mean, and both limits are :math:`\tfrac12 \log_2 (\text{that mean} / D)` once every component is above the
water. Below it the second is a reference and no bound: it takes every column as if those before it were coded finely.

References:
    Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3. WaterSIC, arXiv:2603.04956, section 3.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from occ_jax.codec import Levels, decode_tensor, encode_lattice
from occ_jax.metrics import rate_at_distortion
from occ_jax.quantization.codebook import Codebook, codebook_to_bytes, search_tables
from occ_jax.quantization.feedback import FeedbackResult, quantize_with_feedback
from occ_jax.quantization.hessian import HessianFactor, damp, prepare_hessian
from occ_jax.quantization.scales import CLASS_SHIFT, class_sigmas
from occ_jax.quantization.trellis import gaussian_codebook, gaussian_statistics

from ..compression.allocation import mean_class_bits, probe_rows, refined_codebook
from ..compression.compressor import rows_of, symbol_statistics
from ..compression.network import Network
from ..compression.plan import MatrixPlan, plan_matrix, solve_step
from ..compression.sensitivity import Sensitivity
from ..parallel import Track, untracked
from ..roles import is_linear, layer_of

_LANE_SYMBOLS = 1 << 14
_FIT_ROUNDS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """One layer, coded for real.

    Attributes:
        name: of its matrix.
        states: of the trellis.
        bits_per_weight: coded bytes of the layer, levels included, and its share of the network's tables; without a
            transform that is stored with the matrix.
        table_bits: that share.
        distortion: weighted error per weight.
        distance_bits: ``bits_per_weight`` less the rate-distortion function at ``distortion``.
        iid_distance_bits: the same against the bound of i.i.d. weights.
        feedback_distance_bits: the same against the reference of feedback.
    """

    name: str
    states: int
    bits_per_weight: float
    table_bits: float
    distortion: float
    distance_bits: float
    iid_distance_bits: float
    feedback_distance_bits: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    name: str
    w: Float[np.ndarray, "d_out d_in"]
    sensitivity: Sensitivity
    factor: HessianFactor
    plan: MatrixPlan

    def levels(self, target_bits: float, class_bits: np.ndarray) -> Levels:
        """At the step at which the layer is expected to take ``target_bits`` per weight with its levels."""
        side_info = 8.0 * len(self.plan.levels(1.0).to_bytes())
        return self.plan.levels(solve_step([self.plan], class_bits, target_bits * self.w.size - side_info))

    def quantize(self, levels: Levels, codebook: Codebook, rows: slice = slice(None)) -> FeedbackResult:
        step_row, step_column = levels.steps()
        return quantize_with_feedback(
            self.w[rows],
            self.factor,
            search_tables(codebook),
            step_row=step_row[rows],
            step_column=step_column,
            row_level=levels.class_rows[rows],
            column_level=levels.class_cols,
            num_states=codebook.num_states,
            class_shift=CLASS_SHIFT,
            devices=tuple(jax.devices()),
        )


def sampled_matrices(network: Network, every: int) -> tuple[str, ...]:
    """Linear layers of every so many-th block, the first included."""
    return tuple(name for name in network.matrices if is_linear(name) and (layer_of(name) or 0) % every == 0)


def measure_distances(
    network: Network,
    names: Sequence[str],
    *,
    states: int,
    rate: float,
    track: Track = untracked,
) -> list[Distance]:
    """Quantize some layers with feedback, each at about ``rate`` bits, and measure their distance from the limit.

    The tables are trained on a share of the rows of these layers, shared by them, and charged as they would be in a
    file of the whole network.

    Args:
        network: with its statistics.
        names: linear layers.
        states: of the trellis; 1 is scalar quantization.
        rate: bits per weight, about: the distance is taken at the bits that were spent.
        track: shows progress.

    Raises:
        ValueError: a rate that cannot be reached, or a second moment that cannot be factored.
    """
    codebook = gaussian_codebook(class_sigmas(), num_states=states)
    class_bits = mean_class_bits(gaussian_statistics(class_sigmas(), states), codebook)
    for _ in range(2):
        total = None
        for layer in _layers(network, track(names, f"{states} states, {rate:g} bits: tables")):
            levels, rows = layer.levels(rate, class_bits), probe_rows(*layer.w.shape)
            result = layer.quantize(levels, codebook, rows)
            statistics = symbol_statistics(result, rows_of(levels, rows), codebook)
            total = statistics if total is None else jax.tree.map(np.add, total, statistics)
        assert total is not None
        codebook = refined_codebook(total, states)
        class_bits = mean_class_bits(total, codebook, fallback=class_bits)
    weights = sum(network.weights[name].size for name in network.matrices if is_linear(name))
    table_bits = 8 * len(codebook_to_bytes(codebook)) / weights
    return [
        _distance(layer, layer.levels(rate, class_bits), codebook, table_bits)
        for layer in _layers(network, track(names, f"{states} states, {rate:g} bits: layers"))
    ]


def _layers(network: Network, names: Iterable[str]) -> Iterator[_Layer]:
    for name in names:
        w, sensitivity = network.coefficients(name), network.sensitivity(name)
        factor = prepare_hessian(sensitivity.hessian)
        plan = plan_matrix(name, w, factor.relative_steps, sensitivity.rows)
        yield _Layer(name=name, w=w, sensitivity=sensitivity, factor=factor, plan=plan)


def _distance(layer: _Layer, levels: Levels, codebook: Codebook, table_bits: float) -> Distance:
    q = np.asarray(layer.quantize(levels, codebook).q)
    coded = encode_lattice(q, levels, codebook, lane_symbols=_LANE_SYMBOLS)
    bits = 8 * coded.num_bytes / q.size + table_bits
    h = damp(np.array(layer.sensitivity.hessian, np.float64))
    error = layer.w.astype(np.float64) - decode_tensor(coded)
    distortion = float(layer.sensitivity.rows @ np.sum((error @ h) * error, 1)) / q.size
    source = source_variances(layer.w, layer.sensitivity.rows, h, layer.factor.diagonal)
    return Distance(
        name=layer.name,
        states=codebook.num_states,
        bits_per_weight=bits,
        table_bits=table_bits,
        distortion=distortion,
        distance_bits=bits - rate_limit(source.scaled, distortion),
        iid_distance_bits=bits - rate_limit(source.iid, distortion),
        feedback_distance_bits=bits - rate_limit(source.feedback, distortion),
    )


class SourceVariances(NamedTuple):
    r"""Variances of the components of a layer, one number for each weight.

    Attributes:
        scaled: :math:`g_i a_i^2 \lambda_k`, of weights with scales of rows and columns.
        iid: :math:`g_i \sigma^2 \operatorname{eig}_k(H)`, of weights with one variance.
        feedback: :math:`\sigma_{ij}^2`, what feedback sees of the former.
    """

    scaled: Float[np.ndarray, " n"]
    iid: Float[np.ndarray, " n"]
    feedback: Float[np.ndarray, " n"]


def source_variances(
    w: Float[np.ndarray, "d_out d_in"],
    rows: Float[np.ndarray, " d_out"],
    hessian: Float[np.ndarray, "d_in d_in"],
    diagonal: Float[np.ndarray, " d_in"],
) -> SourceVariances:
    """Variances of the components of a layer, by each model of the source.

    Args:
        w: weights, from which the scales :math:`a` and :math:`b` are fitted.
        rows: Fisher information :math:`g`.
        hessian: damped second moment.
        diagonal: :math:`U_{jj}`, in the columns' own order.
    """
    a, b = separable_variances(w)
    root, rows = np.sqrt(b), np.asarray(rows, np.float64)
    scaled, plain = (
        np.maximum(np.linalg.eigvalsh(form), 0.0) for form in (root[:, None] * hessian * root[None, :], hessian)
    )
    return SourceVariances(
        scaled=np.outer(rows * a, scaled).ravel(),
        iid=np.outer(rows * np.square(w, dtype=np.float64).mean(), plain).ravel(),
        feedback=np.outer(rows * a, b / np.square(diagonal)).ravel(),
    )


def separable_variances(
    w: Float[np.ndarray, "d_out d_in"],
) -> tuple[Float[np.ndarray, " d_out"], Float[np.ndarray, " d_in"]]:
    r"""Variances :math:`a_i^2` and :math:`b_j^2` of greatest likelihood for :math:`w_{ij} \sim N(0, a_i^2 b_j^2)`.

    Example:
        >>> a, b = separable_variances(np.array([[1.0, -2.0], [2.0, 4.0]]))
        >>> np.outer(a, b).round(6)
        array([[ 1.,  4.],
               [ 4., 16.]])
    """
    energy = np.square(np.asarray(w, np.float64))
    energy = np.maximum(energy, 1e-30 * energy.max())  # a dead row or column keeps a likelihood
    b = energy.mean(0)
    a = np.ones(len(energy))
    for _ in range(_FIT_ROUNDS):
        a = (energy / b).mean(1)
        b = (energy / a[:, None]).mean(0)
    return a, b


def rate_limit(variances: Float[np.ndarray, " n"], distortion: float) -> float:
    """Bits per component at a distortion per component, by reverse water-filling; scaled to fit float32."""
    scale = variances.mean()
    return float(rate_at_distortion(jnp.asarray(variances / scale, jnp.float32), jnp.float32(distortion / scale)))
