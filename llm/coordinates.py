r"""Coordinates of a whole network: rotations of its inner spaces that change every weight and no logit.

With the norms folded (:mod:`occ_llm.folding`) the residual stream may be expressed in any orthonormal basis,
:math:`x' = T x`: layers that read it become :math:`W T^\top`, layers that write it :math:`T W`, embedding rows
:math:`T e`. The values of each head may be rotated between ``v_proj`` and ``o_proj``. The rotated network is itself a
network of the same shape, so these rotations cost no byte in the file. The hidden units of the MLP pass through a
nonlinearity, so a transform there belongs to the coded matrix and is stored with it.

One thing does not move freely: a head that is tied to the embedding sees the final gain :math:`g`. In new
coordinates :math:`E \operatorname{diag}(g) = E' M` with the symmetric :math:`M = T \operatorname{diag}(g) T^\top`,
which becomes a tensor of the network, :data:`HEAD_MIX`, and is counted like any other.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from occ_jax._pytree import pytree_dataclass
from occ_jax.transforms import DCT, Identity, Transform, along_axis, blockwise, klt, random_hadamard, random_rotation

from .config import ModelConfig
from .roles import EMBEDDING, FINAL_NORM, HEAD, READS_RESIDUAL, WRITES_RESIDUAL, kind_of
from .weights import DerivedWeights, Weights

CoordinateName = Literal["identity", "hadamard", "random", "klt", "klt-inputs", "dct"]

HEAD_MIX = "model.norm.mix"
"""The symmetric matrix :math:`T \\operatorname{diag}(g) T^\\top` between the final norm and a tied head."""


@pytree_dataclass
class Coordinates:
    """One orthonormal transform for each inner space of a network.

    Attributes:
        residual: basis of the residual stream, fused into the network.
        values: basis of the values of every attention head, fused into ``v_proj`` and ``o_proj``.
        hidden: transform along the columns of ``down_proj``; not fused, stored with the matrix.
    """

    residual: Transform
    values: Transform
    hidden: Transform


def choose_coordinates(
    name: CoordinateName | str, config: ModelConfig, *, key: jax.Array, second_moment: np.ndarray | None = None
) -> Coordinates:
    """Coordinates by name for a network of the given widths.

    Args:
        name: ``identity``, ``hadamard`` (random signs), ``random`` (Haar), ``dct``, or ``klt``: the eigenbasis of
            the residual stream's second moment. ``klt-inputs`` moves no inner space: each layer then has a basis of
            its own inputs, stored with its matrix (:mod:`occ_llm.compression.input_bases`).
        config: architecture.
        key: seed of the random signs and rotations.
        second_moment: ``d x d``, needed by ``klt`` alone.

    Raises:
        ValueError: unknown name, or ``klt`` without its second moment.
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
    raise ValueError(f"unknown coordinates {name!r}: choose one of {', '.join(get_args(CoordinateName))}")


def rotate(config: ModelConfig, weights: Weights, coordinates: Coordinates) -> Weights:
    """The same network in new coordinates of its residual stream and of the values of its heads.

    Lazy. ``weights`` must have folded norms (:func:`occ_llm.folding.fold_norms`). With a tied head and a residual basis
    other than the identity, the final gain is replaced by :data:`HEAD_MIX`; :func:`dense_network` turns the
    result back into ordinary tensors.
    """
    mixes = config.tie_word_embeddings and not isinstance(coordinates.residual, Identity)
    rules: dict[str, Callable[[Weights], np.ndarray]] = {}
    for name in weights:
        steps = _moves(config, name, coordinates)
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


def _moves(config: ModelConfig, name: str, coordinates: Coordinates) -> tuple[Transform, ...]:
    """Transforms of the last axis, then of the first, that bring one tensor into the new coordinates."""
    kind = kind_of(name)
    matrix = kind not in ("norm", "bias")
    owner = kind_of(name.removesuffix("bias") + "weight") if kind == "bias" else kind
    fixed = isinstance(coordinates.values, Identity)
    per_head = Identity() if fixed else blockwise(coordinates.values, config.head_dim)
    moves: list[Transform] = []
    if kind == "embedding" or kind in READS_RESIDUAL:
        moves.append(coordinates.residual)
    if kind == "o":
        moves.append(per_head)
    if owner in WRITES_RESIDUAL:
        moves.append(_rows(coordinates.residual) if matrix else coordinates.residual)
    if owner == "v":
        moves.append(_rows(per_head) if matrix else per_head)
    return tuple(move for move in moves if not isinstance(move, Identity))


def _rows(transform: Transform) -> Transform:
    return transform if isinstance(transform, Identity) else along_axis(transform, 0)


def _moved(name: str, moves: tuple[Transform, ...]) -> Callable[[Weights], np.ndarray]:
    def rule(source: Weights) -> np.ndarray:
        array = jnp.asarray(source[name])
        for move in moves:
            array = move.forward(array)
        return np.asarray(array)

    return rule
