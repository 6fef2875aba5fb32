"""A small model with everything that a checkpoint has, and its statistics, for tests of what is done with models."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from occ_llm.calibration import Statistics, calibrate
from occ_llm.checkpoints import Checkpoint, tensor_shapes
from occ_llm.compression import CalibrationTokens
from occ_llm.config import ModelConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_tokenizer() -> Tokenizer:
    """One token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def toy_config() -> Callable[..., ModelConfig]:
    def make(**changes) -> ModelConfig:
        fields = dict(
            family="llama",
            vocab_size=256,
            hidden_size=48,
            intermediate_size=80,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=12,
            tie_word_embeddings=True,
        )
        return ModelConfig(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def toy_weights() -> Callable[..., dict[str, np.ndarray]]:
    def make(config: ModelConfig, dtype=np.float32) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(7)
        weights = {}
        for name, shape in tensor_shapes(config).items():
            w = rng.standard_normal(shape)
            if len(shape) == 2:
                w = w * np.exp(0.3 * rng.standard_normal((shape[0], 1))) / np.sqrt(shape[1])
            elif name.endswith("bias"):
                w = 0.1 * w
            else:
                w = 1 + 0.2 * w
            weights[name] = w.astype(dtype)
        return weights

    return make


@pytest.fixture(scope="session")
def toy(toy_config, toy_weights) -> Checkpoint:
    config, tokenizer = toy_config(), byte_tokenizer()
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    return Checkpoint(
        name="toy", config=config, weights=toy_weights(config), tokenizer=tokenizer, tokenizer_files=files
    )


@pytest.fixture(scope="session")
def toy_tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (4, 64), dtype=np.int32)


@pytest.fixture(scope="session")
def toy_statistics(toy, toy_tokens) -> Statistics:
    return calibrate(toy.config, toy.weights, toy_tokens, key=jax.random.key(0))


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """Nothing of what other tests, or the user, have cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(toy_tokens) -> CalibrationTokens:
    """The calibration text, seen again by what runs it through the network once more."""
    return CalibrationTokens(calibration=toy_tokens, finishing=toy_tokens)
