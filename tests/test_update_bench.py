"""The page of the bench says what its record says, and the record is taken over whole."""

import json

import pytest
import update_bench as script


def row(quantizer: str, bits: float, kl: float) -> dict:
    return {
        "coordinates": "identity",
        "quantizer": quantizer,
        "feedback": True,
        "linear_bits_per_weight": bits,
        "file_bytes": int(1e7 * bits),
        "perplexity": 20 * (1 + kl),
        "kl_mean": kl,
        "kl_se": 0.01,
        "seconds": 60.0,
        "kl_windows": [kl, kl],
    }


@pytest.fixture
def bench(tmp_path):
    """Two curves; at a divergence of 0.2 the scalar one takes 25 % more bytes."""
    rows = [row("trellis 8", 2.0, 0.4), row("trellis 8", 3.0, 0.1), row("scalar", 2.5, 0.4), row("scalar", 3.75, 0.1)]
    facts = {"model": "small", "text": "/some/where/text.txt", "calibration_windows": 8, "windows": 2, "window": 64}
    records = {"original a b": {"perplexity": 20.0}, **{str(i): fields for i, fields in enumerate(rows)}}
    (tmp_path / "results.json").write_text(json.dumps(facts))
    (tmp_path / "rows.json").write_text(json.dumps(records))
    return tmp_path


def test_the_page_says_what_the_record_says():
    with pytest.raises(SystemExit) as exit_:
        script.main(check=True)
    assert exit_.value.code == 0


def test_every_row_is_taken_over_and_compared_at_equal_divergence(bench):
    record = script.take_over(bench)
    assert record["text"] == "text.txt", "no folders of a machine"
    assert [r["quantizer"] for r in record["rows"]] == ["scalar", "scalar", "trellis 8", "trellis 8"]
    page = script.page(record)
    assert "perplexity 20.00" in page
    assert "| identity | trellis 8, with feedback | 2.000 | 20,000,000 | 28.00 | +40.0% | 0.4000 ± 0.0100 |" in page
    assert "| identity, scalar with feedback | 25,000,000 (+25.0%) | 37,500,000 (+25.0%) |" in page


def test_of_what_was_measured_twice_the_last_counts(bench):
    """With a new file of transforms under the old name; whichever is larger."""
    records = json.loads((bench / "rows.json").read_text())
    for newer in ({**row("scalar", 2.5, 0.3), "file_bytes": 1}, {**row("scalar", 2.5, 0.2), "file_bytes": 10**9}):
        records[f"newer {newer['file_bytes']}"] = newer
        (bench / "rows.json").write_text(json.dumps(records))
        rows = [r for r in script.take_over(bench)["rows"] if r["linear_bits_per_weight"] == 2.5]
        assert rows == [newer]


def test_draws_of_random_coordinates_are_one_line(bench):
    record = script.take_over(bench)
    draws = [{**row("scalar", 2.5, kl), "coordinates": name} for name, kl in (("hadamard", 0.4), ("hadamard 1", 0.6))]
    page = script.page({**record, "rows": [*record["rows"], *draws]})
    assert "| hadamard, mean of 2 draws (± 0.1414) | scalar, with feedback | 2.500 | 25,000,000 | 30.00 |" in page
    assert "hadamard 1" not in page


def test_rows_are_added_to_a_record_in_the_place_of_older_ones(bench):
    found = script.take_over(bench)
    older = {**found, "rows": [row("trellis 8", 2.003, 0.5), row("trellis 8", 2.5, 0.2)]}
    record = script.merged(older, found)
    curve = [(r["linear_bits_per_weight"], r["kl_mean"]) for r in record["rows"] if r["quantizer"] == "trellis 8"]
    assert curve == [(2.0, 0.4), (2.5, 0.2), (3.0, 0.1)]
    assert len(record["rows"]) == 5
    with pytest.raises(SystemExit, match="windows = 12 and this bench with 2"):
        script.merged({**found, "windows": 12}, found)
    with pytest.raises(SystemExit, match=r"perplexity 20.1000 in .* and 20.0000 in this bench"):
        script.merged({**found, "reference_perplexity": 20.1}, found)


def test_every_part_is_compared_with_the_curve_without_it(bench):
    record = script.take_over(bench)
    saving = {**row("trellis 8, outputs", 2.25, 0.2), "kl_windows": [0.18, 0.22]}
    page = script.page({**record, "rows": [*record["rows"], saving]})
    # At a divergence of 0.2 the trellis needs 25 MB, and at 22.5 MB it has 0.4 / 2 ** 0.5; each of two windows changes
    # by a tenth, and bytes by 10 MB for a factor of four. At 30 MB the scalar curve has 0.4 / 4 ** 0.4.
    assert "| feedback along the outputs | 2.25 | -10.0% ± 2.6% | -29.3% ± 7.1% |" in page
    assert "| a trellis of 8 states | 3.00 | -20.0% ± 0.0% | -56.5% ± 0.0% |" in page
    assert "blocks in sequence" not in page, "not measured"


def test_the_dial_is_compared_with_an_embedding_apart(bench):
    record = script.take_over(bench)
    apart = row("trellis 8, embedding in 8 bits", 5.0, 0.2)
    page = script.page({**record, "rows": [*record["rows"], apart]})
    assert "smaller than one with the embedding in 8 bits" in " ".join(page.split())
    assert "by 50.0% ± 0.0% at a KL of 0.2." in page


def test_one_rate_is_one_wherever_it_lies(bench):
    """What was made again at the other side of a rounded digit replaces, and two near rates that were asked for stay."""
    rows = [row("scalar", bits, kl) for bits, kl in ((2.249, 0.5), (2.251, 0.4), (2.0, 0.6), (2.04, 0.55))]
    assert script.last_of_each(rows) == rows[1:]


def test_distances_of_layers_have_a_table(bench):
    quartiles = {
        "lower_quartile": 0.07,
        "median": 0.08,
        "upper_quartile": 0.09,
        "feedback_median": 0.08,
        "iid_median": -0.02,
    }
    distance = {
        "coordinates": "klt",
        "states": 8,
        "rate": 2.0,
        "bits_per_weight": 2.01,
        **quartiles,
        "layers": [{}] * 7,
    }
    (bench / "distances.json").write_text(json.dumps({"model": "small", "distances": [distance]}))
    found = script.take_over(bench)
    older = {**found, "distances": [{**found["distances"][0], "rate": 3.0}]}
    assert [d["rate"] for d in script.merged(older, found)["distances"]] == [2.0, 3.0]
    assert "| klt | trellis 8 | 7 | 2.01 | 0.0700 | 0.0800 | 0.0900 | -0.0200 |" in script.page(found)


def test_rows_of_two_texts_are_refused(bench):
    records = json.loads((bench / "rows.json").read_text())
    (bench / "rows.json").write_text(json.dumps({**records, "original c d": {"perplexity": 21.0}}))
    with pytest.raises(SystemExit, match="2 texts or models"):
        script.take_over(bench)


def test_a_directory_without_a_bench_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no finished bench"):
        script.take_over(tmp_path)
