"""Train ``tiny``, the model that ships with the package, on the documentation that ships with Python.

    pip install -e .[llm]
    python scripts/train_tiny.py llm/tiny

Two CPU cores need about ten minutes. Text: :func:`occ_llm.text.python_text`, part ``train``; the parts ``calibration``
and ``heldout`` are never trained on. The tokenizer is a byte-level BPE trained on the same part. What comes out is a
Hugging Face directory with its held-out loss in the README.
"""

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from occ_llm.checkpoints import write_hf_directory
from occ_llm.config import ModelConfig
from occ_llm.model import LanguageModel, hidden_states, init_params, logits, make_graphdef
from occ_llm.text import python_documents, python_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"

CONFIG = ModelConfig(
    family="llama",
    vocab_size=1024,
    hidden_size=160,  # not a power of two: 32 x 5, as real widths are
    intermediate_size=384,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=40,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position=512,
    bos_token_id=None,
    eos_token_ids=(0,),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch: windows per step.
        window: tokens per window.
        learning_rate: its peak, after the warm-up; a cosine takes it to a twentieth.
        weight_decay: of matrices; norms have none.
        seed: of parameters and of the order of windows.
    """

    steps: int = 1000
    batch: int = 12
    window: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Byte-level BPE: no text is unknown, and spaces are part of words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def tokens_of(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents in one row, an end-of-text token after each."""
    encodings = tokenizer.encode_batch(documents)
    return np.concatenate([np.asarray([*encoding.ids, 0], np.int32) for encoding in encodings])


def windows_of(tokens: np.ndarray, window: int) -> np.ndarray:
    """Non-overlapping windows, each with the token that follows it; the remainder is dropped."""
    count = (len(tokens) - 1) // window
    return np.stack([tokens[i * window : (i + 1) * window + 1] for i in range(count)])


def mean_nll(params, graphdef, rows):
    """Mean negative log-likelihood of the predictions, nats per token."""
    scores = logits(params, hidden_states(graphdef, params, rows[:, :-1]))
    return optax.softmax_cross_entropy_with_integer_labels(scores, rows[:, 1:]).mean()


def train(settings: Settings, rows: np.ndarray) -> LanguageModel:
    """AdamW with a warm-up and a cosine; windows are drawn epoch by epoch without replacement."""
    graphdef = make_graphdef(CONFIG)
    params = init_params(CONFIG, key=jax.random.key(settings.seed))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.steps // 20, settings.steps, settings.learning_rate / 20
    )
    decay = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "gain", params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=settings.weight_decay, mask=decay),
    )

    @jax.jit
    def step(params, state, rows):
        loss, gradient = jax.value_and_grad(mean_nll)(params, graphdef, rows)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses, started = optimizer.init(params), [], time.perf_counter()
    rng = np.random.default_rng(settings.seed)
    epochs = settings.steps * settings.batch // len(rows) + 1
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(epochs)])
    for number in range(settings.steps):
        chosen = order[number * settings.batch : (number + 1) * settings.batch]
        params, state, loss = step(params, state, jnp.asarray(rows[chosen]))
        losses.append(loss)
        if (number + 1) % 100 == 0:
            recent, seconds = float(np.mean(losses[-100:])), time.perf_counter() - started
            print(f"step {number + 1}: loss {recent:.3f}, {seconds:.0f} s", file=sys.stderr)
    return LanguageModel(params, graphdef, CONFIG)


def heldout_nll(model: LanguageModel, rows: np.ndarray) -> float:
    """Mean negative log-likelihood of the held-out windows, nats per token."""
    loss = jax.jit(mean_nll, static_argnums=1)
    return float(np.mean([loss(model.params, model.graphdef, jnp.asarray(row[None])) for row in rows]))


README = """---
license: apache-2.0
language: en
---

# tiny

A Llama of {parameters:,} parameters in float32, trained to have a real model at hand wherever `occ_jax` is installed.
It knows the style of Python's documentation and little else.

| | |
|---|---|
| Held-out loss | {nll:.4f} nats per token ({bits_per_byte:.3f} bits per byte), windows of {window} tokens |
| Text | manual topics and docstrings of the standard library of Python {python}, split by document |
| Sizes | {train_bytes:,} bytes trained on; {heldout_bytes:,} held out; {calibration_bytes:,} for calibration only |
| Training | {steps} steps of {batch} windows of {window} tokens, AdamW, cosine schedule, seed {seed} |
| Command | `{command}` |

The text is licensed under the PSF License Agreement (https://docs.python.org/3/license.html) and is not part of this
repository. The weights are licensed, like the rest of it, under Apache-2.0.
"""


def main(out: tyro.conf.Positional[Path], settings: Settings = Settings(), *, force: bool = False) -> None:
    """Train and write the directory ``out``."""
    parts = {part: python_documents(part) for part in ("train", "calibration", "heldout")}
    tokenizer = train_tokenizer(list(parts["train"].values()))
    rows = windows_of(tokens_of(tokenizer, list(parts["train"].values())), settings.window)
    print(f"{len(rows)} windows of {settings.window} tokens", file=sys.stderr)
    model = train(settings, rows)
    heldout = tokens_of(tokenizer, list(parts["heldout"].values()))
    nll = heldout_nll(model, windows_of(heldout, settings.window))
    sizes = {part: len(python_text(part).encode()) for part in parts}
    figures = {
        "nll": nll,
        "bits_per_byte": nll / np.log(2) * len(heldout) / sizes["heldout"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    }
    options = ["--force"] if force else []
    for field in dataclasses.fields(settings):
        if (value := getattr(settings, field.name)) != field.default:
            options += [f"--settings.{field.name.replace('_', '-')}", str(value)]
    readme = README.format(
        **dataclasses.asdict(settings),
        **figures,
        **{f"{part}_bytes": size for part, size in sizes.items()},
        python=platform.python_version(),
        command=" ".join(["python scripts/train_tiny.py llm/tiny", *options]),
    )
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": 512}
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2).encode(),
        "README.md": readme.encode(),
    }
    write_hf_directory(out, config=CONFIG, weights=model.weights(), tokenizer_files=files, force=force)
    print(json.dumps(figures))


if __name__ == "__main__":
    tyro.cli(main)
