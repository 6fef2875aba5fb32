"""Outputs that appear whole or not at all: write aside, then rename."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import OccError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

MODEL_MARKER = "config.json"
"""What a directory must hold (unless it is empty) before ``force`` may replace it: never somebody's home."""


@contextlib.contextmanager
def atomic_directory(path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends, and vanishes when it fails.

    The directory lies beside ``path``, on the same disk, so that the renaming is atomic. An error, an interrupt or
    a full disk inside the block leaves everything as it was, an earlier ``path`` included.

    Args:
        path: the output directory; its parents are made.
        force: replace an existing ``path``, if it is empty or a model directory.
        inputs: files and directories that are being read: ``path`` must not be, or hold, any of them.

    Raises:
        OccError: ``path`` exists and may not be replaced, or cannot be written.
    """
    path = _resolved(path)
    if path.is_file():
        raise OccError(f"{path}: is a file; give the name of a directory.")
    check_output(path, force=force, inputs=inputs)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            aside.chmod(0o777 & ~_umask())
            yield aside
            _replace_directory(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the name of a file that becomes ``path`` when the block ends; like :func:`atomic_directory`.

    Raises:
        OccError: ``path`` exists (without ``force``), is a directory, or cannot be written.
    """
    path = _resolved(path)
    if path.is_dir():
        raise OccError(f"{path}: is a directory; give the name of a file.")
    check_output(path, force=force, inputs=inputs)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            yield aside / path.name
            os.replace(aside / path.name, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def check_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that exists, or with ``force`` one that must not be replaced. Call it before long work.

    Raises:
        OccError: as for :func:`atomic_directory`.
    """
    path = _resolved(path)
    for source in map(_resolved, inputs):
        if source.is_relative_to(path):
            raise OccError(f"{path}: the output would replace the input {source}; choose another output.")
    if not path.exists():
        return
    if not force:
        raise OccError(f"{path}: already exists; choose another output, or pass --force to replace it.")
    if path.is_dir() and any(path.iterdir()) and not (path / MODEL_MARKER).is_file():
        raise OccError(
            f"{path}: is a directory with other files in it (no {MODEL_MARKER}), and --force replaces only models; "
            "choose another output."
        )


def _replace_directory(aside: Path, path: Path) -> None:
    """Rename ``aside`` to ``path``; an earlier ``path`` steps back first and returns if that fails."""
    if not path.exists():
        aside.rename(path)
        return
    shelter = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = shelter / path.name
    try:
        path.rename(old)
        aside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(shelter, ignore_errors=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OccError(
                f"{path}: the disk is full, or a quota or size limit reached; free some space and run it again."
            ) from error
        if error.errno in _FORBIDDEN:
            raise OccError(f"{path}: may not be written ({error.strerror}); choose another output.") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise OccError(f"{path}: a part of this path is a file; choose another output.") from error
        raise


def _resolved(path: Path) -> Path:
    return Path(path).expanduser().resolve()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
