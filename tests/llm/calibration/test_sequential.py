"""Second moments through the quantized blocks before."""

import dataclasses

import jax
import numpy as np
import pytest
from occ_llm.calibration import QuantizedPrefix, calibrate, sandwich
from occ_llm.coordinates import choose_coordinates, rotate
from occ_llm.errors import OccError
from occ_llm.folding import fold_norms
from occ_llm.roles import LINEAR_KINDS, linear_name

KEY = jax.random.key(3)


def coarse(w: np.ndarray) -> np.ndarray:
    return np.round(w * 4) / np.float32(4)


def names(layer: int, kinds=LINEAR_KINDS) -> list[str]:
    return [linear_name(layer, kind) for kind in kinds]


@pytest.fixture
def network(config, calibrated):
    return dict(fold_norms(config, calibrated[0]))


def test_without_quantization_it_is_calibration(config, network, calibrated):
    _, windows, statistics = calibrated
    prefix = QuantizedPrefix(config, network, windows)
    while prefix.layer < config.num_layers:
        hessians = prefix.hessians()
        assert list(hessians) == names(prefix.layer)
        for name, hessian in hessians.items():
            np.testing.assert_allclose(hessian, statistics.hessian(name), atol=1e-5 * np.abs(hessian).max())
        prefix.advance({})
    np.testing.assert_allclose(prefix.head_hessian(), statistics.hessian("lm_head.weight"), rtol=1e-4, atol=1e-4)


def test_each_block_sees_the_quantized_ones_before_it(config, network, calibrated):
    """Against calibrating the half-quantized network as a whole."""
    windows = calibrated[1]
    prefix = QuantizedPrefix(config, network, windows)
    mixed = dict(network)
    while prefix.layer < config.num_layers:
        expected = calibrate(config, mixed, windows, key=KEY, fisher=False)
        hessians = prefix.hessians()
        for name, hessian in hessians.items():
            np.testing.assert_allclose(hessian, expected.hessian(name), atol=1e-5 * np.abs(hessian).max())
        quantized = {name: coarse(network[name]) for name in hessians}
        prefix.advance(quantized)
        mixed |= quantized
    expected = calibrate(config, mixed, windows, key=KEY, fisher=False)
    np.testing.assert_allclose(prefix.head_hessian(), expected.hessian("lm_head.weight"), rtol=1e-4, atol=1e-4)
    assert not np.allclose(expected.hessian(names(1)[0]), calibrated[2].hessian(names(1)[0]), rtol=0.01)


def test_a_block_may_be_quantized_in_sequence_inside(config, network, calibrated):
    windows = calibrated[1]
    prefix = QuantizedPrefix(config, network, windows)
    first = {name: coarse(network[name]) for name in names(0, "qkv")}
    expected = calibrate(config, network | first, windows, key=KEY, fisher=False)
    before, after = prefix.hessians(), prefix.hessians(first)
    for name in names(0):
        np.testing.assert_allclose(after[name], expected.hessian(name), atol=1e-5 * np.abs(after[name]).max())
    np.testing.assert_array_equal(before[linear_name(0, "q")], after[linear_name(0, "q")])
    assert not np.allclose(before[linear_name(0, "o")], after[linear_name(0, "o")], rtol=0.01)
    assert prefix.layer == 0


def test_batches_change_nothing_but_rounding(config, network, calibrated):
    windows = calibrated[1]
    together, apart = (
        QuantizedPrefix(config, network, windows),
        QuantizedPrefix(config, network, windows, batch_tokens=9),
    )
    for prefix in (together, apart):
        prefix.advance({})
    for name, hessian in together.hessians().items():
        np.testing.assert_allclose(apart.hessians()[name], hessian, atol=2e-6 * np.abs(hessian).max())


def test_rotated_networks_with_a_mixed_head(config, naive):
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    weights, windows = naive.weights(tied, 0), naive.windows(tied, 3, 9)
    statistics = calibrate(tied, weights, windows, key=KEY, fisher=False)
    coordinates = choose_coordinates("random", tied, key=KEY)
    prefix = QuantizedPrefix(tied, rotate(tied, fold_norms(tied, weights), coordinates), windows)
    for name, hessian in prefix.hessians().items():
        if name == linear_name(0, "q"):
            expected = sandwich(coordinates.residual, statistics.hessian(name))
            np.testing.assert_allclose(hessian, expected, atol=1e-5 * np.abs(hessian).max())
    for _ in range(tied.num_layers):
        prefix.advance({})
    expected = sandwich(coordinates.residual, statistics.hessian("lm_head.weight"))
    np.testing.assert_allclose(prefix.head_hessian(), expected, atol=1e-4 * np.abs(expected).max())


def test_out_of_turn(config, network, calibrated):
    prefix = QuantizedPrefix(config, network, calibrated[1])
    with pytest.raises(ValueError, match="block 0 is not quantized yet"):
        prefix.head_hessian()
    for _ in range(config.num_layers):
        prefix.advance({})
    with pytest.raises(ValueError, match="all 2 blocks are quantized"):
        prefix.hessians()
    with pytest.raises(ValueError, match="all 2 blocks are quantized"):
        prefix.advance({})


def test_broken_quantized_weights_are_named(config, network, calibrated):
    prefix = QuantizedPrefix(config, network, calibrated[1])
    name = linear_name(0, "o")
    prefix.advance({name: np.full_like(network[name], np.inf)})
    with pytest.raises(OccError, match=r"model\.layers\.1\.attention_in"):
        prefix.hessians()
