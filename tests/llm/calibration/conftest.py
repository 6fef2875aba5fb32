"""A naive twin of calibration: one window at a time, the whole network at once, sums in NumPy."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import calibrate, draw, label_bits
from occ_llm.checkpoints.layout import tensor_shapes
from occ_llm.config import ModelConfig
from occ_llm.roles import EMBEDDING, FINAL_NORM, HEAD, linear_name

INPUT_OF = {"q": "attention_in", "o": "o_in", "gate": "mlp_in", "down": "down_in"}
WEIGHTED = {"attention_in": ("q", "k", "v"), "mlp_in": ("gate", "up")}


@pytest.fixture
def config() -> ModelConfig:
    """A network with every width different, grouped queries and a head of its own."""
    return ModelConfig(
        family="llama",
        vocab_size=37,
        hidden_size=12,
        intermediate_size=20,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
    )


def random_weights(config: ModelConfig, seed: int, dtype=np.float32, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Weights of a network whose activations and logits have a healthy size, norm gains unlike one."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith("norm.weight"):
            w = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            w = 0.1 * rng.standard_normal(shape)
        else:
            w = scale * rng.standard_normal(shape) / np.sqrt(1 if name == EMBEDDING else shape[1])
        weights[name] = w.astype(dtype)
    return weights


def random_windows(config: ModelConfig, count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (count, length), dtype=np.int32)


def naive_logits(config: ModelConfig, weights, tokens, probes: Mapping | None = None, taps: dict | None = None):
    """Logits of one window, straight from the definition; probes are added to the outputs of linear layers."""
    with jax.numpy_rank_promotion("allow"):
        return _naive_logits(config, weights, tokens, probes or {}, {} if taps is None else taps)


def _naive_logits(config: ModelConfig, weights, tokens, probes: Mapping, taps: dict):

    def linear(layer, kind, x):
        name = linear_name(layer, kind)
        taps[name] = x
        y = x @ weights[name].T + probes.get(name, 0.0)
        bias = weights.get(name.replace("weight", "bias"))
        return y if bias is None else y + bias

    def norm(x, gain):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.rms_norm_eps) * gain

    x = weights[EMBEDDING][tokens] + probes.get(EMBEDDING, 0.0)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, weights[prefix + "input_layernorm.weight"])
        q, k, v = (_heads(linear(layer, kind, h), config.head_dim) for kind in "qkv")
        if config.qk_norm:
            q = norm(q, weights[prefix + "self_attn.q_norm.weight"])
            k = norm(k, weights[prefix + "self_attn.k_norm.weight"])
        mixed = _attention(config, config.windows[layer], _rope(config, q), _rope(config, k), v)
        x = x + linear(layer, "o", mixed)
        h = norm(x, weights[prefix + "post_attention_layernorm.weight"])
        x = x + linear(layer, "down", jax.nn.silu(linear(layer, "gate", h)) * linear(layer, "up", h))
    taps[HEAD] = norm(x, weights[FINAL_NORM])
    head = weights[EMBEDDING] if config.tie_word_embeddings else weights[HEAD]
    return taps[HEAD] @ head.T


def _heads(y, size):
    return y.reshape(len(y), -1, size).swapaxes(0, 1)


def _rope(config, x):
    half = config.head_dim // 2
    angle = np.arange(x.shape[1])[:, None] * config.rope_theta ** (-np.arange(half) / half)
    cos, sin = (np.tile(f(angle), 2).astype(x.dtype)[None] for f in (np.cos, np.sin))
    return x * cos + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def _attention(config, window, q, k, v):
    k, v = (jnp.repeat(y, config.num_heads // config.num_kv_heads, axis=0) for y in (k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(config.head_dim).astype(q.dtype)
    distance = np.subtract.outer(np.arange(q.shape[1]), np.arange(q.shape[1]))
    seen = (distance >= 0) & (distance < (window or len(distance)))
    mixed = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), -1) @ v
    return mixed.swapaxes(0, 1).reshape(q.shape[1], -1)


def naive_statistics(config: ModelConfig, weights, windows, key) -> dict[str, np.ndarray]:
    """Every statistic of a network with folded norms, by automatic differentiation of the whole network."""
    observe = jax.jit(lambda weights, tokens, bits: _observe(config, weights, tokens, bits))
    rows: dict[str, list[np.ndarray]] = {}
    for number, tokens in enumerate(windows):
        taps, gradients, p = observe(weights, tokens, label_bits(key, number, count=1, length=len(tokens))[0])
        p = np.asarray(p, np.float64)
        for name, found in (*taps.items(), *gradients.items(), ("lm_head.fisher", np.sqrt(p * (1 - p)))):
            rows.setdefault(name.replace("weight", "fisher"), []).append(np.asarray(found, np.float64))
    tokens = {name: np.concatenate(found) for name, found in rows.items()}
    means = {name: x.T @ x / windows.size for name, x in tokens.items()}
    means["lm_head.fisher"] = np.diagonal(means["lm_head.fisher"])
    for layer in range(config.num_layers):
        for tap, kinds in WEIGHTED.items():
            names = [linear_name(layer, kind).replace("weight", "fisher") for kind in kinds]
            moment, fisher = naive_weighted(
                tokens[f"model.layers.{layer}.{tap}.hessian"], [tokens[name] for name in names]
            )
            means |= {f"model.layers.{layer}.{tap}.weighted": moment, **dict(zip(names, fisher, strict=True))}
    return means | {"model.embed_tokens.counts": np.bincount(windows.ravel(), minlength=config.vocab_size)}


def naive_weighted(x: np.ndarray, gradients: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Second moment of inputs and Fisher matrices of outputs, each token weighted by what the other says of it."""

    def moment(fisher):
        diagonals = [np.diagonal(f) for f in fisher]
        powers = [np.maximum(d, 1e-3 * d.mean()) for d in diagonals]
        weights = np.minimum(np.mean(np.concatenate([d**2 / p for d, p in zip(gradients, powers)], 1), 1), 20)
        return (x.T * weights) @ x / len(x)

    first = moment([d.T @ d / len(d) for d in gradients])
    damped = first + 0.01 * np.trace(first) / len(first) * np.eye(len(first))
    leverages = np.einsum("ti,ti->t", x, np.linalg.solve(damped, x.T).T) / len(first)
    fisher = [(d.T * leverages) @ d / len(d) for d in gradients]
    return moment(fisher), fisher


