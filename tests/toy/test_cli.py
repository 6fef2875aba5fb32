"""``occ toy`` from the command line: a whole run in small, and bad input in one sentence."""

import json

import pytest
from occ_llm.cli.main import BAD_INPUT, COMMANDS, run
from occ_toy import Protocol, run_experiment
from occ_toy.cli import Toy
from occ_toy.experiment import num_parts
from occ_toy.predictions import outcomes
from occ_toy.report import write_results
from occ_toy.sources import SOURCES

TINY = Protocol(
    sources=("bandlimited", "convolution"), draws=2, others=64, seeds=1, steps=5, widths=(4,), targets=(5e-3, 5e-2)
)


@pytest.fixture(scope="module")
def results():
    done = []
    results = run_experiment(TINY, advance=done.append)
    assert len(done) == num_parts(TINY)
    return results


def test_every_source_is_measured_in_every_representation(results):
    assert {(cell.source, cell.representation) for cell in results.cells} == {
        (source, representation)
        for source in TINY.sources
        for representation in ("fourier", "dct", "haar", "chebyshev", "rff", "tanh", "relu", "sine")
    }
    for cell in results.cells:
        assert set(cell.regimes) >= {"original", "rotated", cell.aligned}
        for regime in cell.regimes.values():
            assert [point.bytes_per_function > 0 for point in regime.points] == [True, True]
    fourier = next(cell for cell in results.cells if (cell.source, cell.representation) == ("bandlimited", "fourier"))
    assert fourier.is_accurate
    assert fourier.regimes["klt"].points[0].error == pytest.approx(5e-3, rel=0.7)


def test_predictions_are_decided_or_left_open(results):
    decided = outcomes(results)
    assert [outcome.name for outcome in decided] == [f"P{i}" for i in range(1, 14)]
    by_name = {outcome.name: outcome for outcome in decided}
    assert by_name["P6"].holds is None  # no AR(1) path in this run
    assert all(outcome.evidence for outcome in decided)


def test_results_figures_and_report_are_written(results, tmp_path):
    write_results(results, tmp_path, command="occ toy --quick")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["cells"]) == len(results.cells)
    assert len(stored["predictions"]) == 13
    for name in (*TINY.sources, "summary"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    report = (tmp_path / "report.md").read_text()
    assert "occ toy --quick" in report
    assert report.count("![") == 3
    summary = report.partition("## Summary")[2]
    assert all(f"| {SOURCES[name].title} | " in summary for name in TINY.sources)


def test_the_command_runs_what_it_was_asked_for(monkeypatch, tmp_path, results, capsys):
    asked = []
    monkeypatch.setattr("occ_toy.experiment.run_experiment", lambda p, advance: asked.append(p) or results)
    out = tmp_path / "out"
    assert (
        run(["toy", "--out", str(out), "--quick", "--functions", "bandlimited", "convolution", "--no-png", "--json"])
        == 0
    )
    assert asked[0].sources == ("bandlimited", "convolution")
    assert asked[0].steps < Protocol().steps
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 13
    assert not list(out.glob("*.png"))
    assert run(["toy", "--out", str(out), "--quick"]) == BAD_INPUT
    assert len(asked) == 1
    assert "holds results already" in capsys.readouterr().err
    assert run(["toy", "--out", str(out), "--quick", "--force"]) == 0
    assert asked[1].sources == ("sawtooth",)
    assert num_parts(asked[1]) == len(asked[1].representations) == 3
    assert run(["toy", "--out", str(out), "--force"]) == 0
    assert asked[2] == Protocol()


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert COMMANDS["toy"] is Toy
    assert run(["toy", "--out", str(tmp_path / "out"), "--functions", "bandlimited", "triangle"]) == BAD_INPUT
    sentence = capsys.readouterr().err.strip()
    assert sentence.startswith("occ: there is no function 'triangle': choose from bandlimited, sawtooth")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert run(["toy", "--out", str(tmp_path / "file")]) == BAD_INPUT
    assert "is a file" in capsys.readouterr().err
