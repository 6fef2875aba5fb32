"""Checkpoint tensors in, stacked parameters out, and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.checkpoints.layout import tensor_shapes
from occ_llm.config import ModelConfig
from occ_llm.errors import OccError
from occ_llm.model import LanguageModel, block_params, params_from_weights, weights_from_params

BIASED = ModelConfig(
    family="llama",
    vocab_size=11,
    hidden_size=6,
    intermediate_size=10,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=4,
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
)
CONFIGS = {
    "biased": BIASED,
    "qwen2": dataclasses.replace(BIASED, family="qwen2", attention_output_bias=False, mlp_bias=False),
    "qwen3-tied": dataclasses.replace(
        BIASED,
        family="qwen3",
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
}


def numbered(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights in which every entry is a number of its own."""
    start, weights = 0, {}
    for name, shape in tensor_shapes(config).items():
        size = int(np.prod(shape))
        weights[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return weights


class Counted(dict):
    """A mapping that counts how often each tensor is read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads = dict.fromkeys(self, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return super().__getitem__(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    config = CONFIGS[name]
    weights = numbered(config)
    back = weights_from_params(config, params_from_weights(config, weights))
    assert list(back) == list(weights)
    for tensor, w in weights.items():
        np.testing.assert_array_equal(back[tensor], w)
        assert back[tensor].dtype == np.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_read_once(name):
    weights = Counted(numbered(CONFIGS[name]))
    params_from_weights(CONFIGS[name], weights)
    first, *rest = weights.reads  # the first is also read by the type checker of the test run, to see what it is
    assert weights.reads[first] >= 1
    assert {weights.reads[tensor] for tensor in rest} == {1}


def test_rows_are_stacked_in_the_order_of_the_names():
    weights = numbered(BIASED)
    blocks = params_from_weights(BIASED, weights)["blocks"]
    prefix = "model.layers.1.self_attn."
    expected = np.concatenate([weights[f"{prefix}{p}_proj.weight"] for p in "qkv"])
    np.testing.assert_array_equal(blocks["qkv"]["weight"][1], expected)
    np.testing.assert_array_equal(blocks["o"]["bias"][0], weights["model.layers.0.self_attn.o_proj.bias"])
    np.testing.assert_array_equal(
        blocks["mlp_norm"]["gain"][1], weights["model.layers.1.post_attention_layernorm.weight"]
    )


def test_one_block_alone_is_a_slice_of_the_stack():
    weights = numbered(BIASED)
    stacked = params_from_weights(BIASED, weights)["blocks"]
    for layer in range(2):
        alone = block_params(BIASED, weights, layer)
        assert jax.tree.structure(alone) == jax.tree.structure(stacked)
        jax.tree.map(lambda a, b, at=layer: np.testing.assert_array_equal(a, b[at]), alone, stacked)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_another_dtype(dtype):
    params = params_from_weights(BIASED, numbered(BIASED), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_tied_heads_and_old_buffers_are_left_out():
    config = CONFIGS["qwen3-tied"]
    weights = numbered(config)
    extra = {"lm_head.weight": weights["model.embed_tokens.weight"]}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    params = params_from_weights(config, weights | extra)
    assert "head" not in params


def test_a_missing_tensor_is_named():
    weights = numbered(BIASED)
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(OccError, match=r"lacks 1 of the 35 tensors .*'model.layers.1.mlp.up_proj.weight'"):
        params_from_weights(BIASED, weights)
    with pytest.raises(OccError, match=r"lacks tensor 'model.layers.1.mlp.up_proj.weight'"):
        block_params(BIASED, weights, 1)


def test_a_wrong_shape_is_named():
    weights = numbered(BIASED)
    weights["model.norm.weight"] = np.ones(5, np.float32)
    with pytest.raises(OccError, match=r"'model.norm.weight' has shape \(5,\), but the model config says \(6,\)"):
        params_from_weights(BIASED, weights)


def test_a_bias_that_the_config_does_not_know_is_not_dropped():
    config = dataclasses.replace(BIASED, mlp_bias=False)
    with pytest.raises(OccError, match=r"holds 6 tensors .*'model.layers.0.mlp.down_proj.bias'"):
        params_from_weights(config, numbered(BIASED))


def test_a_language_model_gives_back_its_weights():
    weights = numbered(BIASED)
    model = LanguageModel.from_weights(BIASED, weights)
    assert {n: w.tolist() for n, w in model.weights().items()} == {n: w.tolist() for n, w in weights.items()}
    leaves, tree = jax.tree.flatten(model)
    assert jax.tree.unflatten(tree, leaves).config is BIASED
