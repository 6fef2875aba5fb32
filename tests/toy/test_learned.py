"""Learned coordinates of a source: structure that the KLT cannot see is found, and noise does not pay."""

import numpy as np
import pytest
from occ_toy.coding import bytes_at, rate_distortion
from occ_toy.coordinates import Coordinates, source_klt
from occ_toy.learned import LearnedAxes, learn_axes, learned

SIZE = 8
LEVEL = 0.01
DESIGN = np.eye(SIZE)
HESSIAN = DESIGN.T @ DESIGN / SIZE
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]


def spikes(rng, count):
    """Independent axes of equal energy, most of them silent, seen in turned coordinates: every basis is a KLT."""
    return (rng.normal(size=(count, SIZE)) * (rng.uniform(size=(count, SIZE)) < 0.1)) @ TURN


def gaussian(rng, count):
    return rng.normal(size=(count, SIZE)) * 2.0 ** -np.arange(SIZE)[None, :] @ TURN


def both(sample, level=LEVEL) -> tuple[Coordinates, Coordinates]:
    """The KLT of a source and what is learned from it."""
    typical = sample(np.random.default_rng(2), 2048)
    klt = source_klt(HESSIAN, typical)
    return klt, learned(klt, learn_axes(typical, level=level), DESIGN)


def saved(sample):
    """Share of the bytes of the KLT that learned axes save on draws that training has not seen."""
    theta = sample(np.random.default_rng(3), 256)
    power = float(np.square(theta).mean())
    klt, turned = both(sample)
    np.testing.assert_allclose(turned.forward @ turned.inverse, np.eye(SIZE), atol=1e-5)
    np.testing.assert_allclose(turned.forward @ turned.forward.T, HESSIAN, atol=1e-5)
    assert turned.basis_bytes > klt.basis_bytes

    def error(decoded):
        return float(np.square(decoded - theta).sum() / np.square(theta).sum())

    sizes = [bytes_at(rate_distortion(theta, c, error, [3e-3, 0.3], power=power), LEVEL) for c in (klt, turned)]
    return 1 - np.divide(sizes[1], sizes[0])


def test_independent_axes_are_found_where_the_klt_sees_none():
    assert saved(spikes) > 0.2


def test_nothing_is_gained_on_a_gaussian_source():
    assert saved(gaussian) == pytest.approx(0, abs=0.02)


def test_axes_under_the_water_level_stay_where_they_are():
    klt, turned = both(gaussian, level=0.2)  # two axes are above
    np.testing.assert_array_equal(turned.forward[:, 2:], klt.forward[:, 2:])
    assert not np.allclose(turned.forward[:, :2], klt.forward[:, :2])


def test_representations_of_one_span_get_the_same_axes():
    typical = spikes(np.random.default_rng(2), 2048)
    axes = learn_axes(typical, level=LEVEL)
    change = np.random.default_rng(4).normal(size=(SIZE, SIZE))
    other = learned(source_klt(change.T @ change / SIZE, typical @ np.linalg.inv(change).T), axes, change)
    here = learned(source_klt(HESSIAN, typical), axes, DESIGN)
    np.testing.assert_allclose(change.T @ here.forward, other.forward, atol=1e-4)


def test_a_representation_with_few_axes_turns_those():
    typical = spikes(np.random.default_rng(2), 2048)
    design, axes = DESIGN[:, :3], LearnedAxes(forward=np.eye(SIZE) / np.sqrt(SIZE), basis_bytes=1)
    klt = source_klt(design.T @ design / SIZE, typical[:, :3])
    turned = learned(klt, axes, design)
    np.testing.assert_allclose(turned.forward, np.eye(3) / np.sqrt(SIZE), atol=1e-6)
    np.testing.assert_allclose(turned.forward @ turned.inverse, np.eye(3), atol=1e-6)
