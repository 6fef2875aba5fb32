"""The READMEs say what the recorded results say, and the script that sees to it notices when they do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import update_readme as script
from pages import BEGIN, END

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "update_readme.py"


def row(coordinates: str, bits: float, **changes):
    values = {
        "coordinates": coordinates,
        "quantizer": "uniform",
        "feedback": False,
        "linear_bits_per_weight": bits,
        "file_bytes": int(1e7 * bits),
        "perplexity": 30.0 / bits,
        "kl_mean": 1.0 / bits,
        "kl_se": 0.01,
        "seconds": 1.0,
    }
    return {**values, **changes}


def write_run(root: Path, results: dict | str) -> None:
    (root / "demo").mkdir(exist_ok=True)
    text = results if isinstance(results, str) else json.dumps(results)
    (root / "demo" / "results.json").write_text(text, encoding="utf-8")
    (root / "demo" / "rate_distortion.svg").write_text("<svg>small identity hadamard</svg>", encoding="utf-8")


@pytest.fixture
def results():
    return {
        "model": "small",
        "text": "text.txt",
        "calibration": "another text",
        "windows": 3,
        "window": 512,
        "reference_perplexity": 9.8765,
        "rows": [row("identity", 3.0), row("hadamard", 3.5, file_bytes=1234567)],
    }


@pytest.fixture
def project(tmp_path, results):
    """A project whose READMEs have markers and nothing between them, and a finished run."""
    for name in script.PAGES:
        (tmp_path / name).write_text(f"# before\n{BEGIN}\n{END}\nafter\n", encoding="utf-8")
    write_run(tmp_path, results)
    return tmp_path


def test_the_readmes_say_what_the_record_says():
    assert script.differences() == []


def test_the_command_line_agrees():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_update_writes_every_page_and_keeps_the_rest(project):
    script.update(project)
    assert script.differences(project) == []
    for name in script.PAGES:
        page = (project / name).read_text(encoding="utf-8")
        assert page.startswith("# before\n")
        assert page.endswith("\nafter\n")
        assert "| identity | 3.000 | 30,000,000 | 10.000 | 0.3333 ± 0.0100 |" in page
        assert "| hadamard | 3.500 | 1,234,567 |" in page
        assert "9.877" in page
        assert "another text" in page
        assert "512" in page
        assert "(docs/results/rate_distortion.svg)" in page


def test_update_twice_changes_nothing(project):
    script.update(project)
    once = (project / "README.md").read_bytes()
    script.update(project)
    assert (project / "README.md").read_bytes() == once


def test_folders_of_a_machine_are_not_shown(project, results):
    write_run(project, {**results, "text": "/home/somebody/text.txt"})
    script.update(project)
    for name in ("README.md", "docs/results/demo.json"):
        assert "somebody" not in (project / name).read_text(encoding="utf-8")


def test_quantizers_are_told_apart_only_where_they_differ(project, results):
    results["rows"] += [row("identity", 2.5, quantizer="trellis", feedback=True)]
    write_run(project, results)
    script.update(project)
    page = (project / "README.md").read_text(encoding="utf-8")
    assert "| identity, uniform |" in page
    assert "| identity, trellis with feedback |" in page


@pytest.mark.parametrize("name", list(script.PAGES))
def test_a_changed_digit_is_noticed(project, name):
    script.update(project)
    page = (project / name).read_text(encoding="utf-8")
    (project / name).write_text(page.replace("0.3333", "0.3332"), encoding="utf-8")
    (difference,) = script.differences(project)
    assert difference.startswith(name)


def test_a_changed_record_is_noticed(project, results):
    script.update(project)
    results["rows"][0]["perplexity"] = 1.0
    (project / script.RECORD).write_text(json.dumps(results), encoding="utf-8")
    assert len(script.differences(project)) == len(script.PAGES)


def test_results_without_a_record_are_noticed(project):
    script.update(project)
    (project / script.RECORD).unlink()
    assert len(script.differences(project)) == len(script.PAGES)


def test_a_figure_of_something_else_is_noticed(project):
    script.update(project)
    (project / script.FIGURE).write_text("<svg>small identity</svg>", encoding="utf-8")
    (difference,) = script.differences(project)
    assert "does not show hadamard" in difference
    (project / script.FIGURE).unlink()
    (difference,) = script.differences(project)
    assert "missing" in difference


def test_before_the_first_run_the_pages_say_so(project):
    for name, words in script.PAGES.items():
        page = script.replace_results((project / name).read_text(encoding="utf-8"), script.render(None, words), name)
        (project / name).write_text(page, encoding="utf-8")
    assert script.differences(project) == []


def test_a_missing_run_is_one_clear_sentence(project, monkeypatch, capsys):
    (project / "demo" / "results.json").unlink()
    before = (project / "README.md").read_bytes()
    monkeypatch.setattr(script.update, "__defaults__", (project,))
    assert script.main([]) == 2
    assert "demo/results.json: no such file; run `make demo` first" in capsys.readouterr().err
    assert (project / "README.md").read_bytes() == before


@pytest.mark.parametrize("broken", ["{", "[]", "{}", "null"])
def test_a_file_that_holds_no_results_changes_nothing(project, broken):
    refuses(project, broken, "is not JSON|lacks a field")


@pytest.mark.parametrize(
    "change",
    [{"rows": []}, {"rows": [{}]}, {"rows": None}, {"reference_perplexity": "low"}, {"model": None}, {"text": 3}],
    ids=str,
)
def test_wrong_fields_change_nothing(project, results, change):
    refuses(project, {**results, **change}, "lacks a field|has no rows")


@pytest.mark.parametrize("field", ["model", "text", "calibration", "windows", "window", "reference_perplexity", "rows"])
def test_missing_fields_change_nothing(project, results, field):
    del results[field]
    refuses(project, results, f"lacks a field.*{field}")


def refuses(project: Path, run: dict | str, message: str) -> None:
    """Updating from ``run`` fails with one sentence and leaves everything as it was."""
    write_run(project, run)
    before = (project / "README.md").read_bytes()
    with pytest.raises(script.ResultsError, match=message):
        script.update(project)
    assert (project / "README.md").read_bytes() == before
    assert not (project / script.RECORD).exists()


@pytest.mark.parametrize("page", ["", BEGIN, END + BEGIN, 2 * (BEGIN + END)])
def test_markers_must_stand_there_once(project, page):
    (project / "README.md").write_text(page, encoding="utf-8")
    with pytest.raises(script.ResultsError, match="once each"):
        script.update(project)
