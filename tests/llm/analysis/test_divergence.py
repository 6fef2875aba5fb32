"""Trials: no change is no divergence, coordinates are no change, and the divergence is the one of evaluation."""

import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.analysis import open_subject
from occ_llm.analysis.divergence import Trial, block_means
from occ_llm.analysis.subject import from_coordinates, to_coordinates
from occ_llm.evaluation import Reference, Windows, evaluate
from occ_llm.folding import fold_norms
from occ_llm.model import LanguageModel
from occ_llm.roles import linear_name


@pytest.fixture(scope="module")
def trial(subject, trial_tokens) -> Trial:
    return Trial(subject, trial_tokens)


def test_coordinates_leave_the_function_as_it_is(subject, trial):
    for coordinates in subject.systems:

        def there_and_back(name, w, coordinates=coordinates):
            transform = subject.transform(name, coordinates)
            return np.asarray(from_coordinates(transform, to_coordinates(transform, jnp.asarray(w))))

        assert abs(trial.measure(trial.changed_by(there_and_back)).mean) < 1e-6


def test_a_trial_measures_what_evaluation_measures(subject, trial, trial_tokens, toy):
    factor = 1.02
    found = trial.measure(trial.changed_by(lambda name, w: np.float32(factor) * w))
    folded = fold_norms(toy.config, toy.weights)
    changed = {name: np.float32(factor) * w if name in subject.matrices else w for name, w in folded.items()}
    windows = Windows(tokens=trial_tokens, num_bytes=1)
    reference = Reference(LanguageModel.from_weights(toy.config, toy.weights))
    expected = evaluate(LanguageModel.from_weights(toy.config, changed), windows, reference=reference)
    assert found.mean == pytest.approx(expected.kl_mean, rel=1e-2)
    assert found.mean > 1e-5


def test_multiples_of_a_change(trial):
    moved = trial.changed_by(lambda name, w: np.float32(1.1) * w)
    nothing, half, whole = trial.scaled(moved, [0.0, 0.5, 1.0])
    assert abs(nothing.mean) < 1e-6
    assert 0 < half.mean < whole.mean
    assert whole.mean == pytest.approx(trial.measure(moved).mean, rel=1e-3)


def test_layers_that_are_not_looked_at_stay(toy, toy_statistics, trial_tokens, subject):
    with open_subject(toy.config, toy.weights, toy_statistics, key=subject.key, layers=[1]) as part:
        assert part.matrices == tuple(linear_name(1, kind) for kind in ("q", "k", "v", "o", "gate", "up", "down"))
        changed = Trial(part, trial_tokens).changed_by(lambda name, w: 0 * w).weights()
    assert not changed[linear_name(1, "up")].any()
    assert (changed[linear_name(0, "o")] == toy.weights[linear_name(0, "o")]).all()


def test_differences_are_paired():
    assert block_means(np.arange(128.0)) == [31.5, 95.5]
