"""Learned coordinates of a source: structure that the KLT cannot see is found, and noise does not pay."""

import numpy as np
import pytest
from occ_toy.coding import bytes_at, rate_distortion
from occ_toy.coordinates import source_klt
from occ_toy.learned import learned

SIZE = 8
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]


def spikes(rng, count):
    """Independent axes of equal energy, most of them silent, seen in turned coordinates: every basis is a KLT."""
    return (rng.normal(size=(count, SIZE)) * (rng.uniform(size=(count, SIZE)) < 0.1)) @ TURN


def gaussian(rng, count):
    return rng.normal(size=(count, SIZE)) * 2.0 ** -np.arange(SIZE)[None, :] @ TURN


def saved(sample):
    """Share of the bytes of the KLT that learned axes save on draws that training has not seen."""
    typical, theta = sample(np.random.default_rng(2), 2048), sample(np.random.default_rng(3), 256)
    hessian, power = np.eye(SIZE), float(np.square(theta).sum() / len(theta))
    klt = source_klt(hessian, typical)
    turned = learned(klt, typical, step=float(np.sqrt(12 * 0.01 * power / SIZE)))
    np.testing.assert_allclose(turned.forward @ turned.inverse, np.eye(SIZE), atol=1e-5)
    np.testing.assert_allclose(turned.forward @ turned.forward.T, np.eye(SIZE), atol=1e-5)
    assert turned.basis_bytes > klt.basis_bytes

    def error(decoded):
        return float(np.square(decoded - theta).sum() / np.square(theta).sum())

    sizes = [bytes_at(rate_distortion(theta, c, error, [3e-3, 0.3], power=power), 1e-2) for c in (klt, turned)]
    return 1 - sizes[1] / sizes[0]


def test_independent_axes_are_found_where_the_klt_sees_none():
    assert saved(spikes) > 0.2


def test_nothing_is_gained_on_a_gaussian_source():
    assert saved(gaussian) == pytest.approx(0, abs=0.02)


def test_axes_under_the_water_level_stay_where_they_are():
    typical = gaussian(np.random.default_rng(2), 512)
    klt = source_klt(np.eye(SIZE), typical)
    turned = learned(klt, typical, step=1.0)
    np.testing.assert_array_equal(turned.forward[:, 2:], klt.forward[:, 2:])
    assert not np.allclose(turned.forward[:, :2], klt.forward[:, :2])
