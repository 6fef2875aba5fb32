"""Learned transforms in a file, to be inspected and used again."""

import os
from collections.abc import Mapping
from typing import Any

from occ_jax.codec import decode_transform, encode_transform, open_container, write_container
from occ_jax.learned.orthogonal import materialize
from occ_jax.transforms import Transform

SAVED_MATRIX_BITS = 12
"""Resolution of saved rotations: a matrix that is fused into a network costs nothing there, so it may be fine here."""


def save_transforms(
    path: str | os.PathLike[str],
    transforms: Mapping[str, tuple[Transform, int]],
    *,
    matrix_bits: int = SAVED_MATRIX_BITS,
    about: Any = None,
) -> None:
    """Write transforms to one container file: all of it, or nothing.

    Dense parametrisations are stored as the rotation that they make, orthonormal again after rounding; butterflies,
    Kronecker products and scalings by their own parameters, rounded. What a reader gets is
    :func:`~occ_jax.codec.stored_transform` of it.

    Args:
        path: where to.
        transforms: by name, each with the length of the vectors that it takes.
        matrix_bits: resolution of matrices, in bits below their typical entry.
        about: any JSON value, the settings and results of the training for example.

    Example:
        >>> import tempfile
        >>> from occ_jax.learned import cayley
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_transforms(f"{folder}/t.safetensors", {"residual": (cayley(4), 4)})
        ...     list(load_transforms(f"{folder}/t.safetensors"))
        ['residual']
    """
    coded = {
        name: encode_transform(materialize(transform), size, matrix_bits=matrix_bits)
        for name, (transform, size) in transforms.items()
    }
    write_container(path, coded, model=about)


def load_transforms(path: str | os.PathLike[str]) -> dict[str, Transform]:
    """The transforms that :func:`save_transforms` wrote, by name.

    Raises:
        FormatError: the file is missing or damaged, or holds something else.
    """
    with open_container(path) as container:
        return {name: decode_transform(container[name]) for name in container}
