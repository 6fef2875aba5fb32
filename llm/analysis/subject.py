r"""What is analysed: the matrices of a network with folded norms, and the coordinates of the spaces that they read.

A row of a matrix is a vector in the space of the layer's inputs. Coordinates are changed along that axis alone,
:math:`y = T w` for every row :math:`w`, in the same way for every kind of layer; the inputs then have the second
moment :math:`T H T^\top` and the operator stays what it was.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from occ_jax.learned import load_transforms
from occ_jax.transforms import DCT, KLT, Identity, Transform, blockwise, klt, random_hadamard, random_rotation

from ..calibration import Statistics, space_of
from ..calibration.statistics import hessian_name
from ..checkpoints import tensor_shapes
from ..compression.sensitivity import Sensitivity, sensitivity_of
from ..config import ModelConfig
from ..errors import OccError
from ..folding import fold_norms
from ..roles import INPUT_OF, LINEAR_KINDS, READS_RESIDUAL, kind_of, layer_of, linear_name
from ..scratch import scratch
from ..stored_coordinates import holds_transforms, load_coordinates
from ..weights import Weights

COORDINATES = ("identity", "hadamard", "random", "dct", "klt")
"""Coordinates that need no training: original, rotated (two), frequency, aligned."""

LEARNED = "learned"

SPACES = ("residual", "values", "hidden")
"""Names under which a file of learned transforms may hold the basis of a whole space."""


class Eigenbases:
    """KLTs of the inputs of all layers: made when asked for and kept on disk, as all of them together are large."""

    def __init__(self, folder: Path, statistics: Statistics):
        self._folder = folder
        self._statistics = statistics
        self._one_writes = threading.Lock()

    def of(self, name: str) -> KLT:
        """The eigenbasis of the second moment of what a linear layer reads."""
        file = self._folder / f"{inputs_of(name)}.npz"
        with self._one_writes:
            if not file.exists():
                transform = klt(np.asarray(self._statistics.hessian(name)))
                np.savez(file, basis=np.asarray(transform.basis), eigenvalues=np.asarray(transform.eigenvalues))
        with np.load(file) as kept:
            return KLT(jnp.asarray(kept["basis"]), jnp.asarray(kept["eigenvalues"]))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network and what calibration knows about it.

    Attributes:
        config: architecture.
        weights: tensors with folded norms, lazy.
        statistics: of the same network.
        layers: blocks that are looked at.
        bases: eigenbases of the inputs.
        learned: transforms by name of a matrix or of a space (:data:`SPACES`).
        key: seed of the random coordinates.
    """

    config: ModelConfig
    weights: Weights
    statistics: Statistics
    layers: tuple[int, ...]
    bases: Eigenbases
    learned: Mapping[str, Transform]
    key: jax.Array

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the linear layers' matrices, in the order of the network."""
        return tuple(linear_name(layer, kind) for layer in self.layers for kind in LINEAR_KINDS)

    @cached_property
    def shape(self) -> Callable[[str], tuple[int, ...]]:
        """Shape of a matrix, by its name."""
        return tensor_shapes(self.config).__getitem__

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """Coordinates that some matrix is looked at in."""
        has_learned = any(self.learned_transform(name) is not None for name in self.matrices)
        return (*COORDINATES, LEARNED) if has_learned else COORDINATES

    def sensitivity(self, name: str) -> Sensitivity:
        """What an error in a matrix costs, in original coordinates."""
        return sensitivity_of(name, self.statistics)

    def transform(self, name: str, coordinates: str) -> Transform | None:
        """The transform of a matrix's rows; None where nothing was learned for this matrix."""
        match coordinates:
            case "identity":
                return Identity()
            case "hadamard" | "random":
                return self._rotations[coordinates, _input_width(self.config, name)]
            case "dct":
                return DCT()
            case "klt":
                return self.bases.of(name)
            case "learned":
                return self.learned_transform(name)
        raise ValueError(f"unknown coordinates {coordinates!r}: choose one of {', '.join((*COORDINATES, LEARNED))}")

    def transforms(self, name: str) -> Iterator[tuple[str, Transform]]:
        """Coordinate systems of a matrix's rows, with the transforms that lead to them."""
        for coordinates in self.systems:
            if (transform := self.transform(name, coordinates)) is not None:
                yield coordinates, transform

    def learned_transform(self, name: str) -> Transform | None:
        """The learned transform of a matrix's inputs: its own, or that of the space that it reads."""
        return learned_for(self.config, self.learned, name)

    @cached_property
    def _rotations(self) -> dict[tuple[str, int], Transform]:
        """One rotation of each kind for every width, so that layers of one space share theirs."""
        made: dict[tuple[str, int], Transform] = {}
        for n in sorted(set(self.config.input_widths.values())):
            signs, haar = jax.random.split(jax.random.fold_in(self.key, n))
            made["hadamard", n] = random_hadamard(n, key=signs)
            made["random", n] = random_rotation(n, key=haar)
        return made


