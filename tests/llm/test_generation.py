"""Generation with a cache against the forward pass without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm import generation
from occ_llm.config import ModelConfig, RopeScaling
from occ_llm.errors import OccError
from occ_llm.generation import Sampling, choose_token, decode_step, generate, prefill, spoken
from occ_llm.model import LanguageModel
from tokenizers import Tokenizer, decoders, models

CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=23,
    hidden_size=12,
    intermediate_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    qk_norm=True,
    tie_word_embeddings=False,
)
VARIANTS = {
    "full": CONFIG,
    "window": dataclasses.replace(CONFIG, sliding_window=5, sliding_layers=(True, False)),
    "yarn": dataclasses.replace(
        CONFIG, rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_max_position=16), tie_word_embeddings=True
    ),
}


def make_model(config: ModelConfig) -> LanguageModel:
    model = LanguageModel.random(config, key=jax.random.key(3))
    louder = jax.tree.map(lambda leaf: 3 * leaf, model.params["blocks"])
    embedding = {n: 30 * model.params[n] for n in ("embedding", "head") if n in model.params}
    return dataclasses.replace(model, params=model.params | embedding | {"blocks": louder})


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(CONFIG)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_step_has_the_logits_of_the_whole_text(name):
    model = make_model(VARIANTS[name])
    tokens = np.random.default_rng(0).integers(0, 23, (2, 14)).astype(np.int32)
    expected = np.asarray(model(tokens))
    padded = np.concatenate([tokens[:, :6], np.full((2, 3), 22)], 1).astype(np.int32)
    cache, scores = prefill(model.graphdef, model.params, jnp.asarray(padded), jnp.asarray(6), capacity=16)
    np.testing.assert_allclose(scores, expected[:, 5], atol=2e-4, rtol=1e-4)
    for position in range(6, 14):
        cache, scores = decode_step(
            model.graphdef, model.params, cache, jnp.asarray(tokens[:, position]), jnp.asarray(position)
        )
        np.testing.assert_allclose(scores, expected[:, position], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 5])
def test_greedy_text_is_that_of_the_uncached_model(model, length, monkeypatch):
    monkeypatch.setattr(generation, "_PADDING", 4)
    tokens = list(range(length))
    got = list(generate(model, tokens, max_new_tokens=6))
    row = np.zeros((1, length + 6), np.int32)
    row[0, :length] = tokens
    for position in range(length, length + 6):
        row[0, position] = int(jnp.argmax(model(row)[0, position - 1]))
    assert got == row[0, length:].tolist()
    assert len(set(got)) > 1


def test_it_is_an_iterator_that_stops_at_the_end_of_text(model):
    first, second, *_ = generate(model, [1, 2, 3], max_new_tokens=5)
    ending = dataclasses.replace(model, config=dataclasses.replace(CONFIG, eos_token_ids=(second,)))
    stream = generate(ending, np.asarray([1, 2, 3]), max_new_tokens=5)
    assert next(stream) == first
    assert next(stream) == second
    with pytest.raises(StopIteration):
        next(stream)


def test_samples_depend_on_the_key_and_only_on_it(model):
    sampling = Sampling(temperature=5.0)
    draw = lambda seed: list(  # noqa: E731
        generate(model, [1], max_new_tokens=8, sampling=sampling, key=jax.random.key(seed))
    )
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


PROBABILITIES = np.array([0.4, 0.3, 0.2, 0.1])


def frequencies(sampling: Sampling, count: int = 8000) -> np.ndarray:
    scores = jnp.asarray(np.log(PROBABILITIES) + 3, jnp.float32)
    keys = jax.random.split(jax.random.key(0), count)
    tokens = jax.vmap(lambda key: choose_token(scores, sampling=sampling, key=key))(keys)
    return np.bincount(np.asarray(tokens), minlength=4) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    got = frequencies(Sampling(temperature=temperature))
    np.testing.assert_allclose(got, expected / expected.sum(), atol=0.02)  # 4 standard errors


@pytest.mark.parametrize(("top_p", "kept"), [(0.05, 1), (0.4, 1), (0.41, 2), (0.69, 2), (0.75, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_is_likely_enough(top_p, kept):
    expected = np.where(np.arange(4) < kept, PROBABILITIES, 0)
    got = frequencies(Sampling(temperature=1.0, top_p=top_p))
    np.testing.assert_allclose(got, expected / expected.sum(), atol=0.025)
    assert (got[kept:] == 0).all()


def test_a_cold_sample_is_the_greedy_one():
    assert frequencies(Sampling(temperature=1e-3))[0] == 1
    assert frequencies(Sampling())[0] == 1


def test_one_padding_is_one_compilation(model):
    before = decode_step._cache_size(), prefill._cache_size()
    for length in (1, 9, 30):
        list(generate(model, [n % 23 for n in range(length)], max_new_tokens=3))
    assert decode_step._cache_size() <= before[0] + 1
    assert prefill._cache_size() <= before[1] + 1


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([3, 23], {}, "from 3 to 23, but the model knows 0 to 22"),
        ([-1], {}, "from -1 to -1"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens = 0"),
        ([1], {"sampling": Sampling(temperature=1.0)}, r"temperature = 1.0 needs a random key"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(model, prompt, options, message):
    with pytest.raises(OccError, match=message):
        generate(model, prompt, **{"max_new_tokens": 2, **options})


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_bad_sampling_is_refused(options):
    with pytest.raises(OccError, match=next(iter(options))):
        Sampling(**options)


def test_lowers_everywhere(model, lowers_everywhere):
    cache = {n: jnp.zeros((2, 1, 8, 2, 4)) for n in "kv"}
    tokens, position = jnp.zeros((1, 4), jnp.int32), jnp.asarray(4)
    lowers_everywhere(lambda p, t, n: prefill(model.graphdef, p, t, n, capacity=8), model.params, tokens, position)
    lowers_everywhere(
        lambda p, c, t, n: decode_step(model.graphdef, p, c, t, n), model.params, cache, tokens[0, :1], position
    )
    lowers_everywhere(
        lambda scores: choose_token(scores, sampling=Sampling(temperature=1.0, top_p=0.5), key=jax.random.key(0)),
        jnp.zeros(23),
    )


def test_what_is_said_keeps_the_space_after_the_prompt():
    """As SentencePiece decodes: a space begins a word, and is dropped where a text begins."""
    vocabulary = {"<unk>": 0, "▁The": 1, "▁cat": 2, "▁sat": 3, "s": 4, "<0xC3>": 5, "<0xA9>": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    said = list(spoken(tokenizer, [1, 2], [4, 3, 5, 6, 2]))
    assert said == [(4, "s"), (3, " sat"), (5, ""), (6, "é"), (2, " cat")]
