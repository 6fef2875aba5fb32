"""Coordinates and the codec: exact inverses, errors where they were aimed, bytes that are really there."""

import numpy as np
import pytest
from occ_toy.coding import (
    RatePoint,
    best_tables,
    bytes_at,
    encode_columns,
    integer_error,
    quantize_columns,
    rate_distortion,
    relative_steps,
)
from occ_toy.coordinates import hessian_basis, original, rotated, source_klt
from occ_toy.measures import describe_coefficients, describe_sensitivity

from occ_jax.codec import decode_tensor

SIZE = 32
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(SIZE, SIZE)) * 2.0 ** -np.linspace(0, 4, SIZE)[None, :]
HESSIAN = FACTOR @ FACTOR.T + 0.01 * np.eye(SIZE)
THETA = RNG.normal(size=(16, SIZE)) * 2.0 ** -np.linspace(0, 3, SIZE)[None, :]


def weighted(theta):
    error = theta - THETA
    return float(np.einsum("ij,jk,ik->", error, HESSIAN, error) / np.einsum("ij,jk,ik->", THETA, HESSIAN, THETA))


def systems():
    return [original(HESSIAN), rotated(HESSIAN, seed=0), hessian_basis(HESSIAN), source_klt(HESSIAN, THETA)]


@pytest.mark.parametrize("coordinates", systems(), ids=lambda c: c.name)
def test_coordinates_are_undone_and_know_their_sensitivity(coordinates):
    np.testing.assert_allclose(THETA @ coordinates.forward @ coordinates.inverse, THETA, atol=1e-4)
    pulled = coordinates.inverse @ HESSIAN @ coordinates.inverse.T
    np.testing.assert_allclose(np.diag(pulled), coordinates.sensitivity, rtol=1e-3)
    if coordinates.name in ("hessian", "klt"):
        assert np.abs(pulled - np.diag(np.diag(pulled))).max() < 1e-4 * np.abs(pulled).max()


def test_the_klt_of_a_source_is_the_same_in_every_basis_of_one_span():
    change = RNG.normal(size=(SIZE, SIZE))
    other = source_klt(np.linalg.inv(change) @ HESSIAN @ np.linalg.inv(change).T, THETA @ change)
    here = source_klt(HESSIAN, THETA)
    energies = [np.square(t @ c.forward).mean(0) for t, c in ((THETA, here), (THETA @ change, other))]
    np.testing.assert_allclose(energies[0][:8], energies[1][:8], rtol=1e-3)


@pytest.mark.parametrize("coordinates", systems(), ids=lambda c: c.name)
def test_decoded_functions_have_the_error_that_was_aimed_at(coordinates):
    power = float(np.einsum("ij,jk,ik->", THETA, HESSIAN, THETA)) / len(THETA)
    points = rate_distortion(THETA, coordinates, weighted, [1e-4, 1e-2], power=power)
    assert points[0].error == pytest.approx(1e-4, rel=0.5)
    assert points[0].error < points[1].error < 3e-2
    assert points[0].bytes_per_function > points[1].bytes_per_function > 0


def test_columns_are_coded_without_loss_of_an_index():
    levels = np.arange(SIZE, dtype=np.int32)
    (coded,) = encode_columns([quantize_columns(THETA, 0.1, levels)])
    steps = 0.1 * 2.0 ** (levels / 8)
    np.testing.assert_allclose(decode_tensor(coded), np.rint(THETA / steps) * steps, rtol=1e-5, atol=1e-6)
    assert coded.num_bytes == sum(len(section) for section in coded.sections.values())


def test_every_column_names_the_table_of_its_width():
    q = np.rint(np.array([0.0, 1.0, 30.0])[None, :] * RNG.normal(size=(400, 3))).astype(np.int32)
    widths = best_tables(q) // 3
    assert widths[0] == 0
    assert abs(widths[1] - 8) <= 1
    assert abs(widths[2] - (8 + 2 * np.log2(30))) <= 1


def test_steps_follow_the_sensitivity_down_to_a_floor():
    assert relative_steps(np.array([16.0, 4.0, 1.0, 0.0])).tolist() == [0, 8, 16, 80]


def test_bytes_are_interpolated_only_between_measurements():
    points = [RatePoint(bytes_per_function=b, error=e) for b, e in ((40.0, 1e-4), (20.0, 1e-2), (10.0, 1e-1))]
    assert bytes_at(points, 1e-2) == pytest.approx(20)
    assert bytes_at(points, 1e-3) == pytest.approx(30)
    assert bytes_at(points, 1e-5) is None
    assert bytes_at(points, 0.5) is None


def test_shared_scales_pay_for_an_outlier():
    calm = RNG.normal(size=(4, SIZE))
    spiky = calm.copy()
    spiky[:, 0] = 30

    def error(theta, y):
        return lambda decoded: float(np.square(decoded - y).sum())

    flat = original(np.eye(SIZE))
    assert integer_error(spiky, flat, error(spiky, spiky)) > 20 * integer_error(calm, flat, error(calm, calm))


def test_measures_know_spikes_and_directions():
    spiky, flat = np.zeros((4, 64)), np.ones((4, 64))
    spiky[:, 0] = 1
    assert describe_coefficients(spiky).linf_rms == pytest.approx(8)
    assert describe_coefficients(spiky).effective_dimension == pytest.approx(1 / 64)
    assert describe_coefficients(flat * np.array([1.0, -1.0] * 32)[None, :]).effective_dimension == pytest.approx(1)
    turned = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert describe_sensitivity(turned).axis_alignment == pytest.approx(0.8)
    assert describe_sensitivity(np.diag([3.0, 1.0])).axis_alignment == 1
