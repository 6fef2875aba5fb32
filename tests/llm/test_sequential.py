"""Blocks in sequence: the inputs are those of the quantized network, sizes are met, interruptions cost nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from occ_llm.bench import Method
from occ_llm.calibration import QuantizedPrefix, calibrate
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.compression import Settings, compress
from occ_llm.compression.network import prepare_network
from occ_llm.compression.sequential import carried
from occ_llm.errors import OccError
from occ_llm.roles import EMBEDDING, HEAD, LINEAR_KINDS, linear_name

from occ_jax.codec import decode_tensor, open_container

COARSE = 0.06


pytestmark = pytest.mark.usefixtures("own_cache")


def decoded(place) -> dict[str, np.ndarray]:
    """Matrices of a file, in the coordinates of its network."""
    with open_container(place / CONTAINER) as container:
        return {n: decode_tensor(container[n]) for n in container if "proj" in n or n in (EMBEDDING, HEAD)}


def excess(network, found, names, hessians) -> float:
    """Error of some matrices under second moments, summed as the network weighs it."""
    total = 0.0
    for name in names:
        error = (found[name] - network.weights[name]).astype(np.float64)
        total += network.sensitivity(name).rows @ np.einsum("ij,jk,ik->i", error, hessians[name], error)
    return total


# Bases of the inputs leave one-shot feedback nothing to do, and at coarse steps renewed feedback little to win; in wrong
# coordinates the error would be a multiple.
@pytest.mark.parametrize(("coordinates", "most"), [("identity", 0.97), ("hadamard", 0.97), ("klt-inputs", 1.15)])
def test_errors_are_small_where_the_quantized_network_looks(
    coordinates, most, toy, toy_config, toy_weights, toy_tokens, text, tmp_path
):
    """At the same steps, block 1 fits the inputs that the quantized block 0 gives it better than one-shot feedback."""
    config = toy_config(tie_word_embeddings=coordinates != "identity")
    model = dataclasses.replace(toy, config=config, weights=toy_weights(config))
    statistics = calibrate(config, model.weights, toy_tokens, key=jax.random.key(0))
    settings = Settings(step=COARSE, coordinates=coordinates, states=8)
    compress(model, tmp_path / "one-shot", statistics, settings)
    compress(model, tmp_path / "sequence", statistics, dataclasses.replace(settings, sequential=True), tokens=text)
    one_shot, sequence = decoded(tmp_path / "one-shot"), decoded(tmp_path / "sequence")
    np.testing.assert_array_equal(one_shot[EMBEDDING], sequence[EMBEDDING])
    network = prepare_network(config, model.weights, statistics, coordinates=coordinates)
    prefix = QuantizedPrefix(config, dict(network.weights) | {EMBEDDING: sequence[EMBEDDING]}, text.calibration)
    prefix.advance({linear_name(0, kind): sequence[linear_name(0, kind)] for kind in LINEAR_KINDS})
    names, hessians = [linear_name(1, kind) for kind in LINEAR_KINDS], prefix.hessians()
    assert excess(network, sequence, names, hessians) < most * excess(network, one_shot, names, hessians)
    if not config.tie_word_embeddings:
        prefix.advance({name: sequence[name] for name in names})
        last = {HEAD: prefix.head_hessian()}
        assert excess(network, sequence, [HEAD], last) < most * excess(network, one_shot, [HEAD], last)


def test_bits_are_met_twice_with_the_same_bytes_also_after_an_interrupt(toy, toy_statistics, text, tmp_path):
    settings = Settings(bits=5.0, sequential=True, states=8)

    def interrupt(names, label):
        for number, name in enumerate(names):
            if label == "quantize in sequence" and number == 1:
                raise KeyboardInterrupt
            yield name

    with pytest.raises(KeyboardInterrupt):
        compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text, track=interrupt)
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.occ.safetensors"))
    assert len(kept) == 1 + len(LINEAR_KINDS), "the embedding and block 0 are finished"
    seen = []
    compress(toy, tmp_path / "a", toy_statistics, settings, tokens=text, track=lambda n, label: seen.append(label) or n)
    assert "probe" not in seen
    sizes = compress(toy, tmp_path / "b", toy_statistics, settings, tokens=text).sizes
    assert sizes.linear_bits_per_weight == pytest.approx(5.0, rel=0.005)
    assert (tmp_path / "a" / CONTAINER).read_bytes() == (tmp_path / "b" / CONTAINER).read_bytes()
    assert "block after block" in (tmp_path / "a" / "README.md").read_text()
    with open_container(tmp_path / "a" / CONTAINER) as container:
        assert container.model["sequential"] is True


def test_a_moment_is_carried_as_its_inputs_are():
    """What is weighted like the plain moment becomes the new plain moment; where inputs stay, nothing changes."""
    rng = np.random.default_rng(0)
    before, after, weighted = (a @ a.T for a in rng.standard_normal((3, 6, 9)))
    np.testing.assert_allclose(carried(before, before, after, damping=0.0), after, rtol=1e-9)
    np.testing.assert_allclose(carried(weighted, before, before, damping=0.01), weighted, rtol=1e-9)
    scaled = carried(weighted, before, 4 * before, damping=0.01)
    np.testing.assert_allclose(scaled, 4 * weighted, rtol=1e-9)


def test_without_text_or_feedback_there_is_no_sequence(toy, toy_statistics, tmp_path):
    with pytest.raises(OccError, match="calibration text once more"):
        compress(toy, tmp_path / "out", toy_statistics, Settings(step=0.1, sequential=True))
    with pytest.raises(OccError, match=r"--no-feedback leaves none"):
        Settings(step=0.1, sequential=True, feedback=False)


def test_a_bench_knows_the_variant():
    method = Method(coordinates="identity", quantizer="trellis-8-sequential-finished")
    assert method.extras == ("sequential", "finished")
    assert method.label == "trellis 8, sequential, finished"
    assert method.states == 8
    assert Method(coordinates="identity", quantizer="trellis-256").extras == ()
