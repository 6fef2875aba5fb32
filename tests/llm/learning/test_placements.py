"""Parameters of every placement: where they begin, what they are in the network, and what they may not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.coordinates import STORED, choose_coordinates, dense_network, rotate
from occ_llm.errors import OccError
from occ_llm.folding import fold_norms
from occ_llm.learning.placements import (
    default_placements,
    initial_parameters,
    learned_coordinates,
    num_parameters,
    shared_and_blocks,
)
from occ_llm.learning.problem import moving_kinds
from occ_llm.model import LanguageModel
from occ_llm.stored_coordinates import as_stored

from occ_jax.learned import TRAINED, default_labels, orthogonality_error
from occ_jax.transforms import num_pairs

PAID = ("attention-inputs", "o-inputs", "mlp-inputs", "hidden")
EVERYTHING = ("residual", "values", "keys", "value-scales", "key-scales", "unit-scales", *PAID)


def everything(config, start):
    return initial_parameters(config, EVERYTHING, start)


@pytest.mark.parametrize("init", ["identity", "hadamard", "klt"])
def test_training_begins_where_it_should(init, toy, toy_folded, toy_statistics):
    moment = toy_statistics.residual_moment()
    start = choose_coordinates(init, toy.config, key=jax.random.key(0), second_moment=moment)
    first = learned_coordinates(toy.config, start, everything(toy.config, start))
    expected, found = (rotate(toy.config, toy_folded, place) for place in (start, first))
    for name in set(expected) & set(found):  # beside a tied head the final gain becomes another tensor
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
    x = jnp.eye(toy.config.intermediate_size)
    np.testing.assert_allclose(first.stored_of(1, "down_in").forward(x), start.hidden.forward(x), atol=1e-6)


@pytest.mark.parametrize(("init", "structure"), [("identity", "kronecker"), ("hadamard", "butterfly")])
def test_training_begins_where_another_has_ended(init, structure, toy, drawn_parameters):
    config, start = toy.config, choose_coordinates(init, toy.config, key=jax.random.key(0))
    drawn = drawn_parameters(config, EVERYTHING, start, structure=structure)
    ended = as_stored(learned_coordinates(config, start, drawn))
    begun = as_stored(learned_coordinates(config, ended, everything(config, ended)))
    assert jax.tree.structure(begun) == jax.tree.structure(ended)
    jax.tree.map(lambda found, due: np.testing.assert_allclose(found, due, atol=1e-4), begun, ended)


def test_placements_that_training_begins_with_are_trained_on(toy, drawn_coordinates):
    start = drawn_coordinates(toy.config, ("residual", "values", "value-scales"))
    with pytest.raises(OccError, match=r"value-scales.*--placements"):
        initial_parameters(toy.config, ("residual", "values"), start)
    labels = jax.tree.leaves(default_labels(everything(toy.config, start)))
    assert labels.count(TRAINED) == len(labels) - 2, "both starting rotations stay"


@pytest.mark.parametrize("family", [{}, {"family": "qwen3", "qk_norm": True, "tie_word_embeddings": False}])
def test_whatever_is_learned_the_network_stays(family, toy_config, toy_weights, toy_tokens, drawn_coordinates):
    config = toy_config(**family)
    weights, tokens = toy_weights(config), toy_tokens[:1, :32]
    moved = rotate(config, fold_norms(config, weights), drawn_coordinates(config))
    expected, found = (
        np.asarray(LanguageModel.from_weights(c, w)(tokens))
        for c, w in ((config, weights), dense_network(config, moved))
    )
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())


def test_every_leaf_but_the_start_is_trained_and_counted(toy):
    config, start = toy.config, choose_coordinates("hadamard", toy.config, key=jax.random.key(0))
    parameters = everything(config, start)
    labels = jax.tree.leaves(default_labels(parameters))
    assert labels.count(TRAINED) == len(labels) - 1
    size, half, heads = config.head_dim, config.head_dim // 2, config.num_layers * config.num_kv_heads
    counts = num_parameters(parameters)
    assert counts["residual"] == 48 * 47 // 2
    assert counts["values"] == heads * size * (size - 1) // 2
    assert counts["keys"] == counts["key_scales"] == heads * half
    assert counts["unit_scales"] == config.num_layers * config.intermediate_size


@pytest.mark.parametrize(
    ("structure", "placements"), [("butterfly", ("value-scales", "values", "hidden")), ("kronecker", EVERYTHING)]
)
def test_rotations_stay_rotations(structure, placements, toy, drawn_parameters):
    start = choose_coordinates("random", toy.config, key=jax.random.key(0))
    parameters = drawn_parameters(toy.config, placements, start, size=2.0, structure=structure)
    assert float(orthogonality_error(parameters)) < 1e-5
    residual, blocks = shared_and_blocks(toy.config, parameters)
    if "residual" in placements:
        assert residual.is_orthonormal
    assert not blocks.values.is_orthonormal, "there are factors beside the rotation"
    assert all(getattr(blocks, field).is_orthonormal for field in STORED.values())


def test_parameters_that_are_paid_for_are_few(toy):
    start = choose_coordinates("identity", toy.config, key=jax.random.key(0))
    for structure, per_input in (("butterfly", num_pairs(48)), ("kronecker", 6 * 5 // 2 + 8 * 7 // 2)):
        counts = num_parameters(initial_parameters(toy.config, PAID, start, structure))
        assert counts["attention_inputs"] == counts["mlp_inputs"] == toy.config.num_layers * per_input


@pytest.mark.parametrize(
    ("placement", "kinds"),
    [
        ("residual", ("q", "k", "v", "o", "gate", "up", "down")),
        ("values", ("v", "o")),
        ("keys", ("q", "k")),
        ("key-scales", ("q", "k")),
        ("unit-scales", ("up", "down")),
        ("attention-inputs", ("q", "k", "v")),
        ("o-inputs", ("o",)),
        ("mlp-inputs", ("gate", "up")),
        ("hidden", ("down",)),
    ],
)
def test_what_moves(placement, kinds, toy, drawn_coordinates):
    assert moving_kinds(toy.config, drawn_coordinates(toy.config, (placement,))) == kinds


def test_what_does_not_exist_is_refused(toy_config):
    config = toy_config(family="qwen3", qk_norm=True)
    start = choose_coordinates("identity", config, key=jax.random.key(0))
    assert default_placements(config, scalings=True) == ("residual", "values", "value-scales", "unit-scales")
    assert default_placements(toy_config(), scalings=False) == ("residual", "values", "keys")
    with pytest.raises(OccError, match=r"--placements keys.*qwen3"):
        initial_parameters(config, ("residual", "keys"), start)
    with pytest.raises(OccError, match="nothing to learn"):
        initial_parameters(config, (), start)
