"""The statistics of a network in other coordinates: which space each of them is of, and how it moves there."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from occ_jax.transforms import Identity, Transform, along_axis, chain, dual, forward_rows

from ..config import ModelConfig
from ..coordinates import Coordinates
from ..roles import INPUTS, kind_of, layer_of
from ..weights import DerivedWeights, Weights
from .statistics import Statistics


def rotate_statistics(statistics: Statistics, coordinates: Coordinates) -> Statistics:
    r"""The statistics of the same network in other coordinates, as calibrating it there would give them.

    Where the inputs of a layer go through :math:`T`, their second moment becomes :math:`T H T^\top`; where its outputs
    do, their gradients go through the dual :math:`T^{-\top}` and so does their Fisher matrix, on both sides. Tokens
    keep their weights, which are nearly the same in a basis in which values are turned. Lazy: nothing is read here. A
    transform that is stored with a matrix is not fused into a network (:class:`~occ_llm.coordinates.Coordinates`), but
    the inputs that the matrix reads are moved by it, too.

    Args:
        statistics: in original coordinates.
        coordinates: the transform of every space.

    Raises:
        ValueError: the transform of the residual stream, or one that is stored with a matrix, is not orthonormal.
    """
    layers = range(max(1, len(coordinates.blocks)))
    stored = chain(*(coordinates.stored_of(layer, tap) for layer in layers for tap in INPUTS))
    for name, transform in (("the residual stream", coordinates.residual), ("the inputs of a matrix", stored)):
        if not transform.is_orthonormal:
            raise ValueError(f"the transform of {name} is not orthonormal: it has to be a rotation")
    rules: dict[str, Callable[[Weights], np.ndarray]] = {}
    for name in statistics.tensors:
        transform = space_of(statistics.config, name, coordinates)
        if not isinstance(transform, Identity):
            rules[name] = _moved(name, transform)
    return dataclasses.replace(statistics, tensors=DerivedWeights(statistics.tensors, rules))


def space_of(config: ModelConfig, name: str, coordinates: Coordinates) -> Transform:
    """Transform of the vectors whose second moment a statistic is: inputs of layers, or gradients of their outputs."""
    stem, _, quantity = name.rpartition(".")
    layer = layer_of(name)
    if quantity in ("hessian", "weighted"):
        return _input_space(config, layer, stem.rpartition(".")[2], coordinates)
    if quantity != "fisher" or (kind := kind_of(stem + ".weight")) == "head":
        return Identity()
    if kind in ("embedding", "o", "down"):
        return coordinates.residual
    assert layer is not None, name
    match kind:
        case "v":
            return dual(coordinates.values_of(config, layer))
        case "k":
            return dual(coordinates.keys_of(config, layer))
        case "q":
            return coordinates.keys_of(config, layer, queries=True)
        case "up":
            return dual(coordinates.block(layer).units)
    return Identity()


def _input_space(config: ModelConfig, layer: int | None, tap: str, coordinates: Coordinates) -> Transform:
    if layer is None:
        return coordinates.residual
    stored = coordinates.stored_of(layer, tap)
    match tap:
        case "o_in":
            return chain(coordinates.values_of(config, layer, queries=True), stored)
        case "down_in":
            return chain(coordinates.block(layer).units, stored)
    return chain(coordinates.residual, stored)


def conjugate(transform: Transform, moment: Float[Array, "d d"]) -> Float[Array, "d d"]:
    r""":math:`T M T^\top` of a symmetric matrix, symmetric to the last bit; differentiable."""
    moved = along_axis(transform, 0).forward(transform.forward(moment))
    return (moved + moved.T) / 2


def sandwich(transform: Transform, matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """:func:`conjugate` on the host, compiled once for each shape."""
    return np.asarray(_conjugate(transform, jnp.asarray(matrix)))


_conjugate = jax.jit(conjugate)


def moved_diagonal(
    transform: Transform, moment: Float[Array, "d *columns"], entries: Int[Array, " k"] | None = None
) -> Float[Array, " n"]:
    r"""Diagonal of :math:`T M T^\top`, of a matrix or of the diagonal of one; differentiable.

    Of a diagonal, ``T`` must be diagonal itself. With ``entries``, some entries of that diagonal.
    """
    if moment.ndim == 1:
        moved = jnp.square(transform.forward(jnp.ones_like(moment))) * moment
        return moved if entries is None else moved[entries]
    basis = forward_rows(transform, jnp.eye(moment.shape[0], dtype=moment.dtype), entries)
    return jnp.sum(forward_rows(transform, moment, entries) * basis, axis=1)


def _moved(name: str, transform: Transform) -> Callable[[Weights], np.ndarray]:
    return lambda source: _move(transform, source[name])


def _move(transform: Transform, moment: Float[np.ndarray, "d *columns"]) -> Float[np.ndarray, "d *columns"]:
    if moment.ndim == 2:
        return sandwich(transform, moment)
    return np.asarray(moved_diagonal(transform, jnp.asarray(moment)))
