"""Places on disk for work that does not fit in memory, and for work that an interrupt may leave unfinished.

They lie in the user's cache, as temporary directories are often held in memory.
"""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

from .checkpoints.named import cache_directory
from .errors import OccError

SAVE_SECONDS = 60.0
"""Time between two states that long work keeps of itself: what an interrupt may cost."""

_OWNER = "owner"

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
    for place in root.iterdir():
        if _is_abandoned(place / _OWNER):
            shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{purpose}-", dir=root, ignore_cleanup_errors=True) as made:
        (Path(made) / _OWNER).write_text(_this_process(), encoding="utf-8")
        inside = Path(made) / "files"
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
def resumable(name: str) -> Iterator[Path]:
    """A directory for work that an interrupt may stop: whoever asks for the same name next finds it as it was left.

    It is gone when the block ends, and when an :class:`~occ_llm.errors.OccError` says that going on has no sense. While
    another process is at the same work it is left to that one, and the directory is a new one in :func:`scratch`.

    Args:
        name: of the work, by everything that its result depends on.
    """
    place = unfinished() / name
    place.mkdir(exist_ok=True)
    owner = place / _OWNER
    if _is_abandoned(owner):
        owner.unlink(missing_ok=True)
    try:
        with open(owner, "x", encoding="utf-8") as claim:
            claim.write(_this_process())
    except FileExistsError:
        with scratch(name) as apart:
            yield apart
        return
    try:
        yield place
    except OccError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    except BaseException:
        owner.unlink(missing_ok=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _this_process() -> str:
    return f"{os.getpid()} {platform.node()}"


def _is_abandoned(owner: Path) -> bool:
    """Whether the process on this machine that a directory was made by is gone; never sure on Windows."""
    try:
        pid, host = owner.read_text(encoding="utf-8").split(maxsplit=1)
        if os.name != "posix" or host != platform.node():
            return False
        os.kill(int(pid), 0)  # asks whether it is there
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False  # being made just now, or somebody else's
    return False
