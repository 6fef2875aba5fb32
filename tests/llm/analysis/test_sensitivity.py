"""Sensitivity: equal norms, the right directions, and a formula that holds where it must."""

import numpy as np
import pytest
from occ_llm.analysis.divergence import Trial
from occ_llm.analysis.sensitivity import DIRECTIONS, SAMPLES, error_in, measure_injections, share_of_top

UP = "model.layers.1.mlp.up_proj.weight"


def test_errors_have_one_norm_and_their_own_directions(subject, toy):
    w, basis = toy.weights[UP], np.asarray(subject.bases.of(UP).basis)
    for directions, part in (("all", slice(None)), ("high", slice(0, 5)), ("low", slice(-5, None))):
        error = error_in(subject, UP, w, directions)
        assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(w), rel=1e-5)
        inside = np.linalg.norm(error @ basis[:, part])
        assert inside == pytest.approx(np.linalg.norm(w), rel=1e-4)
        assert (error_in(subject, UP, w, directions) == error).all(), "the same errors every time"


def test_the_formula_is_right_for_small_errors_on_its_own_text(subject, toy_tokens):
    """Fisher and second moments of the very tokens: what is left is the independence of inputs and gradients."""
    found = list(measure_injections(subject, Trial(subject, toy_tokens), targets=(1e-4, 1e-2)))
    assert [i.directions for i in found] == [d for d in DIRECTIONS for _ in range(2)]
    for injection in found:
        assert 0.5 < injection.measured / injection.predicted < 2
    small = {i.directions: i for i in found[::2]}
    assert small["high"].predicted > small["all"].predicted > small["low"].predicted
    assert small["high"].measured > small["low"].measured
    assert small["all"].predicted == pytest.approx(1e-4, rel=1e-5)


def test_spectra_cover_all_inputs_and_outputs(analysis, toy_statistics):
    assert len(analysis.spectra) == 2 * (4 + 7)
    for spectrum in analysis.spectra:
        assert len(spectrum.samples) == SAMPLES
        assert 1 <= spectrum.participation <= spectrum.entropy * (1 + 1e-5) <= spectrum.dimension * (1 + 2e-5)
        assert 0 < spectrum.top_percent <= spectrum.top_tenth <= 1
    first = next(s for s in analysis.spectra if s.what == "inputs" and s.space == "down_in")
    eigenvalues = np.linalg.eigvalsh(toy_statistics.hessian("model.layers.0.mlp.down_proj.weight").astype(np.float64))
    assert first.top_tenth == pytest.approx(eigenvalues[-8:].sum() / eigenvalues.sum(), rel=1e-4)
    assert share_of_top(np.ones(50), 0.1) == pytest.approx(0.1)
