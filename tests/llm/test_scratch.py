"""Directories of scratch go with their process, and unfinished work is not kept for ever."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from occ_llm.cli.main import interrupt_when_stopped
from occ_llm.errors import OccError
from occ_llm.scratch import claimed, resumable, scratch, unfinished

pytestmark = [pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache" / "occ_jax"


def test_a_directory_is_gone_at_the_end_and_after_an_error(root):
    with scratch("toy") as place:
        (place / "file").write_text("x")
        assert place.is_relative_to(root / "scratch")
    with pytest.raises(ValueError, match="stop"), scratch("toy"):
        raise ValueError("stop")
    assert not list((root / "scratch").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="nobody asks for processes elsewhere")
def test_what_a_killed_process_has_left_goes_and_what_others_use_stays(root):
    code = (
        "import os, signal; from occ_llm.scratch import scratch\n"
        "with scratch('killed'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (root / "scratch" / "begun").mkdir()
    (root / "scratch" / "elsewhere").mkdir()
    (root / "scratch" / "elsewhere" / "machine").write_text("another-machine")
    assert any(place.name.startswith("killed-") for place in (root / "scratch").iterdir())
    with scratch("mine"), scratch("second"):
        names = sorted(place.name.split("-")[0] for place in (root / "scratch").iterdir())
    assert names == ["begun", "elsewhere", "mine", "second"]


@contextlib.contextmanager
def another_process(code: str):
    """A process that does something and then waits, in the same cache."""
    code += "; print('there', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        try:
            yield process
        finally:
            process.communicate(b"\n")


def test_what_a_living_process_is_at_stays_whatever_its_number(root):
    code = "from occ_llm.scratch import scratch, claimed; a = scratch('living'); a.__enter__()"
    code += "; b = claimed('work'); (b.__enter__() / 'part').write_text('x')"
    with another_process(code):
        with scratch("mine"):
            assert sorted(place.name.split("-")[0] for place in (root / "scratch").iterdir()) == ["living", "mine"]
        with claimed("work") as apart:
            assert apart.is_relative_to(root / "scratch")
            assert not list(apart.iterdir())
    with claimed("work") as place:
        assert (place / "part").read_text() == "x"


def test_what_another_machine_has_left_is_kept_for_a_month(root):
    left = root / "scratch" / "elsewhere"
    with scratch("mine"):
        left.mkdir()
        (left / "machine").write_text("another-machine")
    with scratch("mine"):
        assert left.exists()
    os.utime(left, (0, 0))
    with scratch("mine"):
        assert not left.exists()


def leave(error):
    with resumable("work") as place:
        (place / "part").write_text("x")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_resumable_work_is_found_as_it_was_left_and_goes_when_it_ends(error):
    with pytest.raises(error):
        leave(error)
    with resumable("other") as other:
        assert not list(other.glob("part"))
    with resumable("work") as again:
        assert (again / "part").read_text() == "x"
    assert not list(unfinished().iterdir())


def test_work_that_cannot_go_on_is_forgotten():
    with pytest.raises(OccError, match="stop"):
        leave(OccError("stop"))
    assert not list(unfinished().iterdir())


def test_two_at_the_same_work_do_not_meet(root):
    with resumable("work") as first:
        (first / "part").write_text("x")
        with resumable("work") as second:
            assert second.is_relative_to(root / "scratch")
            assert not list(second.iterdir())
        assert (first / "part").read_text() == "x"
    assert not list(unfinished().iterdir())


@pytest.mark.skipif(os.name != "posix", reason="nobody asks for processes elsewhere")
def test_what_a_killed_process_was_at_is_taken_over():
    code = (
        "import os, signal; from occ_llm.scratch import resumable\n"
        "with resumable('work') as place: (place / 'part').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    with resumable("work") as place:
        assert place.is_relative_to(unfinished())
        assert (place / "part").read_text() == "x"


def test_unfinished_work_waits_for_a_month(root):
    old, fresh = unfinished() / "old", unfinished() / "fresh"
    for place in (old, fresh):
        place.mkdir()
        (place / "tensor").write_text("x")
    for path in (old / "tensor", old, fresh):
        os.utime(path, (0, 0))
    assert list(unfinished().iterdir()) == [fresh]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_to_be_stopped_is_to_be_interrupted():
    numbers = signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt_when_stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
