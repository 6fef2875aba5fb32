"""Statistics by name, and in other coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import Statistics, calibrate, rotate_statistics, sandwich
from occ_llm.coordinates import Coordinates, choose_coordinates, rotate
from occ_llm.folding import fold_norms
from occ_llm.roles import EMBEDDING, HEAD, LINEAR_KINDS, linear_name

from occ_jax.transforms import Identity, Transform, blockwise, random_rotation

KEY = jax.random.key(3)


@pytest.fixture
def coordinates(config) -> Coordinates:
    keys = jax.random.split(jax.random.key(0), 3)
    return Coordinates(
        random_rotation(config.hidden_size, key=keys[0]),
        random_rotation(config.head_dim, key=keys[1]),
        random_rotation(config.intermediate_size, key=keys[2]),
    )


@pytest.mark.parametrize("values_turn", [False, True])
def test_rotated_statistics_are_those_of_the_rotated_network(config, calibrated, coordinates, values_turn):
    """All but the inputs of ``down_proj``, whose transform belongs to the coded matrix and not to the network.

    The weight of a token is a mean over single outputs, so where these turn it is another one, though not by much.
    """
    coordinates = coordinates if values_turn else dataclasses.replace(coordinates, values=Identity())
    weights, windows, statistics = calibrated
    network = rotate(config, fold_norms(config, weights), coordinates)
    expected = calibrate(config, network, windows, key=KEY)
    found = rotate_statistics(statistics, dataclasses.replace(coordinates, hidden=Identity()))
    assert set(found.tensors) == set(expected.tensors)
    for name, value in expected.tensors.items():
        scale = np.abs(value).max()
        weighted = "attention_in.weighted" in name or any(f"{kind}_proj.fisher" in name for kind in "qkv")
        most = 0.05 if values_turn and weighted else 1e-4
        np.testing.assert_allclose(found.tensors[name], value, rtol=0, atol=most * scale, err_msg=name)


def test_the_rotation_really_changes_what_it_should(config, calibrated, coordinates):
    statistics = calibrated[2]
    rotated = rotate_statistics(statistics, coordinates)
    for kind in LINEAR_KINDS:
        name = linear_name(1, kind)
        assert not np.allclose(rotated.hessian(name), statistics.hessian(name), rtol=0.05)
        same = np.allclose(rotated.fisher(name), statistics.fisher(name), rtol=0.05)
        assert same == (kind in ("q", "k", "gate", "up"))


def test_hidden_units_follow_the_transform_of_the_coded_matrix(config, calibrated, coordinates):
    statistics, name = calibrated[2], linear_name(0, "down")
    basis = np.asarray(coordinates.hidden.forward(jnp.eye(config.intermediate_size))).T
    expected = basis @ statistics.hessian(name) @ basis.T
    found = rotate_statistics(statistics, coordinates).hessian(name)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_identity_coordinates_change_nothing(config, calibrated):
    statistics = calibrated[2]
    rotated = rotate_statistics(statistics, choose_coordinates("identity", config, key=KEY))
    for name, value in statistics.tensors.items():
        np.testing.assert_allclose(rotated.tensors[name], value, rtol=1e-6, err_msg=name)


def test_rotation_keeps_traces_and_spectra(config, calibrated, coordinates):
    statistics = calibrated[2]
    rotated = rotate_statistics(statistics, coordinates)
    for name, value in statistics.tensors.items():
        if value.ndim == 2:
            found = np.linalg.eigvalsh(rotated.tensors[name].astype(np.float64))
            expected = np.linalg.eigvalsh(value.astype(np.float64))
            np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max(), err_msg=name)


def test_nothing_is_read_until_it_is_asked_for(calibrated, coordinates):
    reads = []

    class Recorded(dict):
        def __getitem__(self, name):
            reads.append(name)
            return super().__getitem__(name)

    statistics = calibrated[2]
    rotated = rotate_statistics(dataclasses.replace(statistics, tensors=Recorded(statistics.tensors)), coordinates)
    assert rotated.has_fisher
    assert set(reads) <= {"model.embed_tokens.counts"}  # the type checker of the tests looks at the first item
    rotated.hessian(HEAD)
    assert reads[-1] == "lm_head.hessian"


def test_only_rotations_move_statistics(calibrated):
    @dataclasses.dataclass(frozen=True)
    class Shear(Transform):
        is_orthonormal = False

        def forward(self, x):
            return 2 * x

        def inverse(self, y):
            return y / 2

    with pytest.raises(ValueError, match="residual stream is not orthonormal"):
        rotate_statistics(calibrated[2], Coordinates(Shear(), Identity(), Identity()))


def test_sandwich_is_a_change_of_basis():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 8)).astype(np.float32)
    matrix = matrix @ matrix.T
    transform = blockwise(random_rotation(4, key=KEY), 4)
    basis = np.asarray(transform.forward(jnp.eye(8))).T
    found = sandwich(transform, matrix)
    np.testing.assert_allclose(found, basis @ matrix @ basis.T, atol=1e-5)
    np.testing.assert_array_equal(found, found.T)


def test_layers_that_read_the_same_input_share_its_second_moment(calibrated):
    statistics: Statistics = calibrated[2]
    for group in (("q", "k", "v"), ("gate", "up")):
        first, *others = (statistics.hessian(linear_name(1, kind)) for kind in group)
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_diagonals_of_full_fisher_matrices(config, calibrated):
    statistics = calibrated[2]
    for name in (EMBEDDING, *(linear_name(0, kind) for kind in LINEAR_KINDS)):
        np.testing.assert_array_equal(statistics.fisher(name), np.diagonal(statistics.fisher_matrix(name)))
    assert statistics.fisher(HEAD).shape == (config.vocab_size,)
    assert statistics.fisher_matrix(linear_name(0, "up")).shape == 2 * (config.intermediate_size,)


def test_residual_moment_averages_what_reads_the_stream(config, calibrated):
    statistics = calibrated[2]
    expected = np.mean([statistics.hessian(linear_name(i, kind)) for i in range(2) for kind in ("q", "gate")], axis=0)
    np.testing.assert_allclose(statistics.residual_moment(), expected, rtol=1e-5)


def test_questions_without_an_answer(config, calibrated):
    weights, windows, statistics = calibrated
    with pytest.raises(ValueError, match="reads no activations"):
        statistics.hessian(EMBEDDING)
    with pytest.raises(ValueError, match="reads no activations"):
        statistics.hessian("model.norm.weight")
    with pytest.raises(ValueError, match="only the diagonal"):
        statistics.fisher_matrix(HEAD)
    with pytest.raises(ValueError, match="is not a matrix"):
        statistics.fisher("model.norm.weight")
    forward = calibrate(config, weights, windows, key=KEY, fisher=False)
    with pytest.raises(ValueError, match="calibrate with fisher=True"):
        forward.fisher(HEAD)


def test_weighted_tokens_share_the_cost_of_errors_with_all_tokens(config, calibrated):
    """What reads the stream has a moment of weighted tokens, shrunk at its own trace; the others have the plain one."""
    statistics = calibrated[2]
    for kind in LINEAR_KINDS:
        name = linear_name(1, kind)
        found, plain = statistics.error_moment(name), statistics.hessian(name)
        if not statistics.weights_tokens(name):
            assert kind in ("o", "down")
            np.testing.assert_array_equal(found, plain)
            continue
        tap = "attention_in" if kind in ("q", "k", "v") else "mlp_in"
        weighted = statistics.tensors[f"model.layers.1.{tap}.weighted"]
        np.testing.assert_allclose(np.trace(found), np.trace(weighted), rtol=1e-5)
        np.testing.assert_allclose(found - weighted / 2, plain * np.trace(weighted) / np.trace(plain) / 2, atol=1e-5)
        assert not np.allclose(found, plain * np.trace(found) / np.trace(plain), rtol=0.02)
    assert statistics.error_moment(HEAD) is statistics.hessian(HEAD)
    forward = dataclasses.replace(
        statistics, tensors={n: a for n, a in statistics.tensors.items() if "fisher" not in n}
    )
    assert not forward.weights_tokens(linear_name(1, "q"))
