"""The network as it will be coded: norms folded, coordinates chosen, statistics in the same coordinates."""

import dataclasses
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Float

from occ_jax._pytree import replace
from occ_jax.codec import stored_transform
from occ_jax.transforms import Identity, Transform

from ..calibration import Statistics, rotate_statistics
from ..config import ModelConfig
from ..coordinates import HEAD_MIX, Coordinates, choose_coordinates, rotate
from ..folding import fold_norms, folded_gains
from ..roles import EMBEDDING, FINAL_NORM, HEAD, LINEAR_KINDS, is_linear, kind_of
from ..weights import Weights
from .sensitivity import Sensitivity, sensitivity_of
from .settings import Settings

BASIS_BITS = 3
"""Resolution of a stored basis: a coarser matrix is another rotation nearby, and a smaller file."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """What the compressor works on.

    Attributes:
        config: architecture of the original.
        original: as read from a checkpoint, lazy.
        weights: folded and rotated, lazy.
        coordinates: the basis of every inner space.
        statistics: second moments and Fisher information in these coordinates.
    """

    config: ModelConfig
    original: Weights
    weights: Weights
    coordinates: Coordinates
    statistics: Statistics

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
        """Transform along a matrix's columns that is stored with it; the identity for all but ``down_proj``."""
        return self.coordinates.hidden if kind_of(name) == "down" else Identity()

    def coefficients(self, name: str) -> Float[np.ndarray, "d_out d_in"]:
        """The matrix in the coordinates in which it is quantized."""
        w = self.weights[name]
        transform = self.stored_transform(name)
        return w if isinstance(transform, Identity) else np.asarray(transform.forward(jax.numpy.asarray(w)))

    def sensitivity(self, name: str) -> Sensitivity:
        """What an error in the coefficients costs."""
        return sensitivity_of(name, self.statistics)

    def same_shape(self) -> dict[str, list[str]]:
        """Matrices by kind: all of one kind have one shape."""
        groups: dict[str, list[str]] = {kind: [] for kind in (*LINEAR_KINDS, "embedding", "head")}
        for name in self.matrices:
            groups[kind_of(name)].append(name)
        return {kind: names for kind, names in groups.items() if names}


def prepare_network(config: ModelConfig, weights: Weights, statistics: Statistics, settings: Settings) -> Network:
    """Fold the norms and choose the coordinates. Lazy, but for the eigenbasis of ``klt``.

    Args:
        config: architecture.
        weights: as read from a checkpoint.
        statistics: of the folded network in original coordinates.
        settings: name of the coordinates, and the seed of random ones.
    """
    moment = statistics.residual_moment() if settings.coordinates == "klt" else None
    key = jax.random.key(settings.seed)
    coordinates = choose_coordinates(settings.coordinates, config, key=key, second_moment=moment)
    # The basis that a decoder will have: a stored matrix is rounded, and the network is rotated by the rounded one.
    residual = stored_transform(coordinates.residual, matrix_bits=BASIS_BITS)
    coordinates = replace(coordinates, residual=residual)
    return Network(
        config=config,
        original=weights,
        weights=rotate(config, fold_norms(config, weights), coordinates),
        coordinates=coordinates,
        statistics=rotate_statistics(statistics, coordinates),
    )
