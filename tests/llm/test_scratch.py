"""Directories of scratch go with their process, and unfinished work is not kept for ever."""

import os
import signal
import subprocess
import sys

import pytest
from occ_llm.cli.main import interrupt_when_stopped
from occ_llm.scratch import scratch, unfinished

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
    (root / "scratch" / "elsewhere" / "owner").write_text("1 another-machine")
    assert any(place.name.startswith("killed-") for place in (root / "scratch").iterdir())
    with scratch("mine"), scratch("second"):
        names = sorted(place.name.split("-")[0] for place in (root / "scratch").iterdir())
    assert names == ["begun", "elsewhere", "mine", "second"]


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
