"""The network as it will be coded: norms folded, coordinates chosen, statistics in the same coordinates."""

import dataclasses
from collections import Counter
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Float32

from occ_jax._pytree import replace
from occ_jax.codec import CodedTransform, code_transform, stored_offset, stored_transform
from occ_jax.transforms import Identity, Transform

from ..calibration import Statistics, rotate_statistics, sandwich
from ..config import ModelConfig
from ..coordinates import HEAD_MIX, STORED, CoordinateName, Coordinates, choose_coordinates, moved, rotate
from ..folding import fold_norms, folded_gains
from ..roles import EMBEDDING, FINAL_NORM, HEAD, INPUT_OF, LINEAR_KINDS, is_linear, kind_of, layer_of
from ..stored_coordinates import load_coordinates
from ..weights import Weights
from .input_bases import BASIS_BITS, InputBases
from .sensitivity import Sensitivity, sensitivity_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """What the compressor works on.

    Attributes:
        config: architecture of the original.
        original: as read from a checkpoint, lazy.
        weights: folded and rotated, lazy.
        coordinates: the basis of every inner space.
        statistics: second moments and Fisher information in these coordinates.
        written: the same with the exact bases that are written; :attr:`coordinates` have what a decoder makes of them.
        input_bases: a basis of every layer's inputs that is stored with its matrix, or ``None``.
    """

    config: ModelConfig
    original: Weights
    weights: Weights
    coordinates: Coordinates
    statistics: Statistics
    written: Coordinates
    input_bases: InputBases | None = None

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices that are quantized: the linear layers, the embedding and a head of its own."""
        return tuple(n for n in self.weights if is_linear(n) or n in (EMBEDDING, HEAD))

    @cached_property
    def vectors(self) -> tuple[str, ...]:
        """Names of everything that stays in floats; gains that folding has made one are left out."""
        elsewhere = {*folded_gains(self.config), *self.matrices, HEAD_MIX}
        return tuple(n for n in self.weights if n not in elsewhere)

    @property
    def final_gain(self) -> Float[np.ndarray, " width"]:
        """Gain of the final norm in original coordinates."""
        return self.original[FINAL_NORM]

    @property
    def mixes_head(self) -> bool:
        """Whether the final gain acts in other coordinates than it is stored in: the basis is stored beside it."""
        return HEAD_MIX in self.weights

    def stored_transform(self, name: str) -> Transform:
        """Transform along a matrix's columns that is stored with it, as a decoder has it; mostly the identity."""
        if self.input_bases is not None and is_linear(name):
            return self.input_bases.decoded(name)
        return _stored_of(self.coordinates, name)

    def coded_transform(self, name: str) -> CodedTransform | None:
        """What to write so that a decoder has :meth:`stored_transform`; nothing for the identity."""
        if self.input_bases is not None and is_linear(name):
            return self.input_bases.coded(name)
        written = _stored_of(self.written, name)
        return None if isinstance(written, Identity) else code_transform(written, matrix_bits=BASIS_BITS)

    def transform_bits(self, name: str) -> int:
        """Bits that a matrix's stored transform takes in the file."""
        coded = self.coded_transform(name)
        return 0 if coded is None else 8 * len(coded.data)

    def coefficients(self, name: str) -> Float[np.ndarray, "d_out d_in"]:
        """The matrix in the coordinates in which it is quantized, less its offset."""
        offset = self.offset(name)
        return self._moved(name) if offset is None else self._moved(name) - offset

    def offset(self, name: str) -> Float32[np.ndarray, " d_in"] | None:
        """What is stored beside an embedding or a head: the mean of its rows, as a decoder has it.

        Nearly half of the energy of an embedding can be in it, two bytes for each column. Linear layers have none to
        speak of.
        """
        return None if is_linear(name) else self._offsets[name]

    @cached_property
    def _offsets(self) -> dict[str, Float32[np.ndarray, " d_in"]]:
        outer = [name for name in self.matrices if not is_linear(name)]
        return {name: stored_offset(self._moved(name).mean(0, dtype=np.float64)) for name in outer}

    def _moved(self, name: str) -> Float[np.ndarray, "d_out d_in"]:
        transform = self.stored_transform(name)
        return self.weights[name] if isinstance(transform, Identity) else moved(self.weights[name], transform)

    def sensitivity(self, name: str) -> Sensitivity:
        """What an error in the coefficients costs."""
        sensitivity = sensitivity_of(name, self.statistics)
        return dataclasses.replace(sensitivity, hessian=self._stored(name, sensitivity.hessian))

    def input_moment(self, name: str) -> Float[np.ndarray, "d_in d_in"]:
        """Second moment of what a linear layer reads, every token alike."""
        return self._stored(name, self.statistics.hessian(name))

    def _stored(self, name: str, moment: Float[np.ndarray, "d_in d_in"]) -> Float[np.ndarray, "d_in d_in"]:
        """A moment of a matrix's inputs where they go through a basis that is stored with it."""
        if self.input_bases is None or not is_linear(name):
            return moment
        return sandwich(self.stored_transform(name), moment)

    def same_shape(self) -> dict[str, list[str]]:
        """Matrices by kind: all of one kind have one shape."""
        groups: dict[str, list[str]] = {kind: [] for kind in (*LINEAR_KINDS, "embedding", "head")}
        for name in self.matrices:
            groups[kind_of(name)].append(name)
        return {kind: names for kind, names in groups.items() if names}

    def by_block(self) -> dict[str, list[str]]:
        """Matrices that are coded together: those of one block; embedding and head by themselves."""
        groups: dict[str, list[str]] = {}
        for name in self.matrices:
            layer = layer_of(name)
            groups.setdefault(name if layer is None else f"block {layer}", []).append(name)
        return groups


