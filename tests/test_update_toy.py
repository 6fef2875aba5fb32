"""The pages of the toy experiment say what the record of its run says."""

import json
import shutil
from pathlib import Path

import pytest
import update_toy as script

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path) -> Path:
    for name in (*script.PAGES, script.RECORD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_pages_say_what_the_record_says():
    script.main(check=True)


def test_the_report_decides_every_prediction_of_the_record():
    record = json.loads((ROOT / script.RECORD).read_text())
    report = (ROOT / script.RECORD).with_name("report.md").read_text()
    assert len(record["predictions"]) == 13
    assert [p["evidence"] for p in record["predictions"] if p["evidence"] not in report] == []


def test_a_changed_record_is_noticed_and_taken_over(project):
    record = json.loads((project / script.RECORD).read_text())
    record["predictions"][0] |= {"holds": None, "evidence": "other numbers"}
    (project / script.RECORD).write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="does not say"):
        script.main(check=True, root=project)
    script.main(root=project)
    script.main(check=True, root=project)
    pages = [(project / name).read_text() for name in script.PAGES]
    assert all("other numbers" in page for page in pages)
    assert ("| P1 | open |" in pages[0], "| P1 | 미정 |" in pages[1]) == (True, True)


def test_a_missing_run_says_how_to_make_one(project):
    (project / script.RECORD).unlink()
    with pytest.raises(SystemExit, match="occ toy --out docs/results/toy --no-png"):
        script.main(root=project)
