"""Rows that make up for each other: less of the error that inputs and outputs weigh, at the same size."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from occ_llm.bench import Method
from occ_llm.calibration import calibrate
from occ_llm.calibration.statistics import fisher_name
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.compression import Settings, compress
from occ_llm.compression.network import prepare_network
from occ_llm.compression.survey import survey
from occ_llm.roles import is_linear, linear_name

from occ_jax.codec import decode_tensor, open_container

pytestmark = pytest.mark.usefixtures("own_cache")

BITS = 3.0


def weighted_error(network, place) -> float:
    """Half the sum of tr(G E H E^T) over the linear layers."""
    total = 0.0
    with open_container(place / CONTAINER) as container:
        for name in filter(is_linear, container):
            error = (decode_tensor(container[name]) - network.weights[name]).astype(np.float64)
            fisher, hessian = network.statistics.fisher_matrix(name), network.statistics.hessian(name)
            total += np.sum((fisher @ error) * (error @ hessian)) / 2
    return total


@pytest.mark.parametrize("coordinates", ["identity", "hadamard", "klt"])
def test_the_weighted_error_is_smaller_at_the_same_size(coordinates, toy, toy_statistics, tmp_path):
    settings = Settings(bits=BITS, coordinates=coordinates, states=4)
    network = prepare_network(toy.config, toy.weights, toy_statistics, coordinates=coordinates)
    errors = {}
    for outputs in ("never", "always"):
        chosen = dataclasses.replace(settings, output_feedback=outputs)
        made = compress(toy, tmp_path / outputs, toy_statistics, chosen)
        assert made.sizes.linear_bits_per_weight == pytest.approx(BITS, rel=0.005)
        errors[outputs] = weighted_error(network, tmp_path / outputs)
    assert errors["always"] < 0.97 * errors["never"]


def test_steps_follow_what_an_error_costs_when_it_is_made(toy, toy_statistics):
    settings = Settings(bits=BITS, output_feedback="always")
    with survey(toy, toy_statistics, settings) as found:
        assert found.outputs is not None
        for name, plan in found.plans.items():
            if is_linear(name):
                levels = 8 * np.log2(np.asarray(found.outputs.load(name).weights) ** -0.5)
                assert np.abs(plan.step_rows - levels).max() <= 0.5 + 1e-3
        assert found.serves(settings)
        assert not found.serves(Settings(bits=BITS, output_feedback="never"))


def test_a_file_is_the_same_every_time_and_says_how_it_was_made(toy, toy_statistics, tmp_path):
    settings = Settings(step=0.02, states=4, output_feedback="always")
    for name in ("a", "b"):
        compress(toy, tmp_path / name, toy_statistics, settings)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]["output_feedback"] is True
    assert "along inputs and outputs" in (tmp_path / "a" / "README.md").read_text()


def test_blocks_in_sequence_keep_it(toy, toy_config, toy_weights, toy_tokens, text, tmp_path):
    config = toy_config(tie_word_embeddings=False)
    model = dataclasses.replace(toy, config=config, weights=toy_weights(config))
    statistics = calibrate(config, model.weights, toy_tokens, key=jax.random.key(0))
    settings = Settings(step=0.05, sequential=True, output_feedback="always", states=4)
    made = compress(model, tmp_path / "out", statistics, settings, tokens=text)
    assert made.sizes.file_bytes == (tmp_path / "out" / CONTAINER).stat().st_size


@pytest.mark.parametrize("outputs", ["never", "always"])
def test_outputs_that_nothing_listens_to_are_coded_all_the_same(outputs, toy, toy_statistics, tmp_path):
    """A block whose output projection is zero has values without any influence."""
    silent = {name: np.zeros_like(toy_statistics.tensors[fisher_name(linear_name(0, name))]) for name in "v"}
    tensors = {**toy_statistics.tensors, **{fisher_name(linear_name(0, name)): zero for name, zero in silent.items()}}
    statistics = dataclasses.replace(toy_statistics, tensors=tensors)
    made = compress(toy, tmp_path / "out", statistics, Settings(bits=BITS, states=1, output_feedback=outputs))
    assert made.sizes.linear_bits_per_weight == pytest.approx(BITS, rel=0.005)


def test_without_feedback_along_inputs_there_is_none_along_outputs(toy, toy_statistics):
    settings = Settings(bits=BITS, feedback=False, output_feedback="always")
    with survey(toy, toy_statistics, settings) as found:
        assert found.outputs is None


@pytest.mark.parametrize(
    ("chosen", "low"),
    [
        ({"bits": 2.5}, True),
        ({"bits": 3.0}, False),
        ({"step": 0.1}, False),
        ({"kl": 0.3}, True),
        ({"kl": 0.02}, False),
        ({"bytes": 370_000}, True),
        ({"bytes": 380_000}, False),
    ],
)
def test_low_rates_are_finished_and_feed_rows_by_default(chosen, low):
    decided = Settings(**chosen).decided(1_000_000)
    assert (decided.feeds_rows, decided.finish) == (low, "always" if low else "never")
    assert not Settings(**chosen, output_feedback="never").decided(1_000_000).feeds_rows
    assert not Settings(**chosen, feedback=False).decided(1_000_000).feeds_rows
    assert Settings(**chosen, finish="always").decided(1_000_000).finish == "always"
    assert decided.decided(1_000_000) == decided


def test_a_target_divergence_above_the_threshold_gets_both(toy, toy_statistics, text, tmp_path):
    held = dataclasses.replace(text, held_back=text.finishing[:1])
    for name, kl in (("low", 0.3), ("high", 0.05)):
        compress(toy, tmp_path / name, toy_statistics, Settings(kl=kl, states=1, finish_steps=4), tokens=held)
    low, high = ((tmp_path / name / "README.md").read_text() for name in ("low", "high"))
    assert "along inputs and outputs" in low
    assert "row scales and norm gains" in low
    assert "along inputs and outputs" not in high
    assert "row scales and norm gains" not in high


def test_a_method_of_the_bench():
    method = Method(coordinates="identity", quantizer="trellis-8-outputs-finished")
    assert method.extras == ("outputs", "finished")
    assert method.label == "trellis 8, outputs, finished"
    assert (method.states, method.group_size, method.feedback) == (8, None, True)
