"""The forward pass against transformers: recorded logits of every family, live ones where torch is installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record_reference_logits as record
from occ_llm.checkpoints import load_checkpoint
from occ_llm.config import ModelConfig
from occ_llm.errors import OccError
from occ_llm.model import LanguageModel, forward, head, hidden_states, init_params, logits, make_graphdef


@pytest.fixture(scope="module")
def golden():
    with np.load(record.GOLDEN / "family_logits.npz") as file:
        return dict(file)


def small_model(name: str, dtype=jnp.float32) -> LanguageModel:
    config = ModelConfig.from_hf(record.CASES[name])
    return LanguageModel.from_weights(config, record.closed_form_weights(config), dtype)


def test_the_formula_for_weights_is_the_one_that_was_recorded():
    first = record.uniform("model.embed_tokens.weight", (2, 2))
    np.testing.assert_array_equal(first, record.uniform("model.embed_tokens.weight", (3, 2))[:2])
    many = record.uniform("x", (100_000,))
    assert abs(many.mean()) < 0.01
    assert abs(many.var() - 1 / 3) < 0.01
    assert many.min() >= -1
    assert many.max() < 1


def test_every_case_is_recorded_and_every_variation_matters(golden):
    assert set(golden) == set(record.CASES)
    ropes = [golden[name] for name in golden if name.startswith("llama-rope")]
    for i, a in enumerate(ropes):
        for b in ropes[:i]:
            assert np.abs(a - b).max() > 1e-2
    assert np.abs(golden["mistral-window"][:, 3:] - golden["mistral"][:, 3:]).max() > 1e-2


@pytest.mark.parametrize("name", record.CASES)
def test_logits_agree_with_the_recorded_ones_of_transformers(name, golden):
    model = small_model(name)
    got = model(record.tokens_for(model.config))[:, record.POSITIONS]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, golden[name], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["llama-biased", "mistral-window", "qwen2-window", "qwen3"])
def test_logits_agree_with_transformers_live(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = small_model(name)
    tokens = (record.tokens_for(model.config) + 5) % model.config.vocab_size
    weights = record.closed_form_weights(model.config)
    expected = record.transformers_logits(record.CASES[name], weights, tokens)
    np.testing.assert_allclose(model(tokens), expected, atol=1e-4)


@pytest.mark.parametrize("name", record.CASES)
def test_the_config_survives_a_file(name):
    config = ModelConfig.from_hf(record.CASES[name])
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_float64_is_float64_throughout(golden):
    with jax.enable_x64(True):
        model = small_model("qwen3-window", jnp.float64)
        tokens = jnp.asarray(record.tokens_for(model.config))
        got = model(tokens)
        assert got.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.float64)}
        nudged = jax.tree.map(lambda leaf: leaf * (1 + 1e-13), model)
        assert 0 < jnp.abs(nudged(tokens) - got).max() < 1e-10
    np.testing.assert_allclose(got[:, record.POSITIONS], golden["qwen3-window"], atol=2e-5)


def test_bfloat16_parameters_give_float32_logits_close_to_the_exact_ones(golden):
    model = small_model("llama", jnp.bfloat16)
    got = model(record.tokens_for(model.config))[:, record.POSITIONS]
    assert got.dtype == jnp.float32
    assert 1e-4 < np.abs(got - golden["llama"]).max() < 0.2


def test_a_token_does_not_see_the_future():
    model = small_model("llama")
    tokens = record.tokens_for(model.config)
    other = tokens.copy()
    other[:, 20:] = (other[:, 20:] + 1) % model.config.vocab_size
    a, b = model(tokens), model(other)
    np.testing.assert_array_equal(a[:, :20], b[:, :20])
    assert np.abs(a[:, 20:] - b[:, 20:]).max() > 0.1


def test_a_sliding_window_forgets():
    config = dataclasses.replace(ModelConfig.from_hf(record.CASES["mistral-window"]), num_layers=1)
    model = LanguageModel.from_weights(config, record.closed_form_weights(config))
    tokens = record.tokens_for(config)
    other = tokens.copy()
    other[:, 10] = (other[:, 10] + 1) % config.vocab_size
    changed = np.abs(model(tokens) - model(other)).max(-1) > 1e-6
    np.testing.assert_array_equal(changed, np.broadcast_to((np.arange(40) >= 10) & (np.arange(40) < 17), (2, 40)))


def test_a_tied_head_exists_once():
    model = small_model("smollm2")
    assert "head" not in model.params
    assert model.head is model.params["embedding"]
    sizes = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert sizes == sum(w.size for w in model.weights().values())


def test_hidden_states_and_logits_compose_to_the_forward_pass():
    model = small_model("qwen2")
    tokens = jnp.asarray(record.tokens_for(model.config))
    hidden = hidden_states(model.graphdef, model.params, tokens)
    np.testing.assert_allclose(jnp.mean(hidden**2, -1) > 0, True)
    expected = forward(model.graphdef, model.params, tokens)
    np.testing.assert_array_equal(logits(model.params, hidden), expected)
    np.testing.assert_allclose(hidden @ head(model.params).T, expected, atol=1e-5)
    np.testing.assert_allclose(model.logits(model.hidden_states(tokens)), expected, atol=1e-5)


def test_the_graph_is_a_function_of_the_config_and_hashable():
    config = ModelConfig.from_hf(record.CASES["qwen3"])
    assert make_graphdef(config) == make_graphdef(config)
    assert hash(make_graphdef(config)) == hash(make_graphdef(config))
    assert make_graphdef(config) != make_graphdef(dataclasses.replace(config, rms_norm_eps=1e-3))


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3"])
def test_random_parameters_have_the_structure_of_read_ones(name):
    model = small_model(name)
    params = init_params(model.config, key=jax.random.key(1))
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, model.params)
    weights = params["blocks"]["gate_up"]["weight"]
    assert not np.array_equal(weights[0], weights[1])
    assert abs(float(weights.std()) * model.config.hidden_size**0.5 - 1) < 0.05
    half = init_params(model.config, key=jax.random.key(1), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_an_untrained_model_predicts_about_nothing():
    config = dataclasses.replace(ModelConfig.from_hf(record.CASES["llama"]), hidden_size=64, head_dim=16)
    model = LanguageModel.random(config, key=jax.random.key(0))
    log_p = jax.nn.log_softmax(model(record.tokens_for(config)))
    assert abs(float(-log_p.mean()) - np.log(config.vocab_size)) < 0.1


@pytest.mark.parametrize("name", ["llama-biased", "qwen3-window"])
def test_lowers_everywhere(name, lowers_everywhere):
    model = small_model(name)
    tokens = record.tokens_for(model.config)
    lowers_everywhere(lambda params, tokens: forward(model.graphdef, params, tokens), model.params, tokens)


def test_gradients_reach_every_parameter():
    model = small_model("qwen3")
    tokens = jnp.asarray(record.tokens_for(model.config))

    def loss(params):
        log_p = jax.nn.log_softmax(forward(model.graphdef, params, tokens))
        return -jnp.mean(jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1))

    gradients = jax.jit(jax.grad(loss))(model.params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))
    direction = jax.tree.map(lambda p: jnp.asarray(record.uniform(str(p.shape), p.shape), p.dtype), model.params)
    step = 1e-3
    ahead, behind = (loss(jax.tree.map(lambda p, d, s=s: p + s * d, model.params, direction)) for s in (step, -step))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), gradients, direction)))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=0.02)


@pytest.mark.network
def test_the_real_smollm2_agrees_with_the_recorded_logits_of_transformers():
    """135 million real weights: the reader of GGUF files, the permutation of q and k, and every layer."""
    try:
        checkpoint = load_checkpoint("smollm2-135m-q4_1")
    except OccError as error:
        pytest.skip(f"SmolLM2 is not here: {error}")
    with np.load(record.GOLDEN / "smollm2_logits.npz") as golden:
        tokens, positions, ids, expected, total = (
            golden[name] for name in ("tokens", "positions", "ids", "logits", "log_sum_exp")
        )
    np.testing.assert_array_equal(record.smollm2_tokens(checkpoint.tokenizer), tokens)
    model = LanguageModel.from_weights(checkpoint.config, checkpoint.weights)
    got = np.asarray(model.logits(model.hidden_states(tokens)[:, positions]))[0]
    np.testing.assert_allclose(np.take_along_axis(got, ids, axis=-1), expected, atol=1e-4)
    np.testing.assert_allclose(jax.nn.logsumexp(jnp.asarray(got), axis=-1), total, atol=1e-4)
    np.testing.assert_array_equal(np.argmax(got, -1), ids[:, 0])
