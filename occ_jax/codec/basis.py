"""The codec of a transform that belongs to no single matrix: a basis that the model itself needs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from occ_jax.codec.errors import FormatError, damaged, too_new
from occ_jax.codec.spec import DEFAULT_MATRIX_BITS, UnknownName, code_transform, from_spec
from occ_jax.codec.tensor import CodedTensor, shorten
from occ_jax.entropy.varint import ByteReader
from occ_jax.transforms import Transform

SECTIONS = ("transforms",)
"""Sections of this codec, in file order."""


def encode_transform(transform: Transform, size: int, *, matrix_bits: int = DEFAULT_MATRIX_BITS) -> CodedTensor:
    """Store a transform of vectors of length ``size``.

    Args:
        transform: what to store; a reader gets :func:`~occ_jax.codec.spec.stored_transform` of it.
        size: length of the vectors that it takes.
        matrix_bits: resolution of matrices.

    Example:
        >>> from occ_jax.transforms import hadamard
        >>> decode_transform(encode_transform(hadamard(4), 4)).forward(jnp.ones(4)).tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    coded = code_transform(transform, matrix_bits=matrix_bits)
    spec = {"codec": "transform", "transform": coded.spec}
    return CodedTensor(spec=spec, shape=(size,), sections={"transforms": coded.data})


def check_transform(spec: Mapping[str, Any], shape: tuple[int, ...], sizes: Mapping[str, int], place: str) -> None:
    """Refuse a stored transform without a spec, or of anything but vectors."""
    if not isinstance(spec.get("transform"), Mapping) or len(shape) != 1:
        raise damaged(place, f"it stores the transform {shorten(spec.get('transform'))} of shape {shorten(shape)}")


def decode_transform(coded: CodedTensor) -> Transform:
    """The transform that :func:`encode_transform` stored.

    Raises:
        FormatError: it is damaged, takes vectors of another length, needs a newer version, or is no transform.
    """
    if coded.spec.get("codec") != "transform":
        raise FormatError(f"{coded.place} is no transform: decode it as a tensor.")
    reader = ByteReader(coded.sections["transforms"], "transform")
    try:
        transform = from_spec(coded.spec["transform"], reader)
        reader.finish()
        if not isinstance(transform, Transform):
            raise reader.fail("a quantizer")
        jax.eval_shape(transform.inverse, jax.ShapeDtypeStruct((1, *coded.shape), jnp.float32))
    except UnknownName as error:
        raise too_new(coded.place, f"transform {str(error)!r:.40}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(coded.place, error) from error
    return transform
