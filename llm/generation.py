"""Text from a model, token by token, with a cache of keys and values.

The prompt goes through the network once and fills the cache; then every step computes one token. Both are compiled once
for a capacity: prompts are padded to a multiple of 64 tokens and the padding is overwritten before anything sees it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from .errors import OccError
from .model import LanguageModel, Llama, layer_windows, logits
from .model.attention import cached_attention, causal_attention
from .model.forward_pass import merge_block
from .model.llama import Params
from .model.rope import rope_table

_PADDING = 64

Cache = dict[str, Array]
"""``k`` and ``v``, each ``layers batch capacity kv_heads head_dim``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: keep the likeliest tokens that together have at least this probability, drop the rest; 1 keeps all.

    References:
        Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751 (nucleus sampling).
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise OccError(f"temperature = {self.temperature}; it must be 0 (the likeliest token) or positive.")
        if not 0 < self.top_p <= 1:
            raise OccError(f"top_p = {self.top_p}; it must be above 0 and at most 1.")


def generate(
    model: LanguageModel,
    prompt: Int[np.ndarray, " length"] | list[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    key: Array | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, as they are chosen; ends after an end-of-text token of the model.

    Args:
        model: the model.
        prompt: at least one token.
        max_new_tokens: stop after so many.
        sampling: how to choose; the likeliest token by default.
        key: randomness, needed where ``sampling.temperature`` is above 0.

    Raises:
        OccError: if the prompt is empty, does not fit the model, or a key is missing.
    """
    sampling = Sampling() if sampling is None else sampling
    prompt = np.asarray(prompt, np.int32)
    _check(model, prompt, max_new_tokens, sampling, key)
    key = jax.random.key(0) if key is None else key
    return _generate(model, prompt, max_new_tokens, sampling, key)


def spoken(tokenizer: Tokenizer, prompt: list[int], tokens: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield every token with the text that it adds: nothing, while a character is not complete.

    Args:
        tokenizer: of the model.
        prompt: what they follow. At the beginning of a text some decoders drop a space, so all are decoded together.
        tokens: by :func:`generate`.
    """
    seen, said = list(prompt), tokenizer.decode(prompt)
    for token in tokens:
        seen.append(token)
        longer = tokenizer.decode(seen)
        piece = "" if longer.endswith("\ufffd") else longer[len(said) :]
        said += piece
        yield token, piece


def _generate(
    model: LanguageModel, prompt: np.ndarray, max_new_tokens: int, sampling: Sampling, key: Array
) -> Iterator[int]:
    length = len(prompt)
    padded = np.pad(prompt, (0, -length % _PADDING))
    capacity = len(padded) + max_new_tokens + (-max_new_tokens % _PADDING)
    choose = partial(choose_token, sampling=sampling)
    cache, scores = prefill(
        model.graphdef, model.params, jnp.asarray(padded[None]), jnp.asarray(length, jnp.int32), capacity=capacity
    )
    for position in range(length, length + max_new_tokens):
        token = int(choose(scores[0], key=jax.random.fold_in(key, position)))
        yield token
        if token in model.config.eos_token_ids or position == length + max_new_tokens - 1:
            return
        following = jnp.full((1,), token, jnp.int32)
        cache, scores = decode_step(model.graphdef, model.params, cache, following, jnp.asarray(position, jnp.int32))


@partial(jax.jit, static_argnums=0, static_argnames="capacity")
def prefill(
    graphdef: nnx.GraphDef[Llama],
    params: Params,
    tokens: Int[Array, "batch padded"],
    length: Int[Array, ""],
    *,
    capacity: int,
) -> tuple[Cache, Float[Array, "batch vocab"]]:
    """Run the prompt through the network.

    Args:
        graphdef: static half of the network.
        params: its arrays.
        tokens: prompts of one length, padded at the end with anything.
        length: number of tokens that are prompt.
        capacity: how many tokens the cache can hold in all.

    Returns:
        The filled cache, and the logits of the token after the prompt.
    """
    model = nnx.merge(graphdef, params)
    config = model.config
    x = params["embedding"][tokens]
    table = rope_table(config, jnp.arange(tokens.shape[1]), length=capacity, dtype=x.dtype)
    windows = layer_windows(config, tokens.shape[1])

    def step(x: Array, layer: tuple) -> tuple[Array, Cache]:
        layer_params, window = layer

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            room = ((0, 0), (0, capacity - tokens.shape[1]), (0, 0), (0, 0))
            return causal_attention(q, k, v, window=window), {"k": jnp.pad(k, room), "v": jnp.pad(v, room)}

        x, kept, _ = merge_block(config, layer_params)(x, table, attend)
        return x, kept

    with jax.default_matmul_precision("highest"):
        x, cache = jax.lax.scan(step, x, (params["blocks"], windows))
    last = jax.lax.dynamic_index_in_dim(x, length - 1, axis=1, keepdims=False)
    return cache, logits(params, model.norm(last))


@partial(jax.jit, static_argnums=0, donate_argnames="cache")
def decode_step(
    graphdef: nnx.GraphDef[Llama],
    params: Params,
    cache: Cache,
    tokens: Int[Array, " batch"],
    position: Int[Array, ""],
) -> tuple[Cache, Float[Array, "batch vocab"]]:
    """Run one more token of every row through the network.

    The cache is donated: it is updated in place and the argument must not be used again.

    Args:
        graphdef: static half of the network.
        params: its arrays.
        cache: of :func:`prefill` or of the step before.
        tokens: the tokens.
        position: their position.

    Returns:
        The cache with these tokens, and the logits of the token after them.
    """
    model = nnx.merge(graphdef, params)
    config, capacity = model.config, cache["k"].shape[2]
    x = params["embedding"][tokens][:, None]
    table = rope_table(config, position[None], length=capacity, dtype=x.dtype)
    windows = layer_windows(config, capacity)

    def step(carry: tuple[Array, Cache], layer: tuple) -> tuple[tuple[Array, Cache], None]:
        x, cache = carry
        layer_params, window, number = layer

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            start = (number, jnp.zeros_like(number), position, jnp.zeros_like(number), jnp.zeros_like(number))
            whole = {n: jax.lax.dynamic_update_slice(cache[n], new[None], start) for n, new in (("k", k), ("v", v))}
            ours = {n: jax.lax.dynamic_index_in_dim(whole[n], number, keepdims=False) for n in whole}
            return cached_attention(q[:, 0], ours["k"], ours["v"], position, window=window)[:, None], whole

        x, cache, _ = merge_block(config, layer_params)(x, table, attend)
        return (x, cache), None

    layers: Any = (params["blocks"], windows, jnp.arange(config.num_layers, dtype=position.dtype))
    with jax.default_matmul_precision("highest"):
        (x, cache), _ = jax.lax.scan(step, (x, cache), layers)
    return cache, logits(params, model.norm(x[:, 0]))


@partial(jax.jit, static_argnames="sampling")
def choose_token(scores: Float[Array, " vocab"], *, sampling: Sampling, key: Array) -> Int[Array, ""]:
    """Choose the next token from its logits.

    Example:
        >>> scores = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
        >>> int(choose_token(scores, sampling=Sampling(), key=jax.random.key(0)))
        0
    """
    if sampling.temperature == 0:
        return jnp.argmax(scores)
    scaled = scores / sampling.temperature
    if sampling.top_p < 1:
        order = jnp.argsort(-scaled)
        probability = jax.nn.softmax(scaled)[order]
        before = jnp.cumsum(probability) - probability
        scaled = scaled.at[order].set(jnp.where(before < sampling.top_p, scaled[order], -jnp.inf))
    return jax.random.categorical(key, scaled)


def _check(
    model: LanguageModel, prompt: np.ndarray, max_new_tokens: int, sampling: Sampling, key: Array | None
) -> None:
    if prompt.size == 0:
        raise OccError("the prompt is empty; give at least one token (a model's start token where there is no text).")
    if prompt.min() < 0 or prompt.max() >= model.config.vocab_size:
        raise OccError(
            f"the prompt has tokens from {prompt.min()} to {prompt.max()}, but the model knows 0 to "
            f"{model.config.vocab_size - 1}; use the model's own tokenizer."
        )
    if max_new_tokens < 1:
        raise OccError(f"max_new_tokens = {max_new_tokens}; ask for at least one.")
    if sampling.temperature > 0 and key is None:
        raise OccError(f"temperature = {sampling.temperature} needs a random key; give one, or use temperature 0.")
