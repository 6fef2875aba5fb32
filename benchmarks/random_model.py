"""Llama-shaped models with random weights, made one tensor at a time: for measurements of time and memory only."""

import zlib

import numpy as np
from occ_llm.checkpoints import tensor_shapes
from occ_llm.config import ModelConfig
from occ_llm.weights import DerivedWeights, Weights

TINYLLAMA = ModelConfig(
    family="llama",
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    rms_norm_eps=1e-5,
)
"""Shape of TinyLlama: 1.1 billion parameters.

References:
    Zhang et al., TinyLlama: An Open-Source Small Language Model, arXiv:2401.02385.
"""

SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
"""Shape of SmolLM2-135M."""


def random_weights(config: ModelConfig, *, seed: int = 0) -> Weights:
    """Weights of every tensor, drawn anew, and always the same, whenever one is asked for.

    Rows have log-normal scales, so that there is something to allocate bits by.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        scales = np.exp(0.3 * rng.standard_normal((shape[0], 1), np.float32)) * shape[1] ** -0.5
        return scales * rng.standard_normal(shape, np.float32)

    rules = {
        name: lambda source, name=name, shape=shape: draw(name, shape) for name, shape in tensor_shapes(config).items()
    }
    return DerivedWeights({}, rules)
