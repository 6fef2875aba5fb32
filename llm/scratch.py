"""Places on disk for work that does not fit in memory, and for work that an interrupt may leave unfinished.

They lie in the user's cache, as temporary directories are often held in memory. Whoever is at work in one of them holds
a lock on a file in it, which the system releases when the process ends, however it ends.
"""

import contextlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from .checkpoints.named import cache_directory
from .errors import OccError

SAVE_SECONDS = 60.0
"""Time between two states that long work keeps of itself: what an interrupt may cost."""

_OWNER, _MACHINE = "owner", "machine"

_DAYS_UNFINISHED = 30


@final
class Clock:
    """Says when long work should keep how far it has come."""

    def __init__(self):
        self._struck = time.monotonic()

    def strikes(self) -> bool:
        """Whether :data:`SAVE_SECONDS` have gone by since this was true, or since the beginning."""
        if time.monotonic() - self._struck < SAVE_SECONDS:
            return False
        self._struck = time.monotonic()
        return True


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A directory that is gone at the end; if the process was killed, when another one asks for scratch.

    Args:
        purpose: part of its name.
    """
    root = cache_directory() / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        # Nobody takes a directory for abandoned between its making and its lock.
        with FileLock(root.with_suffix(".lock")):
            for place in root.iterdir():
                if _is_abandoned(place):
                    shutil.rmtree(place, ignore_errors=True)
            removed = tempfile.TemporaryDirectory(prefix=f"{purpose}-", dir=root, ignore_cleanup_errors=True)
            made = Path(held.enter_context(removed))
            (made / _MACHINE).write_text(platform.node(), encoding="utf-8")
            held.enter_context(FileLock(made / _OWNER))
        inside = made / "files"
        inside.mkdir()
        yield inside


def unfinished() -> Path:
    """Where unfinished work waits to be resumed; what nobody has gone on with for a month is forgotten."""
    root = cache_directory() / "unfinished"
    root.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - _DAYS_UNFINISHED * 24 * 3600
    for place in root.iterdir():
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (place, *place.rglob("*"))) > oldest:
                continue
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    return root


@contextlib.contextmanager
def claimed(name: str) -> Iterator[Path]:
    """A directory for work that an interrupt may stop: whoever asks for the same name next finds it as it was left.

    While another process is at the same work it is left to that one, and the directory is a new one in :func:`scratch`.

    Args:
        name: of the work, by everything that its result depends on.
    """
    place = unfinished() / name
    place.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(place / _OWNER, timeout=0))
        except Timeout:
            place = held.enter_context(scratch(name))
        yield place


@contextlib.contextmanager
def resumable(name: str) -> Iterator[Path]:
    """The same, gone when the block ends, and when an :class:`~occ_llm.errors.OccError` says that nothing can go on.

    Args:
        name: of the work, by everything that its result depends on.
    """
    with claimed(name) as place:
        try:
            yield place
        except OccError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path) -> bool:
    """Whether a directory was made by a process of this machine that is gone, or by another machine a month ago."""
    try:
        if (place / _MACHINE).read_text(encoding="utf-8") != platform.node():
            return time.time() - place.stat().st_mtime > _DAYS_UNFINISHED * 24 * 3600
        with FileLock(place / _OWNER, timeout=0):
            return True
    except (OSError, Timeout):
        return False  # somebody's, or what else may lie here
