r"""Causal attention, exact, in chunks of queries that never look at the future half.

.. math::

    o_t = \sum_{s \le t} \frac{\exp(q_t \cdot k_s / \sqrt{d})}{\sum_{r \le t} \exp(q_t \cdot k_r / \sqrt{d})} v_s

Heads of one group share keys and values (grouped-query attention), so a group's queries form one tall matrix and each
chunk is two plain matrix products. Only one chunk's scores exist at a time: memory is linear in the length.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

QUERY_CHUNK = 128
"""Queries handled at once: small enough that scores stay in cache, large enough for efficient products."""


def causal_attention(
    q: Float[Array, "batch length kv_heads group head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    *,
    window: Int[Array, ""] | None = None,
    reach: int | None = None,
) -> Float[Array, "batch length kv_heads group head_dim"]:
    """Attention of every token to itself and to the tokens before it.

    On a CPU one head after the other, with all cores on each product and the scores in cache; elsewhere all heads
    together.

    Args:
        q: queries, after the rotation.
        k: keys, after the rotation.
        v: values.
        window: a token sees itself and the ``window - 1`` tokens before it; ``None`` = all of them.
        reach: static upper bound of ``window``: keys out of reach of a whole chunk are not even read.
    """
    batch, length, kv_heads, group, head_dim = q.shape
    heads = batch * kv_heads
    queries = (q * head_dim**-0.5).transpose(0, 2, 1, 3, 4).reshape(heads, length, group, head_dim)
    keys = k.transpose(0, 2, 3, 1).reshape(heads, head_dim, length)
    values = with_ones(v.transpose(0, 2, 1, 3).reshape(heads, length, head_dim))
    past = _past(length, group, q.dtype) if window is None else None
    one_head = partial(_attend_one_head, past=past, window=window, reach=reach)

    def one_by_one(queries: Array, keys: Array, values: Array) -> Array:
        # A backward pass computes the scores of a head again: that is faster than to fetch them from memory.
        return jax.lax.map(jax.checkpoint(lambda head: one_head(*head)), (queries, keys, values))

    out = jax.lax.platform_dependent(queries, keys, values, cpu=one_by_one, default=jax.vmap(one_head))
    return out.reshape(batch, kv_heads, length, group, head_dim).transpose(0, 2, 1, 3, 4)


def _past(length: int, group: int, dtype: Any) -> Float[Array, "queries positions"]:
    """What a chunk's scores get: nothing for keys up to the query, minus infinity after it.

    The first ``length`` columns are positions before the chunk. One array serves all chunks and heads: to add a part of
    it is faster than to compare positions for every score.
    """
    query = jnp.arange(min(QUERY_CHUNK, length) * group) // group
    return jnp.where(jnp.arange(-length, query.size // group)[None, :] <= query[:, None], 0.0, -jnp.inf).astype(dtype)


def _attend_one_head(
    queries: Float[Array, "length group head_dim"],
    keys: Float[Array, "head_dim length"],
    values: Float[Array, "length columns"],
    *,
    past: Float[Array, "queries positions"] | None,
    window: Int[Array, ""] | None,
    reach: int | None,
) -> Float[Array, "length group head_dim"]:
    length, group, head_dim = queries.shape
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, length)
        first = 0 if reach is None else max(0, start - reach + 1)
        scores = queries[start:stop].reshape(-1, head_dim) @ keys[:, first:stop]
        if past is None:
            position = start + jnp.arange(scores.shape[0]) // group
            scores = jnp.where(visible(position, jnp.arange(first, stop), window), scores, -jnp.inf)
        else:
            scores = scores + past[: scores.shape[0], length + first - start : length + stop - start]
        chunks.append(softmax_product(scores, values[first:stop]).reshape(-1, group, head_dim))
    return jnp.concatenate(chunks)


def visible(
    query_position: Int[Array, " queries"], key_position: Int[Array, " keys"], window: Int[Array, ""] | None
) -> Bool[Array, "queries keys"]:
    """Which keys a query may look at."""
    distance = query_position[:, None] - key_position.astype(query_position.dtype)[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window.astype(distance.dtype))


def with_ones(values: Float[Array, "*batch keys head_dim"]) -> Float[Array, "*batch keys columns"]:
    """Values with a last column of ones, as :func:`softmax_product` takes them."""
    return jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)


def softmax_product(
    scores: Float[Array, "queries keys"], values: Float[Array, "keys columns"]
) -> Float[Array, "queries head_dim"]:
    """``softmax(scores) @ values[:, :-1]`` with the division after the product, where there is less to divide.

    The last column of ``values`` holds ones: the sum of the weights comes out of the same product.
    """
    wide = np.promote_types(scores.dtype, np.float32)
    weights = jnp.exp((scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))).astype(wide))
    out = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=wide)
    return (out[:, :-1] / out[:, -1:]).astype(values.dtype)


def cached_attention(
    q: Float[Array, "batch kv_heads group head_dim"],
    k: Float[Array, "batch capacity kv_heads head_dim"],
    v: Float[Array, "batch capacity kv_heads head_dim"],
    position: Int[Array, ""],
    *,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "batch kv_heads group head_dim"]:
    """Attention of one new token at ``position`` to the keys and values of a cache, its own included.

    Entries of the cache after ``position`` are not looked at, whatever they hold.
    """
    seen = visible(position[None], jnp.arange(k.shape[1]), window)

    def one_head(q: Array, k: Array, v: Array) -> Array:
        return softmax_product(jnp.where(seen, (q * q.shape[-1] ** -0.5) @ k.T, -jnp.inf), with_ones(v))

    over_heads = jax.vmap(one_head, in_axes=(0, 1, 1))
    return jax.vmap(over_heads)(q, k, v)
