"""The WikiText-2 test split: from the archive, in the two layouts that are in use, and without a network."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from occ_llm import hub_text
from occ_llm.errors import OccError
from occ_llm.hub_text import read_wikitext2, rows_joined, wikitext2_test

RAW = " \n = Robert Boulter = \n \n Robert Boulter is an actor . \n He played .\u2028 \n"


def archive(path: Path, text: str | None) -> Path:
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("wikitext-2-raw/wiki.valid.raw", "other")
        if text is not None:
            files.writestr("wikitext-2-raw/wiki.test.raw", text)
    return path


def test_rows_are_joined_as_the_published_tables_do():
    # Data set rows: one per line, "" for a blank one, each other with its line feed; then "\n\n".join(rows).
    rows = ["", " = Robert Boulter = \n", "", " Robert Boulter is an actor . \n", " He played .\u2028 \n"]
    assert rows_joined(RAW) == "\n\n".join(rows)
    assert rows_joined("") == ""


def test_both_layouts(tmp_path, monkeypatch):
    asked = []

    def download(*args, **kwargs):
        asked.append((args, kwargs))
        return str(archive(tmp_path / "wikitext-2-raw-v1.zip", RAW).parent)

    monkeypatch.setattr(hub_text, "snapshot_download", download)
    assert wikitext2_test() == rows_joined(RAW)
    assert wikitext2_test("raw") == RAW
    assert asked[0] == (("ggml-org/ci",), {"repo_type": "dataset", "allow_patterns": ["wikitext-2-raw-v1.zip"]})


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no route")])
def test_without_a_network_it_says_what_to_do(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub_text, "snapshot_download", fail)
    with pytest.raises(
        OccError, match=r"wikitext2: cannot be downloaded .*; go online once, or give a text file with --text FILE"
    ):
        wikitext2_test()


def test_offline_for_real(tmp_path):
    code = "from occ_llm.hub_text import wikitext2_test\ntry: wikitext2_test()\nexcept ValueError as e: print(e)"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "--text FILE" in done.stdout


def test_damaged_archives(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(OccError, match=r"x\.zip: not the WikiText-2 archive .*; delete it"):
        read_wikitext2(tmp_path / "x.zip")
    with pytest.raises(OccError, match=r"none\.zip: not the WikiText-2 archive"):
        read_wikitext2(tmp_path / "none.zip")
    with pytest.raises(OccError, match="not the WikiText-2 archive"):
        read_wikitext2(archive(tmp_path / "y.zip", None))
    with pytest.raises(OccError, match="holds another text"):
        read_wikitext2(archive(tmp_path / "z.zip", "Moby Dick"))


@pytest.mark.network
def test_the_real_text():
    try:
        text = wikitext2_test("raw")
    except OccError as error:
        pytest.skip(str(error))
    assert 1_200_000 < len(text.encode()) < 1_400_000
    assert text.count("\n") == 4358
