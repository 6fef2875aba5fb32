"""Chunked attention against the definition, written out with NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from occ_llm.model import attention
from occ_llm.model.attention import cached_attention, causal_attention, softmax_product, visible, with_ones


def reference(q, k, v, window=None):
    batch, length, kv_heads, group, size = q.shape
    out = np.zeros_like(q)
    for b, h, g, t in np.ndindex(batch, kv_heads, group, length):
        first = 0 if window is None else max(0, t - window + 1)
        scores = k[b, first : t + 1, h] @ q[b, t, h, g] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[b, t, h, g] = weights @ v[b, first : t + 1, h] / weights.sum()
    return out


def random_heads(batch, length, kv_heads, group, size, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    q = scale * rng.standard_normal((batch, length, kv_heads, group, size))
    k, v = (rng.standard_normal((batch, length, kv_heads, size)) for _ in range(2))
    return q, k, v


def as_float32(*arrays):
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


@settings(max_examples=6, deadline=None)
@given(
    length=st.integers(1, 9),
    chunk=st.sampled_from([2, 3, 32]),
    window=st.none() | st.integers(1, 11),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
)
def test_any_chunk_and_window_agree_with_the_definition(length, chunk, window, kv_heads, group):
    heads = random_heads(2, length, kv_heads, group, 4, seed=length)
    traced = None if window is None else jnp.asarray(window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_CHUNK", chunk)
        got = causal_attention(*as_float32(*heads), window=traced)
        bounded = causal_attention(*as_float32(*heads), window=traced, reach=window)
    np.testing.assert_allclose(got, reference(*heads, window), atol=2e-6)
    np.testing.assert_allclose(bounded, got, atol=1e-6)


def test_several_real_chunks():
    heads = random_heads(1, 2 * attention.QUERY_CHUNK + 37, 1, 2, 8)
    np.testing.assert_allclose(causal_attention(*as_float32(*heads)), reference(*heads), atol=5e-6)


def test_a_reach_reads_no_key_that_is_out_of_it():
    q, k, v = random_heads(1, 3 * attention.QUERY_CHUNK, 1, 1, 4)
    k[:, : attention.QUERY_CHUNK], v[:, : attention.QUERY_CHUNK] = np.nan, np.nan
    got = causal_attention(*as_float32(q, k, v), window=jnp.asarray(5), reach=5)
    assert np.isfinite(got[:, 2 * attention.QUERY_CHUNK :]).all()


def test_the_accelerator_variant_computes_the_same():
    """The variant for accelerators is all heads of the CPU's under ``vmap``."""
    queries, keys, values = random_heads(3, 50, 1, 2, 4)
    past = attention._past(50, 2, jnp.float32)
    one = lambda q, k, v: attention._attend_one_head(q, k, with_ones(v), past=past, window=None, reach=None)  # noqa: E731
    arguments = as_float32(queries[:, :, 0] / 2, keys[:, :, 0].transpose(0, 2, 1), values[:, :, 0])
    expected = reference(queries, keys, values)[:, :, 0]
    np.testing.assert_allclose(jax.vmap(one)(*arguments), expected, atol=2e-6)


def test_large_scores_do_not_overflow():
    heads = random_heads(1, 9, 1, 1, 4, scale=1e4)
    got = causal_attention(*as_float32(*heads))
    np.testing.assert_allclose(got, reference(*heads), atol=1e-3)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_softmax_product_ignores_a_shift_and_masked_keys(shift):
    rng = np.random.default_rng(0)
    scores, values = rng.standard_normal((3, 5)), rng.standard_normal((5, 2))
    weights = np.exp(scores[:, :4]) / np.exp(scores[:, :4]).sum(-1, keepdims=True)
    masked = jnp.asarray(scores + shift, jnp.float32).at[:, 4].set(-jnp.inf)
    got = softmax_product(masked, with_ones(jnp.asarray(values, jnp.float32)))
    np.testing.assert_allclose(got, weights @ values[:4], atol=2e-3 if shift else 1e-6)


def test_visible_is_a_band_below_the_diagonal():
    seen = np.asarray(visible(jnp.arange(2, 6), jnp.arange(6), jnp.asarray(3)))
    expected = [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(seen, np.array(expected, bool))
    np.testing.assert_array_equal(visible(jnp.arange(4), jnp.arange(4), None), np.tri(4, dtype=bool))


@pytest.mark.parametrize("window", [None, 3])
def test_a_cache_gives_what_the_whole_text_gives(window):
    q, k, v = random_heads(2, 10, 2, 2, 4)
    traced = None if window is None else jnp.asarray(window)
    expected = reference(q, k, v, window)
    stale = np.full_like(k, 7.0)
    for t in range(10):
        cache = [np.where(np.arange(10)[None, :, None, None] <= t, a, stale) for a in (k, v)]
        got = cached_attention(*as_float32(q[:, t], *cache), jnp.asarray(t), window=traced)
        np.testing.assert_allclose(got, expected[:, t], atol=2e-6)


def test_gradients_agree_with_those_of_the_definition():
    q, k, v = as_float32(*random_heads(1, 12, 1, 2, 4))
    mask = np.tri(12, dtype=bool)[None, None, None]

    def plain(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bthgd,bshd->bhgts", q, k) / 2, -jnp.inf)
        return jnp.einsum("bhgts,bshd->bthgd", jax.nn.softmax(scores), v)

    probe = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_CHUNK", 5)
        got = jax.jit(jax.grad(lambda *a: jnp.vdot(probe, causal_attention(*a)), argnums=(0, 1, 2)))(q, k, v)
    expected = jax.jit(jax.grad(lambda *a: jnp.vdot(probe, plain(*a)), argnums=(0, 1, 2)))(q, k, v)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_lowers_everywhere(lowers_everywhere):
    lowers_everywhere(causal_attention, *as_float32(*random_heads(1, 300, 2, 2, 4)))
    q, k, v = as_float32(*random_heads(1, 10, 2, 2, 4))
    lowers_everywhere(cached_attention, q[:, 0], k, v, jnp.asarray(3))