def _observe(config: ModelConfig, weights, tokens, bits):
    """Inputs of the layers, gradients of their outputs, and predictions, all of one window."""
    rows = {name: w.shape[0] for name, w in weights.items() if name.endswith("proj.weight")}
    rows[EMBEDDING] = config.hidden_size
    taps: dict = {}
    logits = naive_logits(config, weights, tokens, taps=taps)
    labels = draw(jax.nn.softmax(logits), bits)

    def loss(probes):
        log_p = jax.nn.log_softmax(naive_logits(config, weights, tokens, probes))
        return -jnp.sum(jnp.take_along_axis(log_p, labels[:, None], 1))

    zeros = {name: jnp.zeros((len(tokens), d), logits.dtype) for name, d in rows.items()}
    named = {"lm_head.hessian": taps[HEAD]}
    for layer in range(config.num_layers):
        named |= {f"model.layers.{layer}.{tap}.hessian": taps[linear_name(layer, k)] for k, tap in INPUT_OF.items()}
    return named, jax.grad(loss)(zeros), jax.nn.softmax(logits)


@dataclasses.dataclass(frozen=True)
class Naive:
    """The twin, handed to tests as one fixture."""

    weights = staticmethod(random_weights)
    windows = staticmethod(random_windows)
    logits = staticmethod(naive_logits)
    statistics = staticmethod(naive_statistics)


@pytest.fixture
def naive() -> Naive:
    return Naive()


@pytest.fixture
def calibrated(config):
    """Weights, windows and their statistics; computed once."""
    return _calibrated(config)


@functools.cache
def _calibrated(config: ModelConfig):
    weights, windows = random_weights(config, 0), random_windows(config, 3, 9)
    return weights, windows, calibrate(config, weights, windows, key=jax.random.key(3))
