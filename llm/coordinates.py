r"""Coordinates of a whole network: changes of its inner spaces that change every weight and no logit.

With the norms folded (:mod:`occ_llm.folding`) the residual stream may be expressed in any orthonormal basis,
:math:`x' = T x`: layers that read it become :math:`W T^\top`, layers that write it :math:`T W`, embedding rows
:math:`T e`. Inside a block more may move (:class:`BlockCoordinates`), as no norm stands between: the values of each
key-value head by any invertible map, keys by what commutes with the position code and queries by its dual
:math:`T^{-\top}`, the products of the feed-forward layer by a factor for each unit, since ``up_proj`` enters them
linearly. The moved network is itself a network of the same shape, so none of this costs a byte in the file. Any other
rotation of what a layer reads (of the hidden units of the MLP, which pass through a nonlinearity; of the residual
stream, but for one layer alone) belongs to the coded matrix and is stored with it.

One thing does not move freely: a head that is tied to the embedding sees the final gain :math:`g`. In new
coordinates :math:`E \operatorname{diag}(g) = E' M` with the symmetric :math:`M = T \operatorname{diag}(g) T^\top`,
which becomes a tensor of the network, :data:`HEAD_MIX`, and is counted like any other.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from occ_jax._pytree import pytree_dataclass
from occ_jax.transforms import (
    DCT,
    BlockDiagonal,
    Identity,
    Transform,
    along_axis,
    blockwise,
    chain,
    dual,
    klt,
    random_hadamard,
    random_rotation,
)

from .config import ModelConfig
from .errors import OccError
from .roles import EMBEDDING, FINAL_NORM, HEAD, READS_RESIDUAL, WRITES_RESIDUAL, kind_of, layer_of
from .weights import DerivedWeights, Weights

CoordinateName = Literal["identity", "hadamard", "random", "klt", "klt-inputs", "dct", "learned"]

HEAD_MIX = "model.norm.mix"
"""The symmetric matrix :math:`T \\operatorname{diag}(g) T^\\top` between the final norm and a tied head."""


STORED: Mapping[str, str] = {
    "attention_in": "attention_inputs",
    "o_in": "o_inputs",
    "mlp_in": "mlp_inputs",
    "down_in": "hidden",
}
"""Inputs of a layer -> the field of :class:`BlockCoordinates` with the transform that is stored with its matrices."""


@pytree_dataclass
class BlockCoordinates:
    """Transforms of the inner spaces of one block.

    Attributes:
        values: of the values, one transform for each key-value head (:class:`~occ_jax.transforms.BlockDiagonal`), after
            that of :class:`Coordinates`; fused into ``v_proj`` and, as the dual, into ``o_proj``.
        keys: of the keys, likewise; rotations of planes and a factor for each plane, which commute with the position
            code. Fused into ``k_proj`` and, as the dual, into ``q_proj``.
        units: a positive factor for each unit, fused into ``up_proj`` and, as the dual, into ``down_proj``.
        attention_inputs, o_inputs, mlp_inputs: orthonormal transforms along the columns of the matrices that read these
            inputs (:data:`STORED`); every one of the matrices stores its own copy.
        hidden: the same for ``down_proj``, after that of :class:`Coordinates`.
    """

    values: Transform = Identity()
    keys: Transform = Identity()
    units: Transform = Identity()
    attention_inputs: Transform = Identity()
    o_inputs: Transform = Identity()
    mlp_inputs: Transform = Identity()
    hidden: Transform = Identity()


@pytree_dataclass
class Coordinates:
    """Transforms of the inner spaces of a network.

    Attributes:
        residual: orthonormal basis of the residual stream, fused into the network.
        values: basis of the values of every attention head, fused into ``v_proj`` and ``o_proj``.
        hidden: orthonormal transform along the columns of ``down_proj``; not fused, stored with the matrix.
        blocks: what each block has of its own; empty where none has anything.
    """

    residual: Transform
    values: Transform
    hidden: Transform
    blocks: tuple[BlockCoordinates, ...] = ()

    def block(self, layer: int) -> BlockCoordinates:
        """What one block has of its own."""
        return self.blocks[layer] if self.blocks else BlockCoordinates()

    def values_of(self, config: ModelConfig, layer: int, *, queries: bool = False) -> Transform:
        """Transform of all values of a block; with ``queries``, of what its query heads have gathered of them."""
        shared = Identity() if isinstance(self.values, Identity) else blockwise(self.values, config.head_dim)
        own = self.block(layer).values
        return chain(shared, _for_queries(config, own) if queries else own)

    def keys_of(self, config: ModelConfig, layer: int, *, queries: bool = False) -> Transform:
        """Transform of all keys of a block; with ``queries``, the one whose dual its queries go through.

        Raises:
            OccError: the keys are normalised after the projection, so that nothing there is free to move.
        """
        own = self.block(layer).keys
        if config.qk_norm and not isinstance(own, Identity):
            raise OccError(f"the queries and keys of a {config.family} model are normalised: their planes cannot move")
        return _for_queries(config, own) if queries else own

    def stored_of(self, layer: int, tap: str) -> Transform:
        """Transform of one kind of input of a layer that is stored with every matrix that reads it."""
        shared = self.hidden if tap == "down_in" else Identity()
        return chain(shared, getattr(self.block(layer), STORED[tap]))


def _for_queries(config: ModelConfig, transform: Transform) -> Transform:
    """The transform of key-value heads, once for each query head of their groups."""
    group = config.num_heads // config.num_kv_heads
    return transform.repeat(group) if isinstance(transform, BlockDiagonal) else transform


def choose_coordinates(
    name: CoordinateName | str, config: ModelConfig, *, key: jax.Array, second_moment: np.ndarray | None = None
) -> Coordinates:
    """Coordinates by name for a network of the given widths.

    Args:
        name: ``identity``, ``hadamard`` (random signs), ``random`` (Haar), ``dct``, or ``klt``: the eigenbasis of
            the residual stream's second moment. ``klt-inputs`` moves no inner space: each layer then has a basis of
            its own inputs, stored with its matrix (:mod:`occ_llm.compression.input_bases`). ``learned`` coordinates
            come from a file (:mod:`occ_llm.learning`).
        config: architecture.
        key: seed of the random signs and rotations.
        second_moment: ``d x d``, needed by ``klt`` alone.

    Raises:
        ValueError: unknown name, ``klt`` without its second moment, or ``learned``.
    """
    residual_key, values_key, hidden_key = jax.random.split(key, 3)
    match name:
        case "identity" | "klt-inputs":
            return Coordinates(Identity(), Identity(), Identity())
        case "hadamard":
            return Coordinates(
                random_hadamard(config.hidden_size, key=residual_key),
                random_hadamard(config.head_dim, key=values_key),
                random_hadamard(config.intermediate_size, key=hidden_key),
            )
        case "random":
            residual = random_rotation(config.hidden_size, key=residual_key)
            return Coordinates(residual, random_rotation(config.head_dim, key=values_key), Identity())
        case "dct":
            return Coordinates(DCT(), DCT(), DCT())
        case "klt":
            if second_moment is None:
                raise ValueError("klt coordinates need the second moment of the residual stream: calibrate first")
            return Coordinates(klt(second_moment), Identity(), Identity())
        case "learned":
            raise ValueError(
                "learned coordinates are read from a file that `occ learn` wrote: give it with --transforms"
            )
    raise ValueError(f"unknown coordinates {name!r}: choose one of {', '.join(get_args(CoordinateName))}")


def rotate(config: ModelConfig, weights: Weights, coordinates: Coordinates) -> Weights:
    """The same network in new coordinates of its inner spaces.

    Lazy. ``weights`` must have folded norms (:func:`occ_llm.folding.fold_norms`). With a tied head and a residual basis
    other than the identity, the final gain is replaced by :data:`HEAD_MIX`; :func:`dense_network` turns the
    result back into ordinary tensors.
    """
    mixes = config.tie_word_embeddings and not isinstance(coordinates.residual, Identity)
    rules: dict[str, Callable[[Weights], np.ndarray]] = {}
    for name in weights:
        steps = [step for step in moves(config, name, coordinates) if not isinstance(step, Identity)]
        if steps:
            rules[name] = _moved(name, steps)
    if mixes:
        rules[HEAD_MIX] = lambda source: head_mix(coordinates.residual, source[FINAL_NORM])
    return DerivedWeights(weights, rules, without=frozenset({FINAL_NORM}) if mixes else frozenset())


def head_mix(residual: Transform, gain: np.ndarray) -> np.ndarray:
    """The symmetric ``d x d`` matrix ``T diag(gain) T^T`` of a residual basis ``T`` and a final gain."""
    columns = residual.forward(jnp.diag(jnp.asarray(gain)))
    mix = along_axis(residual, 0).forward(columns)
    return np.asarray((mix + mix.T) / 2)


def dense_network(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    """Undo :data:`HEAD_MIX`: a network of ordinary tensors with a head of its own, ``lm_head = E' M``.

    Networks without a mix come back as they are.
    """
    if HEAD_MIX not in weights:
        return config, weights
    rules: dict[str, Callable[[Weights], np.ndarray]] = {
        HEAD: lambda source: source[EMBEDDING] @ source[HEAD_MIX],
        FINAL_NORM: lambda source: np.ones(config.hidden_size, source[HEAD_MIX].dtype),
    }
    return dataclasses.replace(config, tie_word_embeddings=False), DerivedWeights(
        weights, rules, without=frozenset({HEAD_MIX})
    )


def moves(config: ModelConfig, name: str, coordinates: Coordinates) -> tuple[Transform, Transform]:
    """Transforms of the last axis and of the first that bring one tensor into the new coordinates.

    A vector (a bias) has its last axis only; what stays has the identity.
    """
    kind, identity = kind_of(name), Identity()
    if kind in ("norm", "bias"):
        owner = kind_of(name.removesuffix("bias") + "weight")
        return _output_space(config, owner, layer_of(name), coordinates), identity
    columns = dual(_input_space(config, name, coordinates))
    rows = _output_space(config, kind, layer_of(name), coordinates)
    return columns, rows if isinstance(rows, Identity) else along_axis(rows, 0)


def _input_space(config: ModelConfig, name: str, coordinates: Coordinates) -> Transform:
    """What the vectors go through that a matrix reads (for the embedding: its rows)."""
    kind, layer = kind_of(name), layer_of(name)
    if kind == "embedding" or kind in READS_RESIDUAL:
        return coordinates.residual
    assert layer is not None, name
    return coordinates.values_of(config, layer, queries=True) if kind == "o" else coordinates.block(layer).units


def _output_space(config: ModelConfig, kind: str, layer: int | None, coordinates: Coordinates) -> Transform:
    """What the outputs of a matrix go through."""
    if kind in WRITES_RESIDUAL:
        return coordinates.residual
    if layer is None:
        return Identity()
    match kind:
        case "v":
            return coordinates.values_of(config, layer)
        case "k":
            return coordinates.keys_of(config, layer)
        case "q":
            return dual(coordinates.keys_of(config, layer, queries=True))
        case "up":
            return coordinates.block(layer).units
    return Identity()


def _moved(name: str, steps: list[Transform]) -> Callable[[Weights], np.ndarray]:
    def rule(source: Weights) -> np.ndarray:
        return moved(source[name], *steps)

    return rule


def moved(array: Float[np.ndarray, "*batch n"], *steps: Transform) -> Float[np.ndarray, "*batch n"]:
    """Transforms one after the other along the last axis, on the host; compiled once for each shape."""
    for step in steps:
        array = np.asarray(_forward(step, jnp.asarray(array)))
    return array


@jax.jit
def _forward(transform: Transform, array: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    return transform.forward(array)