@contextmanager
def open_subject(
    config: ModelConfig,
    weights: Weights,
    statistics: Statistics,
    *,
    key: jax.Array,
    layers: Sequence[int] | None = None,
    learned: Mapping[str, Transform] | None = None,
) -> Iterator[Subject]:
    """A subject whose eigenbases lie in a temporary directory until the block ends.

    Args:
        config: architecture.
        weights: tensors as read from a checkpoint.
        statistics: of the folded network, with the output Fisher.
        key: seed of the random coordinates.
        layers: blocks to look at, all by default.
        learned: transforms by name.

    Raises:
        OccError: a layer that the model does not have, or learned transforms that fit no matrix.
    """
    chosen = chosen_layers(config, layers)
    check_learned(config, learned or {}, chosen)
    with scratch("analysis") as folder:
        subject = Subject(
            config=config,
            weights=fold_norms(config, weights),
            statistics=statistics,
            layers=chosen,
            bases=Eigenbases(Path(folder), statistics),
            learned=learned or {},
            key=key,
        )
        yield subject


def chosen_layers(config: ModelConfig, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Blocks in order, each once; all of them for None.

    Raises:
        OccError: no layer, or one that the model does not have.
    """
    chosen = tuple(range(config.num_layers)) if layers is None else tuple(sorted(set(layers)))
    if missing := [layer for layer in chosen if not 0 <= layer < config.num_layers]:
        raise OccError(f"there is no layer {missing[0]}: the model has layers 0 to {config.num_layers - 1}")
    if not chosen:
        raise OccError("--layers names no layer: leave it out to look at all of them")
    return chosen


def read_learned(path: Path, config: ModelConfig) -> dict[str, Transform]:
    """Transforms of the inputs of matrices, by name of a matrix or of a space.

    Args:
        path: a file of ``occ learn``, of which the sides that matrices read count, or of bare transforms.
        config: architecture.

    Raises:
        FormatError: the file is missing or damaged.
        OccError: it holds something else.
    """
    if not holds_transforms(path):
        return load_transforms(path)
    coordinates = load_coordinates(path, config)
    names = [linear_name(layer, kind) for layer in range(config.num_layers) for kind in LINEAR_KINDS]
    spaces = {name: space_of(config, inputs_of(name), coordinates) for name in names}
    return {name: transform for name, transform in spaces.items() if not isinstance(transform, Identity)}


def check_learned(config: ModelConfig, learned: Mapping[str, Transform], layers: Sequence[int]) -> None:
    """Refuse transforms that belong to another network, before long work.

    Raises:
        OccError: a name that is no matrix and no space, a wrong size, or nothing for the layers in question.
    """
    every = {linear_name(layer, kind) for layer in range(config.num_layers) for kind in LINEAR_KINDS}
    if unknown := sorted(set(learned) - every - set(SPACES)):
        raise OccError(
            f"the learned transform {unknown[0]!r} belongs to no matrix of this model: name transforms after a matrix "
            f"or after one of the spaces {', '.join(SPACES)}"
        )
    names = [linear_name(layer, kind) for layer in layers for kind in LINEAR_KINDS]
    found = {name: t for name in names if (t := learned_for(config, learned, name)) is not None}
    if learned and not found:
        raise OccError("the file of transforms holds nothing for the layers that were asked for")
    for name, transform in found.items():
        width = _input_width(config, name)
        if not transform.is_orthonormal:
            raise OccError(f"the learned transform of {name} is not orthonormal: errors cannot be compared in it")
        try:
            jax.eval_shape(transform.forward, jax.ShapeDtypeStruct((1, width), jnp.float32))
        except (TypeError, ValueError) as error:
            raise OccError(f"the learned transform of {name} does not fit its {width} inputs") from error


def learned_for(config: ModelConfig, learned: Mapping[str, Transform], name: str) -> Transform | None:
    """The learned transform of a matrix's inputs: its own, or that of the space that it reads, or None."""
    if name in learned:
        return learned[name]
    kind = kind_of(name)
    if kind in READS_RESIDUAL:
        return learned.get("residual")
    if kind == "down":
        return learned.get("hidden")
    values = learned.get("values")
    return None if values is None else blockwise(values, config.head_dim)


def _input_width(config: ModelConfig, name: str) -> int:
    return config.input_widths[INPUT_OF[kind_of(name)]]


def inputs_of(name: str) -> str:
    """Name of the second moment of what a linear layer reads.

    Example:
        >>> inputs_of("model.layers.2.self_attn.v_proj.weight")
        'model.layers.2.attention_in.hessian'
    """
    layer = layer_of(name)
    assert layer is not None, name
    return hessian_name(layer, INPUT_OF[kind_of(name)])


@jax.jit
def to_coordinates(transform: Transform, w: Float[jax.Array, "d_out d_in"]) -> Float[jax.Array, "d_out d_in"]:
    """Every row of a matrix in other coordinates; compiled once for each kind of transform and shape."""
    return transform.forward(w)


@jax.jit
def from_coordinates(transform: Transform, y: Float[jax.Array, "d_out d_in"]) -> Float[jax.Array, "d_out d_in"]:
    """The matrix of given coefficients; compiled once for each kind of transform and shape."""
    return transform.inverse(y)
