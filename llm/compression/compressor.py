"""The passes over a network: plan every matrix, probe a few rows of each, quantize and code all of them."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from occ_jax.codec import CodedTensor, Lattice, Levels, encode_lattices, encode_raw, encode_tensor, encode_transform
from occ_jax.quantization import fit_affine
from occ_jax.quantization.codebook import (
    Codebook,
    SearchTables,
    Statistics,
    gather_statistics,
    reconstruct,
    search_tables,
)
from occ_jax.quantization.feedback import FeedbackResult, quantize_with_feedback
from occ_jax.quantization.hessian import HessianFactor
from occ_jax.quantization.output_feedback import OutputFactor
from occ_jax.quantization.scales import CLASS_SHIFT, NUM_CLASSES

from ..checkpoints.compressed import BASIS
from ..folding import folded_gains
from ..parallel import Lender, Track, in_pairs
from ..roles import FINAL_NORM, is_linear
from .allocation import Allocation, probe_rows
from .factors import Factors
from .input_bases import BASIS_BITS
from .network import Network
from .plan import expected_bits
from .settings import Settings
from .survey import Survey

ROW_RESOLUTION = 32
"""Levels per octave of row steps that are tuned: errors of 0.6 %, for two bits a row more than those that are not."""

INTEGER_GROUP = 64
"""Weights of an embedding in integers that share a scale and a zero point."""

_LANE_BYTES = 6
_LANE_SYMBOLS = 1 << 14


class Compressor:
    """One network under one set of settings; the methods are the passes over it, in this order.

    Args:
        survey: of the network.
        settings: how.
        track: shows progress.
    """

    def __init__(self, survey: Survey, settings: Settings, track: Track):
        self.network = survey.network
        self._settings = settings
        self._factors, self._outputs = survey.factors, survey.outputs
        self._devices = Lender(jax.devices())
        self._track = track
        self.plans = survey.plans
        self._probes = survey.probes

    def probe(self, step: float, codebook: Codebook) -> Statistics:
        """Symbols of the probe rows at a step."""
        tables = search_tables(codebook)

        def count(name: str) -> Statistics:
            levels = rows_of(self.plans[name].levels(step), probe_rows(*self.plans[name].shape))
            result = self._quantize(self._factors.load(name), self._probes[name], levels, tables)
            return symbol_statistics(result, levels, codebook)

        names = self.network.matrices
        counted = (statistics for _, statistics in in_pairs(count, self._track(names, "probe"), names))
        return functools.reduce(lambda one, other: jax.tree.map(np.add, one, other), counted)

    def pilot(self, allocation: Allocation) -> float:
        """Bits per weight by which whole matrices, one of each kind, exceed what their plans let expect."""
        kinds = [names for names in self.network.same_shape().values() if is_linear(names[0])]
        names = [alike[(2 * i + 1) * len(alike) // (2 * len(kinds))] for i, alike in enumerate(kinds)]
        made = in_pairs(lambda name: self.encode((name,), allocation), self._track(names, "pilot"), names)
        spent = sum(8 * coded.num_bytes for _, of_name in made for coded in of_name.values())
        expected = expected_bits([self.plans[n] for n in names], allocation.class_bits, allocation.step)
        weights = sum(self.plans[n].num_weights for n in names)
        return (spent - expected - self.side_info_bits(names)) / weights

    def encode(
        self,
        names: Sequence[str],
        allocation: Allocation,
        *,
        fine_rows: bool = False,
        factors: Factors | None = None,
    ) -> dict[str, CodedTensor]:
        """Quantize some whole matrices and code them together.

        Args:
            names: of the matrices.
            allocation: step and codebook.
            fine_rows: leave room in the file for row scales that will be tuned, if it is a linear layer.
            factors: of other second moments than the survey's.
        """
        bits = self._settings.embedding_bits
        apart = [] if bits is None else [name for name in names if not is_linear(name)]
        dialled = [name for name in names if name not in apart]
        factors = factors or self._factors
        lattices = [self._lattice(name, allocation, factors, fine_rows=fine_rows) for name in dialled]
        made = encode_lattices(lattices, allocation.codebook, lane_symbols=_LANE_SYMBOLS)
        coded = dict(zip(dialled, made, strict=True))
        return coded | {name: encode_integers(self.network.weights[name], bits or 8) for name in apart}

    def _lattice(self, name: str, allocation: Allocation, factors: Factors, *, fine_rows: bool) -> Lattice:
        levels = self.plans[name].levels(allocation.step, allocation.classes_at)
        if fine_rows and is_linear(name):
            levels = levels.with_row_factors(np.ones(levels.shape[0]), ROW_RESOLUTION)
        w, factor = self.network.coefficients(name), factors.load(name)
        if self._outputs is None or not is_linear(name):
            q = self._quantize(factor, w, levels, allocation.tables).q
        else:
            # Rows wait for each other, so the devices share the matrices instead of the rows.
            with self._devices.lent() as device, jax.default_device(device):
                q = np.asarray(self._quantize(factor, w, levels, allocation.tables, self._outputs.load(name)).q)
        right, offset = self.network.coded_transform(name), self.network.offset(name)
        return Lattice(np.asarray(q), levels, right=right, offset=offset)

    @property
    def num_linear_weights(self) -> int:
        """Weights of the linear layers."""
        return sum(plan.num_weights for name, plan in self.plans.items() if is_linear(name))

    def side_info_bits(self, names: Sequence[str]) -> float:
        """About what some matrices take beside their indices and the shared tables: levels, lanes, transforms."""
        plans = [self.plans[name] for name in names]
        levels = sum(len(plan.levels(1.0).to_bytes()) for plan in plans)
        lanes = sum(-(-plan.num_weights // _LANE_SYMBOLS) for plan in plans)
        transforms = sum(self.network.transform_bits(plan.name) for plan in plans)
        return 8.0 * (levels + _LANE_BYTES * lanes) + transforms

    def _quantize(
        self,
        factor: HessianFactor,
        w: Float[np.ndarray, "rows d_in"],
        levels: Levels,
        tables: SearchTables,
        outputs: OutputFactor | None = None,
    ) -> FeedbackResult:
        step_row, step_column = levels.steps()
        return quantize_with_feedback(
            w,
            factor,
            tables,
            step_row=step_row,
            step_column=step_column,
            row_level=levels.class_rows,
            column_level=levels.class_cols,
            num_states=self._settings.states,
            class_shift=CLASS_SHIFT,
            outputs=outputs,
            devices=tuple(jax.devices()) if outputs is None else None,
        )


def encode_integers(w: Float[np.ndarray, "rows d_in"], bits: int) -> CodedTensor:
    """A matrix in asymmetric integers of fixed width with shared scales, the customary form of embeddings."""
    return encode_tensor(w, fit_affine(jnp.asarray(w), bits, group_size=INTEGER_GROUP))


def encode_rest(network: Network, *, gains: bool = False) -> dict[str, CodedTensor]:
    """Everything that is not quantized: gains, biases, and the basis of a tied head.

    Args:
        network: as it will be coded.
        gains: store the gains that folding has made one too, as they will be tuned.
    """
    coded = {name: encode_raw(network.weights[name], "float16") for name in network.vectors}
    if network.mixes_head:
        width = network.config.hidden_size
        coded[FINAL_NORM] = encode_raw(network.final_gain, "float16")
        coded[BASIS] = encode_transform(network.written.residual, width, matrix_bits=BASIS_BITS)
    if gains:
        ones = np.ones(network.config.hidden_size, np.float32)
        coded |= {name: encode_raw(ones, "float16") for name in folded_gains(network.config)}
    return coded


def rows_of(levels: Levels, rows: slice) -> Levels:
    """Levels of some rows."""
    return dataclasses.replace(levels, step_rows=levels.step_rows[rows], class_rows=levels.class_rows[rows])


def symbol_statistics(result: FeedbackResult, levels: Levels, codebook: Codebook) -> Statistics:
    """Which symbols were chosen for rows with these levels, and the residuals that they left."""
    classes = jnp.asarray(levels.classes(NUM_CLASSES), jnp.int32)
    t = result.residual + reconstruct(result.q, classes, codebook)
    return gather_statistics(t, result.q, classes, codebook.num_states, NUM_CLASSES)