def prepare_network(
    config: ModelConfig,
    weights: Weights,
    statistics: Statistics,
    *,
    coordinates: CoordinateName = "identity",
    transforms: Path | None = None,
    seed: int = 0,
) -> Network:
    """Fold the norms and choose the coordinates. Lazy, but for the eigenbasis of ``klt``.

    Args:
        config: architecture.
        weights: as read from a checkpoint.
        statistics: of the folded network in original coordinates.
        coordinates: their name.
        transforms: file of ``learned`` ones.
        seed: of random ones.
    """
    chosen = _chosen(config, statistics, coordinates, transforms, seed)
    decoded = as_decoded(chosen)
    return Network(
        config=config,
        original=weights,
        weights=rotate(config, fold_norms(config, weights), decoded),
        coordinates=decoded,
        statistics=rotate_statistics(statistics, decoded),
        written=chosen,
        input_bases=InputBases(statistics) if coordinates == "klt-inputs" else None,
    )


def _stored_of(coordinates: Coordinates, name: str) -> Transform:
    layer = layer_of(name)
    return Identity() if layer is None else coordinates.stored_of(layer, INPUT_OF[kind_of(name)])


def written_bits(written: Transform) -> int:
    """Bits that a transform takes in the file."""
    return 8 * len(code_transform(written, matrix_bits=BASIS_BITS).data)


def stored_bits(config: ModelConfig, coordinates: Coordinates) -> int:
    """Bits that all transforms take that are stored with linear layers."""
    readers = Counter(INPUT_OF.values())
    layers = range(config.num_layers)
    return sum(n * written_bits(coordinates.stored_of(i, tap)) for i in layers for tap, n in readers.items())


def as_decoded(coordinates: Coordinates) -> Coordinates:
    """What a decoder will have: a stored matrix is rounded, and the network is moved by the rounded one."""
    return replace(
        coordinates,
        residual=stored_transform(coordinates.residual, matrix_bits=BASIS_BITS),
        blocks=tuple(
            replace(block, **{f: stored_transform(getattr(block, f), matrix_bits=BASIS_BITS) for f in STORED.values()})
            for block in coordinates.blocks
        ),
    )


def _chosen(
    config: ModelConfig, statistics: Statistics, name: CoordinateName, transforms: Path | None, seed: int
) -> Coordinates:
    if transforms is not None:
        return load_coordinates(transforms, config, model_digest=statistics.fingerprint.model)
    moment = statistics.residual_moment() if name == "klt" else None
    return choose_coordinates(name, config, key=jax.random.key(seed), second_moment=moment)
