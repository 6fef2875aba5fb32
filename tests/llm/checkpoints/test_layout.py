"""The tensors that a config asks for."""

import math

import pytest
from occ_llm.checkpoints.layout import check_depth, check_layout, tensor_shapes
from occ_llm.errors import OccError
from occ_llm.roles import is_linear, kind_of


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_parameters_follows_from_the_architecture(make_config, family, tied):
    c = make_config(family, tie_word_embeddings=tied, vocab_size=1000, intermediate_size=512, num_layers=3)
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = c.hidden_size * (2 * q + 2 * kv)
    biases = q + 2 * kv if family == "qwen2" else 0
    head_norms = 2 * c.head_dim if family == "qwen3" else 0
    block = attention + biases + head_norms + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
    expected = c.num_layers * block + c.hidden_size + c.vocab_size * c.hidden_size * (1 if tied else 2)
    shapes = tensor_shapes(c)
    assert sum(map(math.prod, shapes.values())) == expected
    assert sum(map(is_linear, shapes)) == 7 * c.num_layers
    assert ("lm_head.weight" in shapes) is not tied


def test_known_models(make_config):
    smollm2 = make_config(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
    )
    qwen3 = make_config(
        "qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
    )
    assert sum(map(math.prod, tensor_shapes(smollm2).values())) == 134_515_008  # SmolLM2-135M
    assert sum(map(math.prod, tensor_shapes(qwen3).values())) == 596_049_920  # Qwen3-0.6B


def test_tensors_come_in_the_order_of_the_network(make_config):
    names = list(tensor_shapes(make_config(tie_word_embeddings=False)))
    assert kind_of(names[0]) == "embedding"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    kinds = [kind_of(name) for name in names if ".layers.0." in name]
    assert kinds == ["norm", "q", "k", "v", "o", "norm", "gate", "up", "down"]


def test_check_layout(make_config):
    shapes = tensor_shapes(make_config())
    check_layout(shapes, shapes, "x")
    check_layout(shapes, shapes | {"lm_head.weight": (320, 256)}, "x")
    with pytest.raises(OccError, match=r"^x: a, b, c and 1 more are not part of the model"):
        check_layout(shapes, shapes | dict.fromkeys("abcd", (1,)), "x")
    with pytest.raises(OccError, match=r"^x: model\.norm\.weight is missing; download"):
        check_layout(shapes, {name: shape for name, shape in shapes.items() if name != "model.norm.weight"}, "x")
    with pytest.raises(OccError, match=r"has shape \(1,\) but the config asks for \(256,\); take the config"):
        check_layout(shapes, shapes | {"model.norm.weight": (1,)}, "x")


def test_check_depth(make_config):
    check_depth(make_config(num_layers=3), 3, "x")
    with pytest.raises(OccError, match="describes 3 layers but the weights are only 2 tensors"):
        check_depth(make_config(num_layers=3), 2, "x")
