"""Folding and rotating change every weight and no logit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.coordinates import HEAD_MIX, choose_coordinates, dense_network, head_mix, rotate
from occ_llm.folding import fold_norms, folded_gains
from occ_llm.model import LanguageModel
from occ_llm.roles import EMBEDDING, FINAL_NORM, HEAD, NORM_OF, is_linear, kind_of, layer_of, linear_name
from occ_llm.weights import DerivedWeights

NAMES = ("identity", "hadamard", "random", "klt", "dct")
FAMILIES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "qwen2": {"family": "qwen2", "attention_bias": True},
    "qwen3": {"family": "qwen3", "qk_norm": True, "tie_word_embeddings": False},
    "biases everywhere": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
}


def chosen(name, config):
    moment = np.random.default_rng(1).standard_normal((3 * config.hidden_size, config.hidden_size))
    moment = moment.T @ moment / len(moment)
    return choose_coordinates(name, config, key=jax.random.key(5), second_moment=moment)


def logits(config, weights, tokens, dtype=jnp.float32):
    return np.asarray(LanguageModel.from_weights(config, weights, dtype)(tokens))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_stay(family, name, toy_config, toy_weights, toy_tokens):
    config = toy_config(**FAMILIES[family])
    weights = toy_weights(config)
    moved = rotate(config, fold_norms(config, weights), chosen(name, config))
    expected, tokens = logits(config, weights, toy_tokens[:1]), toy_tokens[:1]
    np.testing.assert_allclose(
        logits(*dense_network(config, moved), tokens), expected, atol=2e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("family", ["tied", "qwen2"])
def test_logits_stay_to_ten_digits_in_float64(family, toy_config, toy_weights, toy_tokens):
    with jax.enable_x64(True):
        config = toy_config(**FAMILIES[family])
        weights = toy_weights(config, np.float64)
        expected = logits(config, weights, toy_tokens[:1], jnp.float64)
        for name in ("hadamard", "random"):
            coordinates = jax.tree.map(lambda x: x.astype(jnp.float64), chosen(name, config))
            # Float32 rotations are orthonormal to 1e-7: make them so to 1e-16.
            coordinates = jax.tree.map(lambda x: jnp.linalg.qr(x)[0] if x.ndim == 2 else x, coordinates)
            moved = rotate(config, fold_norms(config, weights), coordinates)
            result = logits(*dense_network(config, moved), toy_tokens[:1], jnp.float64)
            np.testing.assert_allclose(result, expected, atol=1e-10 * np.abs(expected).max())


def test_rotation_changes_every_matrix(toy):
    folded = fold_norms(toy.config, toy.weights)
    moved = rotate(toy.config, folded, chosen("random", toy.config))
    for name in folded:
        if is_linear(name) or name == EMBEDDING:
            assert np.abs(moved[name] - folded[name]).max() > 0.01, name
            np.testing.assert_allclose(np.linalg.norm(moved[name]), np.linalg.norm(folded[name]), rtol=1e-5)


def test_folding_reads_nothing_before_it_is_asked(toy):
    reads = set()

    class Watched(dict):
        def __getitem__(self, name):
            reads.add(name)
            return super().__getitem__(name)

    folded = fold_norms(toy.config, Watched(toy.weights))
    assert set(rotate(toy.config, folded, chosen("dct", toy.config))) - {HEAD_MIX} == set(toy.weights) - {FINAL_NORM}
    assert reads <= {next(iter(toy.weights))}  # which the type checker of the tests looks at


def test_folded_gains_are_one_and_the_rest_stay(toy_config, toy_weights):
    for tied in (True, False):
        config = toy_config(tie_word_embeddings=tied)
        weights = toy_weights(config)
        folded = fold_norms(config, weights)
        assert (FINAL_NORM in folded_gains(config)) == (not tied)
        for name in folded_gains(config):
            np.testing.assert_array_equal(folded[name], 1)
        if tied:
            np.testing.assert_array_equal(folded[FINAL_NORM], weights[FINAL_NORM])


def test_head_mix_is_symmetric_and_has_the_gains_as_eigenvalues(widths):
    gain = np.linspace(0.5, 2, 12).astype(np.float32)
    coordinates = choose_coordinates("random", widths, key=jax.random.key(0))
    mix = head_mix(coordinates.residual, gain)
    np.testing.assert_array_equal(mix, mix.T)
    np.testing.assert_allclose(np.linalg.eigvalsh(mix), gain, rtol=1e-5)


@pytest.fixture
def widths(toy_config):
    return toy_config(hidden_size=12, head_dim=4, intermediate_size=20)


def test_coordinates_by_name_are_orthonormal_and_fit(widths):
    for name in NAMES:
        coordinates = choose_coordinates(name, widths, key=jax.random.key(0), second_moment=np.diag(np.arange(1.0, 13)))
        for transform, size in zip((coordinates.residual, coordinates.values, coordinates.hidden), (12, 4, 20)):
            assert transform.is_orthonormal
            matrix = transform.forward(jnp.eye(size))
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


def test_klt_without_a_moment_and_unknown_names_are_refused(widths):
    with pytest.raises(ValueError, match="second moment"):
        choose_coordinates("klt", widths, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'wavelet'.*identity, hadamard"):
        choose_coordinates("wavelet", widths, key=jax.random.key(0))


@pytest.mark.parametrize("kind", ["q", "k", "v", "o", "gate", "up", "down"])
def test_roles(kind):
    name = linear_name(11, kind)
    assert (kind_of(name), layer_of(name), is_linear(name)) == (kind, 11, True)
    assert kind_of(name.replace("weight", "bias")) == "bias"
    assert (kind in NORM_OF) == (kind in {"q", "k", "v", "gate", "up"})


def test_roles_outside_the_blocks():
    assert [kind_of(name) for name in (EMBEDDING, HEAD, FINAL_NORM)] == ["embedding", "head", "norm"]
    assert layer_of(HEAD) is None
    assert not is_linear(HEAD)


def test_derived_weights_replace_add_remove_in_order():
    source = {"a": np.array([1]), "b": np.array([2]), "c": np.array([3])}
    rules = {"b": lambda w: w["a"] + 10, "d": lambda w: w["b"] * 100}
    derived = DerivedWeights(source, rules, without=frozenset({"c"}))
    assert {name: x.item() for name, x in derived.items()} == {"a": 1, "b": 11, "d": 200}
    assert list(derived) == ["a", "b", "d"]
    assert len(derived) == 3
    assert "c" not in derived
    with pytest.raises(KeyError):
        derived["c"]
