"""The notebooks run from top to bottom, and the two halves of every pair say the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))

TIME_LIMIT_S = 600
"""They are made for a minute on two cores; this is for machines with other work to do."""


def each(scripts):
    return pytest.mark.parametrize("script", scripts, ids=lambda script: script.stem)


def cells(file: Path) -> list[tuple[str, str]]:
    """Kind and source of every cell of a script or a notebook."""
    return [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]


def test_there_are_five_pairs():
    assert [script.stem[:2] for script in SCRIPTS] == ["1_", "2_", "3_", "4_", "5_"]
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@each(SCRIPTS)
def test_pairs_are_in_step(script):
    assert cells(script) == cells(script.with_suffix(".ipynb")), "run: jupytext --sync notebooks/*.py"


@each(SCRIPTS)
def test_notebooks_are_stored_without_outputs(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@each(SCRIPTS)
def test_notebooks_end_with_something_to_try(script):
    kind, text = cells(script)[-1]
    assert kind == "markdown"
    assert "## Things to try" in text


@each(SCRIPTS)
def test_links_lead_to_files_of_the_repository(script):
    text = "\n".join(source for kind, source in cells(script) if kind == "markdown")
    links = re.findall(r"\]\(((?!https:)[^)#]+)", text)
    assert [link for link in links if not (FOLDER / link).exists()] == []


@each(SCRIPTS)
def test_notebooks_run(script, tmp_path):
    """As scripts: the same cells in the same order, without a kernel; any exception fails."""
    environment = os.environ | {"MPLBACKEND": "Agg", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "a notebook that shows nothing"
    assert {file.name for file in tmp_path.iterdir()} <= {"cache"}, "files are left behind"
