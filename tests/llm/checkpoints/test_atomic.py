"""Outputs appear whole or not at all, whatever happens in between."""

import errno
import os
import stat
from pathlib import Path

import pytest
from occ_llm.checkpoints import atomic
from occ_llm.checkpoints.atomic import atomic_directory, atomic_file, check_output
from occ_llm.errors import OccError


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def model(tmp_path) -> Path:
    """An output of an earlier run."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "config.json").write_text("old")
    (path / "stale.txt").write_text("old")
    return path


def write_new(path: Path, **options) -> None:
    with atomic_directory(path, **options) as directory:
        (directory / "config.json").write_text("new")


FAILURES = [
    KeyboardInterrupt(),
    SystemExit(1),
    MemoryError(),
    RuntimeError("boom"),
    OccError("bad weights"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
]


# -- directories


def test_a_directory_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "a" / "b"
    with atomic_directory(out) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "x").write_text("1")
        assert not out.exists()
        assert directory.parent == out.parent
    assert files(tmp_path) == {"a/b/sub/x": "1"}


def test_permissions_are_those_of_an_ordinary_directory(tmp_path):
    (tmp_path / "ordinary").mkdir()
    write_new(tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failure_leaves_nothing(tmp_path, failure):
    with pytest.raises((type(failure), OccError)), atomic_directory(tmp_path / "out") as directory:  # noqa: PT012
        (directory / "half").write_text("written")
        raise failure
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failure_leaves_the_earlier_output(tmp_path, model, failure):
    before = files(tmp_path)
    with pytest.raises((type(failure), OccError)), atomic_directory(model, force=True) as directory:  # noqa: PT012
        (directory / "half").write_text("written")
        raise failure
    assert files(tmp_path) == before


def test_an_existing_output_is_refused(tmp_path, model):
    before = files(tmp_path)
    with pytest.raises(OccError, match=r"out: already exists; .*--force"):
        write_new(model)
    assert files(tmp_path) == before


def test_force_replaces_all_of_a_model(tmp_path, model):
    write_new(model, force=True)
    assert files(tmp_path) == {"out/config.json": "new"}


def test_force_replaces_an_empty_directory(tmp_path):
    (tmp_path / "out").mkdir()
    write_new(tmp_path / "out", force=True)
    assert files(tmp_path) == {"out/config.json": "new"}


def test_force_never_replaces_what_is_no_model(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OccError, match="--force replaces only models"):
        write_new(tmp_path / "home", force=True)
    assert files(tmp_path) == {"home/thesis.tex": "years of work"}


def test_a_file_is_no_place_for_a_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OccError, match="is a file"):
        write_new(tmp_path / "out", force=True)
    with pytest.raises(OccError, match="a part of this path is a file"):
        write_new(tmp_path / "out" / "deeper")
    assert files(tmp_path) == {"out": "mine"}


def test_the_input_is_never_replaced(tmp_path, model):
    before = files(tmp_path)
    (tmp_path / "link").symlink_to(model)
    for out, source in ((model, model), (model, model / "stale.txt"), (tmp_path / "link", model)):
        with pytest.raises(OccError, match="would replace the input"):
            write_new(out, force=True, inputs=[source])
    (tmp_path / "link").unlink()
    assert files(tmp_path) == before
    write_new(model / "inside", inputs=[model])
    assert (model / "inside" / "config.json").read_text() == "new"


def test_a_linked_output_keeps_its_link(tmp_path, model):
    (tmp_path / "link").symlink_to(model)
    write_new(tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (model / "config.json").read_text() == "new"


def test_relative_paths_and_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_new(Path("a"))
    write_new(Path("~/b"))
    assert files(tmp_path) == {"a/config.json": "new", "b/config.json": "new"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full.*; free some space"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, r"may not be written \(.*\); choose another output"),
        (errno.EROFS, "may not be written"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, code, words):
    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    out = tmp_path / "out"
    with pytest.raises(OccError, match=rf"out: {words}"), atomic_directory(out):
        refuse(out)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OccError, match=words):
        write_new(out)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_other_system_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="Input/output") as error, atomic_directory(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(error.value, OccError)


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr)
def test_a_failure_while_renaming_brings_the_earlier_output_back(tmp_path, model, monkeypatch, failing, failure):
    before = files(tmp_path)
    rename, calls = Path.rename, []

    def fail(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((KeyboardInterrupt, OccError)):
        write_new(model, force=True)
    monkeypatch.undo()
    assert files(tmp_path) == before


def test_an_interrupt_just_after_stepping_back_brings_the_earlier_output_back(tmp_path, model, monkeypatch):
    before = files(tmp_path)
    rename = Path.rename

    def interrupted(self, target):
        done = rename(self, target)
        if self == model.resolve():
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_new(model, force=True)
    monkeypatch.undo()
    assert files(tmp_path) == before


# -- files


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "deep" / "x.bin") as aside:
        aside.write_text("1")
        assert not (tmp_path / "deep" / "x.bin").exists()
    assert files(tmp_path) == {"deep/x.bin": "1"}


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failure_leaves_the_earlier_file(tmp_path, failure):
    (tmp_path / "x").write_text("old")
    with pytest.raises((type(failure), OccError)), atomic_file(tmp_path / "x", force=True) as aside:  # noqa: PT012
        aside.write_text("half")
        raise failure
    assert files(tmp_path) == {"x": "old"}


def test_files_need_force_too(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(OccError, match="already exists"), atomic_file(tmp_path / "x"):
        pass
    with atomic_file(tmp_path / "x", force=True) as aside:
        aside.write_text("new")
    with pytest.raises(OccError, match="is a directory"), atomic_file(tmp_path, force=True):
        pass
    with (
        pytest.raises(OccError, match="would replace the input"),
        atomic_file(tmp_path / "x", force=True, inputs=[tmp_path / "x"]),
    ):
        pass
    assert files(tmp_path) == {"x": "new"}


def test_outputs_can_be_checked_before_long_work(tmp_path, model):
    check_output(tmp_path / "new", force=False)
    check_output(model, force=True)
    with pytest.raises(OccError, match="already exists"):
        check_output(model, force=False)
    with pytest.raises(OccError, match="would replace the input"):
        check_output(tmp_path, force=True, inputs=[model])
    assert atomic.MODEL_MARKER == "config.json"
