"""Rotations with few parameters, to be stored with the matrices whose columns they turn."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from occ_jax.learned import Cayley, cayley
from occ_jax.transforms import Butterfly, Kronecker, Rotation, Transform, butterfly, kronecker

Structure = Literal["butterfly", "kronecker"]
"""Layers of plane rotations, or two dense rotations of a vector that is read as a matrix."""

Structured = Butterfly | Kronecker

SWEEPS = 1
"""Of a butterfly."""


def structured(structure: Structure, n: int) -> Structured:
    """A rotation of vectors of length ``n`` at the identity, to be trained.

    Args:
        structure: of the rotation.
        n: length; a prime has no Kronecker product but the dense rotation.

    Example:
        >>> structured("kronecker", 12).sizes
        (3, 4)
    """
    if structure == "butterfly":
        return butterfly(n, sweeps=SWEEPS)
    sizes = _factors(n)
    return kronecker([cayley(size) for size in sizes], sizes)


def trained_from(stack: Structured) -> Structured:
    """What begins where a stack of structured rotations is, as they come from a file."""
    if isinstance(stack, Butterfly):
        return stack
    return Kronecker(tuple(_restarted(factor) for factor in stack.transforms), stack.sizes)


def _restarted(stack: Transform) -> Cayley:
    assert isinstance(stack, Rotation), stack
    return jax.vmap(Cayley)(jnp.zeros_like(stack.matrix), stack.matrix)


def _factors(n: int) -> tuple[int, int]:
    """The two factors of ``n`` that are nearest to each other."""
    small = next(size for size in range(math.isqrt(n), 0, -1) if n % size == 0)
    return small, n // small
