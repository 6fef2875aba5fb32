"""The page of the regimes says what its record says, and averages are what they are called."""

import json

import pytest
import update_regimes as script

MEASURES = dict.fromkeys((*script.MEDIANS, *script.MEANS), 1.0)


def regime(kind: str, coordinates: str, num_weights: int, layer: int = 0, **measures: float) -> dict:
    named = {"matrix": f"{layer}.{kind}", "kind": kind, "coordinates": coordinates, "num_weights": num_weights}
    return {**named, **MEASURES, **measures}


@pytest.fixture
def analysis(tmp_path):
    """Two kinds of layers, one of them in two systems; the larger matrix counts for more where bytes add up."""
    regimes = [
        regime("q", "identity", 100, kurtosis=400.0, rate_bits=1.0),
        regime("q", "identity", 100, 1, kurtosis=4.0, rate_bits=2.0),
        regime("q", "identity", 100, 2, kurtosis=10.0, rate_bits=3.0),
        *(regime("q", "hadamard", 100, layer, kurtosis=3.0, top_energy=0.085) for layer in range(3)),
        regime("up", "identity", 300, kurtosis=6.0, rate_bits=4.0),
    ]
    facts = {"model": "small", "layers": [0, 1, 2], "calibration_tokens": 2048, "learned": None, "text": "/some/where"}
    systems = ["identity", "hadamard", "learned"]
    (tmp_path / "analysis.json").write_text(json.dumps({"regimes": regimes, "facts": facts, "systems": systems}))
    return tmp_path


def test_the_page_says_what_the_record_says():
    with pytest.raises(SystemExit) as exit_:
        script.main(check=True)
    assert exit_.value.code == 0


def test_shapes_are_medians_and_rates_are_means_per_weight(analysis):
    record = script.take_over(analysis)
    rows = {(row["kind"], row["coordinates"]): row for row in record["rows"]}
    assert rows["q", "identity"]["kurtosis"] == 10.0
    assert rows["q", "identity"]["rate_bits"] == 2.0
    assert rows["all", "identity"]["kurtosis"] == 8.0
    assert rows["all", "identity"]["rate_bits"] == 3.0, "three matrices of 100 at 2 bits, one of 300 at 4"
    assert rows["all", "identity"]["matrices"] == 4
    assert "text" not in record, "no folders of a machine"


def test_every_system_that_was_measured_has_a_row_and_no_other(analysis):
    record = script.take_over(analysis)
    page = script.page(record)
    assert "| hadamard | 3.0 | 1.0 | 100.0% | 8.5% | 1.000 | 1.000 | 1.000 | 1.000 |" in page
    assert "| learned |" not in page
    assert "| hadamard (as identity) | 6.0 |" in page, "a kind that a system leaves as it is"
    rows = {(row["kind"], row["coordinates"]): row for row in record["rows"]}
    assert rows["all", "hadamard"]["rate_bits"] == 2.5, "three matrices of 100 at 1 bit, one of 300 at 4"
    assert (rows["all", "hadamard"]["matrices"], rows["all", "hadamard"]["moved"]) == (4, 3)
    assert page.index("## All linear layers") < page.index("## `q`") < page.index("## `up`")


def test_a_directory_without_an_analysis_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no finished analysis"):
        script.take_over(tmp_path)
