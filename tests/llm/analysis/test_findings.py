"""Claims can fail: the same rule says yes and no, as the numbers do."""

import dataclasses

import pytest
from occ_llm.analysis import decide
from occ_llm.analysis.findings import (
    low_directions_are_cheap,
    norms_are_kept,
    outliers_vanish,
    places_matter,
    price_vanishes,
    rotation_is_blind,
    scales_are_smooth,
)
from occ_llm.analysis.means import alike, weighted


def changed(analysis, field, change):
    return dataclasses.replace(analysis, **{field: [change(row) for row in getattr(analysis, field)]})


def test_every_claim_is_decided_or_says_why(analysis):
    decided = decide(analysis)
    assert len(decided) == len({finding.claim for finding in decided}) == 15
    for finding in decided:
        assert finding.evidence
        assert finding.rule or finding.evidence.startswith("Not decided")


def test_norms(analysis):
    assert norms_are_kept(analysis).holds
    broken = changed(analysis, "regimes", lambda r: dataclasses.replace(r, norm_departure=0.01))
    assert not norms_are_kept(broken).holds


def test_a_system_that_leaves_some_matrices_alone_is_no_better_for_it(analysis):
    """Means are over all matrices: those that it does not move have their original coordinates."""
    names = sorted({r.matrix for r in analysis.regimes})
    learned = [
        dataclasses.replace(r, coordinates="learned")
        for r in analysis.regimes
        if r.coordinates == "identity" and r.matrix != names[0]
    ]
    mixed = [*learned, *analysis.regimes, *learned]
    assert weighted(mixed, "learned", "rate_bits") == pytest.approx(weighted(mixed, "identity", "rate_bits"))
    assert {r.matrix for r in alike(mixed, "learned")} == set(names)


@pytest.mark.parametrize(("left", "threshold", "holds"), [(0.1, 6.0, True), (0.9, 6.0, False), (0.1, 3.3, None)])
def test_outliers(analysis, left, threshold, holds):
    planted = changed(analysis, "outliers", lambda o: dataclasses.replace(o, survivors=left, threshold_rms=threshold))
    finding = outliers_vanish(planted)
    assert finding.holds is holds
    assert f"leaves {left:.0%} of the outliers" in finding.evidence


@pytest.mark.parametrize(
    ("original", "rotated", "error", "holds"),
    [(0.1, 0.01, 0.01, True), (0.1, 0.09, 0.01, False), (0.1, 0.01, 0.2, None)],
)
def test_prices(analysis, original, rotated, error, holds):
    def plant(price):
        cost = original if price.coordinates == "identity" else rotated
        return dataclasses.replace(price, difference=cost, difference_se=error)

    assert price_vanishes(changed(analysis, "prices", plant)).holds is holds


@pytest.mark.parametrize(("scattered", "holds"), [(0.09, True), (0.01, False)])
def test_places(analysis, scattered, holds):
    def plant(price):
        cost = 0.1 if price.coordinates == "identity" else scattered
        return dataclasses.replace(price, difference=cost, difference_se=0.001)

    assert places_matter(changed(analysis, "prices", plant)).holds is holds


def test_directions(analysis):
    def plant(injection):
        return dataclasses.replace(injection, measured={"high": 1.0, "all": 0.5, "low": 0.1}[injection.directions])

    def turned(injection):
        return dataclasses.replace(injection, measured={"high": 0.1, "all": 0.5, "low": 1.0}[injection.directions])

    assert low_directions_are_cheap(changed(analysis, "injections", plant)).holds
    assert not low_directions_are_cheap(changed(analysis, "injections", turned)).holds


def test_depth_is_open_for_two_layers_and_decided_for_more(analysis):
    assert scales_are_smooth(analysis).holds is None

    def plant(depth, p):
        return dataclasses.replace(depth, scales=0.3, scales_shuffled=-0.1, scales_p=p)

    assert scales_are_smooth(changed(analysis, "depths", lambda d: plant(d, 0.01))).holds
    assert not scales_are_smooth(changed(analysis, "depths", lambda d: plant(d, 0.4))).holds


def test_a_rotation_that_notices_refutes(analysis):
    assert rotation_is_blind(analysis).holds
    noticing = changed(analysis, "worth", lambda w: dataclasses.replace(w, mean_bits=1.0))
    assert not rotation_is_blind(noticing).holds
