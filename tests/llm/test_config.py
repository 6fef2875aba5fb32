"""``config.json``: what is read, what is written, what is refused."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from occ_llm.config import ARCHITECTURES, ROPE_KINDS, ModelConfig, RopeScaling
from occ_llm.errors import OccError

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
QWEN3 = SMOLLM2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def minimal(architecture: str = "LlamaForCausalLM", **fields):
    sizes = {
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return {"architectures": [architecture], **sizes, **fields}


def test_a_published_config():
    assert ModelConfig.from_hf(SMOLLM2) == ModelConfig(
        family="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position=8192,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.mark.parametrize(
    ("architecture", "family", "expected"),
    [
        ("LlamaForCausalLM", "llama", {"head_dim": 4, "num_kv_heads": 4, "qk_norm": False, "attention_bias": False}),
        ("MistralForCausalLM", "mistral", {"sliding_window": 4096, "windows": (4096,) * 3}),
        ("Qwen2ForCausalLM", "qwen2", {"attention_bias": True, "attention_output_bias": False, "windows": (None,) * 3}),
        ("Qwen3ForCausalLM", "qwen3", {"head_dim": 128, "qk_norm": True, "attention_bias": False}),
    ],
)
def test_what_a_file_leaves_out_has_the_default_of_its_family(architecture, family, expected):
    config = ModelConfig.from_hf(minimal(architecture))
    assert config.family == family == ARCHITECTURES[architecture]
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings) == (10_000.0, 1e-6, False)


@pytest.mark.parametrize(
    ("fields", "theta", "kind"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}}, 1e4, "linear"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}, 1e6, "dynamic"),
        ({"rope_theta": 3e4, "rope_parameters": {"rope_type": "yarn", "factor": 4}}, 3e4, "yarn"),
        ({"rope_theta": 3e4, "rope_scaling": {"rope_type": "default"}}, 3e4, None),
    ],
)
def test_both_generations_of_rope_fields(fields, theta, kind):
    config = ModelConfig.from_hf(minimal(**fields))
    assert config.rope_theta == theta
    assert (config.rope_scaling.kind if config.rope_scaling else None) == kind


def test_every_number_of_a_scaling_is_read_as_a_float():
    fields = {"rope_type": "yarn", "factor": 4, "beta_fast": 16, "mscale": 1, "original_max_position_embeddings": 64}
    scaling = RopeScaling.from_hf(fields, 2048)
    assert scaling == RopeScaling(kind="yarn", factor=4.0, original_max_position=64, beta_fast=16.0, mscale=1.0)
    assert type(scaling.beta_fast) is float


def test_a_yarn_factor_left_out_is_the_ratio_of_the_lengths():
    fields = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512}
    assert RopeScaling.from_hf(fields, 2048).factor == 4.0


@pytest.mark.parametrize("eos", [None, 7, [7, 9]])
def test_one_several_or_no_end_tokens(eos):
    config = ModelConfig.from_hf(minimal(eos_token_id=eos))
    assert config.eos_token_ids == (() if eos is None else (7,) if eos == 7 else (7, 9))
    assert config.to_hf()["eos_token_id"] == eos


def test_biases_by_family():
    both = {"attention_bias": True, "mlp_bias": True}
    llama, qwen2, qwen3, mistral = (
        ModelConfig.from_hf(minimal(a, **both, head_dim=4))
        for a in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")
    )
    assert (llama.attention_bias, llama.attention_output_bias, llama.mlp_bias) == (True, True, True)
    assert (qwen3.attention_bias, qwen3.attention_output_bias, qwen3.mlp_bias) == (True, True, False)
    assert (qwen2.attention_bias, qwen2.attention_output_bias, qwen2.mlp_bias) == (True, False, False)
    assert (mistral.attention_bias, mistral.attention_output_bias, mistral.mlp_bias) == (False, False, False)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": 8}, (None, None, None)),  # Qwen: only with use_sliding_window
        ({"use_sliding_window": True, "sliding_window": None}, (None, None, None)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, (None, 8, 8)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
)
def test_windows_of_qwen(fields, windows):
    config = ModelConfig.from_hf(minimal("Qwen2ForCausalLM", **fields))
    assert config.windows == windows
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_architectures_may_be_left_out_where_the_model_type_says_it():
    fields = {name: value for name, value in QWEN3.items() if name != "architectures"}
    assert ModelConfig.from_hf(fields).family == "qwen3"


@given(
    family=st.sampled_from(sorted(ARCHITECTURES.values())),
    kind=st.none() | st.sampled_from(ROPE_KINDS),
    tie=st.booleans(),
    window=st.none() | st.integers(1, 100),
    eos=st.lists(st.integers(0, 9), max_size=2, unique=True),
    theta=st.floats(1.0, 1e7),
)
def test_any_config_survives_json(family, kind, tie, window, eos, theta):
    config = ModelConfig(
        family=family,
        vocab_size=10,
        hidden_size=12,
        intermediate_size=5,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        head_dim=8,
        rope_theta=theta,
        rope_scaling=kind and RopeScaling(kind=kind, factor=2.5, original_max_position=2048),
        tie_word_embeddings=tie,
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=None if family == "llama" else window,
        sliding_layers=(False, True) if window and family.startswith("qwen") else (),
        eos_token_ids=tuple(eos),
    )
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    assert hash(config) == hash(ModelConfig.from_hf(config.to_hf()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported; supported are LlamaFor",
        ),
        ({"architectures": None, "model_type": "mamba"}, "'mamba' is not supported"),
        ({"architectures": []}, "'none' is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"hidden_size": None, "num_hidden_layers": None}, "lacks hidden_size, num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_layers = 0; it must be positive"),
        ({"vocab_size": "many"}, "vocab_size = 'many'; it must be an integer"),
        ({"num_key_value_heads": 3}, "4 attention heads, not a multiple of its 3"),
        ({"head_dim": 5}, "head_dim = 5; rotary positions need an even one"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(change, message):
    with pytest.raises(OccError, match=message):
        ModelConfig.from_hf(minimal() | change)


def test_layer_types_must_match_the_layers():
    config = ModelConfig.from_hf(minimal("Qwen2ForCausalLM"))
    with pytest.raises(OccError, match="names 2 layer types for 3 layers"):
        dataclasses.replace(config, sliding_window=4, sliding_layers=(True, False))
