"""Structure: planted structure is found, and the controls have none."""

import dataclasses

import numpy as np
import pytest
from occ_llm.analysis.structure import measure_structure, principal_cosines, smooth_skill


def skill_of(layers: np.ndarray):
    return smooth_skill(layers @ layers.T, range(len(layers)), np.random.default_rng(0))


def test_a_cubic_in_the_depth_is_predicted_exactly_and_no_shuffle_does_as_well():
    depth = np.linspace(-1, 1, 12)
    basis = np.stack([depth**k for k in range(4)], 1)
    skill, shuffled, p = skill_of(basis @ np.random.default_rng(1).standard_normal((4, 30)))
    assert skill == pytest.approx(1, abs=1e-9)
    assert shuffled < 0.3
    assert p == pytest.approx(1 / 201)


def test_noise_has_no_skill():
    skill, shuffled, p = skill_of(np.random.default_rng(2).standard_normal((12, 4000)))
    assert skill < 0
    assert skill == pytest.approx(shuffled, abs=0.1)
    assert p > 0.01


def test_prediction_leaves_the_predicted_layer_out():
    """Against fits made one by one."""
    layers = np.random.default_rng(3).standard_normal((13, 5)).cumsum(0)
    x = np.arange(13.0)

    def others(i):
        return np.delete(x, i), np.delete(layers, i, 0)

    residuals = [layers[i] - np.polyval(np.polyfit(*others(i), 3), x[i]) for i in range(13)]
    means = [layers[i] - others(i)[1].mean(0) for i in range(13)]
    expected = 1 - np.sum(np.square(residuals)) / np.sum(np.square(means))
    assert skill_of(layers)[0] == pytest.approx(expected, rel=1e-6)


def test_few_layers_say_nothing():
    assert skill_of(np.ones((3, 5))) == (None, None, None)


def test_principal_angles_of_known_planes():
    angle = 0.3
    plane = np.eye(4)[:, :2]
    turned = plane @ np.diag([np.cos(angle), 1]) + np.eye(4)[:, 2:] @ np.diag([np.sin(angle), 0])
    assert principal_cosines(plane, turned) == pytest.approx([1, np.cos(angle)])


def test_ranks_lie_between_one_and_full(analysis):
    assert len(analysis.ranks) == 2 * 7
    for rank in analysis.ranks:
        assert 0 < rank.effective_rank <= 1 + 1e-6
        assert (rank.overlap is None) == (rank.layer == 1)
    for rank in (r for r in analysis.ranks if r.overlap is not None):
        # Random weights: neighbours share nothing but chance.
        assert rank.overlap == pytest.approx(rank.overlap_chance, abs=0.25)
    assert all(depth.entries is None for depth in analysis.depths), "two layers are too few"


def test_low_rank_is_seen(subject, toy):
    name = subject.matrices[0]
    rng = np.random.default_rng(4)
    low = (rng.standard_normal((48, 3)) @ rng.standard_normal((3, 48))).astype(np.float32)
    planted = dataclasses.replace(subject, weights={**dict(subject.weights), name: low})
    ranks, _ = measure_structure(planted, ["q"])
    assert ranks[0].effective_rank < 3.01 / 48 < ranks[0].shuffled_rank / 2
