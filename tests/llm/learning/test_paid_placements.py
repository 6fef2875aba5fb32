"""Placements that are paid for: a matrix stores what undoes its own rotation, and the network stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.checkpoints import load_checkpoint
from occ_llm.compression import Settings, compress
from occ_llm.compression.network import prepare_network
from occ_llm.coordinates import choose_coordinates
from occ_llm.learning.placements import learned_coordinates
from occ_llm.model import LanguageModel
from occ_llm.roles import is_linear, kind_of
from occ_llm.stored_coordinates import save_coordinates

READERS = {"attention-inputs": "qkv", "o-inputs": "o", "mlp-inputs": ("gate", "up"), "hidden": ("down",)}

each_placement = pytest.mark.parametrize("placement", READERS)


@pytest.fixture
def transforms(toy, toy_statistics, drawn_parameters, tmp_path):
    """A file of learned coordinates with random parameters for one placement alone."""

    def write(placement: str, structure: str):
        start = choose_coordinates("identity", toy.config, key=jax.random.key(0))
        parameters = drawn_parameters(toy.config, (placement,), start, structure=structure)
        drawn = learned_coordinates(toy.config, start, parameters)
        path, digest = tmp_path / "transforms.safetensors", toy_statistics.fingerprint.model
        save_coordinates(path, toy.config, drawn, model=toy.name, model_digest=digest, about={})
        return path

    return write


def logits(config, weights, tokens):
    return np.asarray(LanguageModel.from_weights(config, weights)(tokens))


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("structure", ["butterfly", "kronecker"])
@each_placement
def test_what_is_stored_with_a_matrix_undoes_its_rotation(
    placement, structure, toy, toy_statistics, toy_folded, toy_tokens, transforms
):
    chosen = {"coordinates": "learned", "transforms": transforms(placement, structure)}
    network = prepare_network(toy.config, toy.weights, toy_statistics, **chosen)
    coded = {name: network.coded_transform(name) for name in network.weights if is_linear(name)}
    assert {kind_of(name) for name, found in coded.items() if found is not None} == set(READERS[placement])
    turned, opened = dict(network.weights), dict(network.weights)
    for name, w in network.weights.items():
        np.testing.assert_array_equal(w, toy_folded[name], err_msg="nothing is fused into the network")
        if coded.get(name) is not None:
            turned[name] = network.coefficients(name)
            opened[name] = np.asarray(coded[name].decoded().inverse(jnp.asarray(turned[name])))
            assert relative_error(turned[name], w) > 0.05, name
            assert relative_error(opened[name], w) < 2e-6, name
    expected, found, without = (
        logits(toy.config, weights, toy_tokens[:1, :32]) for weights in (toy.weights, opened, turned)
    )
    assert relative_error(found, expected) < 5e-5
    assert relative_error(without, expected) > 0.05, "nothing else undoes it"


@pytest.mark.usefixtures("own_cache")
@each_placement
def test_a_file_at_a_fine_step_is_the_network(placement, toy, toy_statistics, toy_tokens, transforms, tmp_path):
    """All that is left is quantization: an error of about a hundred steps."""
    step, tokens = 1e-5, toy_tokens[:1, :32]
    settings = Settings(step=step, states=1, coordinates="learned", transforms=transforms(placement, "kronecker"))
    compress(toy, tmp_path / "out", toy_statistics, settings)
    opened = load_checkpoint(tmp_path / "out")
    expected = logits(toy.config, toy.weights, tokens)
    assert relative_error(logits(opened.config, opened.weights, tokens), expected) < 200 * step
