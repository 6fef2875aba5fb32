r"""Coordinates of a coded matrix: a transform of its columns and one of its rows, stored with it.

.. math::

    Y = L W R^\top, \qquad W = L^{-1} Y R^{-\top}

``left`` acts along the first axis (the outputs of a layer), ``right`` along the last (its inputs). A transform that is
fused into the network is not stored here; one that is stored here is counted.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from occ_jax.codec.errors import damaged, too_new
from occ_jax.codec.limits import leaves_axis
from occ_jax.codec.spec import CodedTransform, UnknownName, code_transform, from_spec
from occ_jax.entropy.varint import ByteReader
from occ_jax.transforms import Transform


def apply_axes(
    w: Float[Array, "rows cols"], left: Transform | None, right: Transform | None
) -> Float[Array, "rows cols"]:
    """Coefficients ``Y = L W R^T``.

    Example:
        >>> from occ_jax.transforms import hadamard
        >>> print(apply_axes(jnp.ones((2, 2)), hadamard(2), hadamard(2)).round(3) + 0.0)
        [[2. 0.]
         [0. 0.]]
    """
    w = w if right is None else right.forward(w)
    return w if left is None else left.forward(w.T).T


def undo_axes(
    y: Float[Array, "rows cols"], left: Transform | None, right: Transform | None
) -> Float[Array, "rows cols"]:
    """The matrix ``W`` of coefficients ``Y``: inverse of :func:`apply_axes`."""
    y = y if left is None else left.inverse(y.T).T
    return y if right is None else right.inverse(y)


Axis = Transform | CodedTransform | None
"""A transform along one axis of a matrix that is to be stored with it, coded already or not, or none."""


def write_axes(left: Axis, right: Axis, matrix_bits: int) -> tuple[dict[str, Any], bytes]:
    """Entries ``left`` and ``right`` of a codec spec, and the side information of both, left first."""
    fields, data = {}, b""
    for side, transform in (("left", left), ("right", right)):
        if transform is not None:
            known = isinstance(transform, CodedTransform)
            coded = transform if known else code_transform(transform, matrix_bits=matrix_bits)
            fields[side] = coded.spec
            if leaves_axis(fields[side]):
                raise ValueError(f"{side} acts along one axis of the matrix: it cannot hold along_axis")
            data += coded.data
    return fields, data


def read_axes(
    spec: Mapping[str, Any], data: bytes, shape: tuple[int, int], place: str
) -> tuple[Transform | None, Transform | None]:
    """The transforms that :func:`write_axes` wrote, for a matrix of this shape.

    Raises:
        FormatError: a name that this version does not know, or side information that does not fit.
    """
    reader = ByteReader(data, "transform")
    sides: list[Transform | None] = []
    try:
        for side, size in zip(("left", "right"), shape):
            transform = from_spec(spec[side], reader) if side in spec else None
            if transform is not None and (not isinstance(transform, Transform) or leaves_axis(spec[side])):
                raise reader.fail(f"{side} is not a transform of one axis")
            if transform is not None:
                # Traced only: tells whether the transform takes vectors of this length, at no cost.
                jax.eval_shape(transform.inverse, jax.ShapeDtypeStruct((1, size), jnp.float32))
            sides.append(transform)
        reader.finish()
    except UnknownName as error:
        raise too_new(place, f"transform {str(error)!r:.40}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(place, error) from error
    return sides[0], sides[1]
