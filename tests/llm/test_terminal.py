"""Tables on terminals of any width: nothing that was measured is left out."""

import pytest
from occ_llm.cli.terminal import Terminal

COLUMNS = ("coordinates", "quantizer", "file bytes", "KL")
ROWS = [("hadamard, mean of 4 draws", "trellis 8, finished", 21958771, 1.697), ("identity", "scalar", 475, None)]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_cell_is_cut_however_narrow_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    Terminal().table("title", COLUMNS, ROWS)
    shown = capsys.readouterr().out
    for piece in (*COLUMNS, "hadamard, mean of 4 draws", "trellis", "finished", "21,958,771", "1.697", "scalar", "475"):
        assert piece in shown
    assert "…" not in shown


def test_a_long_word_is_broken_rather_than_the_table_widened(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    place = "/a/long/path/" + "x" * 90
    Terminal().table("title", ("what", "value"), [("file", place)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert place in "".join(line.split("│")[2].strip() for line in lines if line.count("│") == 3)
