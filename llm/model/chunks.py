"""Position-wise work in chunks of tokens, so that what a CPU computes stays in its cache."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

TOKEN_CHUNK = 256
"""Tokens handled at once on a CPU: enough for efficient products, few enough that a layer's output stays in cache."""


def map_tokens(f: Callable[..., Any], *arrays: Array) -> Any:
    """Return ``f(*arrays)`` for a function that treats every token alone.

    On a CPU the tokens go through ``f`` in chunks, which is a third faster for a feed-forward layer of 2048 tokens;
    elsewhere, and where there are few of them, all at once.

    Args:
        f: function of arrays ``... channels`` with a tree of such arrays as its result.
        arrays: each ``batch length channels``.

    Example:
        >>> map_tokens(lambda x: x.sum(-1, keepdims=True), jax.numpy.ones((2, 300, 4))).shape
        (2, 300, 1)
    """
    lead = arrays[0].shape[:-1]
    count = math.prod(lead)
    if count <= TOKEN_CHUNK:
        return f(*arrays)

    def in_chunks(*arrays: Array) -> Any:
        rows = tuple(array.reshape(count, -1) for array in arrays)
        out = jax.lax.map(lambda row: f(*row), rows, batch_size=TOKEN_CHUNK)
        return jax.tree.map(lambda y: y.reshape(*lead, -1), out)

    return jax.lax.platform_dependent(*arrays, cpu=in_chunks, default=f)
