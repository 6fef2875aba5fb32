"""Writing a file: whole or not at all, on the disk before it has its name, and only what can be read."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from occ_jax.codec import container as container_module
from occ_jax.codec import encode_raw, write_container


@pytest.mark.parametrize("name", ["", "__metadata__", "occ.codebook.0"])
def test_names_that_cannot_be_used(name, tmp_path):
    with pytest.raises(ValueError, match="rename"):
        write_container(tmp_path / "x", {name: encode_raw(np.ones(1, np.float32))})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_json(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        write_container(tmp_path / "x", {}, model={"bad": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="directories are not opened elsewhere")
def test_what_is_renamed_was_flushed(path, kinds, monkeypatch):
    """Whatever safetensors does with the file that it is given."""
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or fsync(handle))
    write_container(path, kinds)
    assert flushed == [path.stat().st_ino, path.parent.stat().st_ino]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupt_leaves_what_was_there(path, kinds, monkeypatch, error):
    before = path.read_bytes()

    def interrupted(blobs, target, metadata):
        with open(target, "wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr(container_module, "save_file", interrupted)
    with pytest.raises(error):
        write_container(path, kinds)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """In a process that may write no file above 4 kB."""
    target = tmp_path / "model.occ.safetensors"
    target.write_bytes(b"old")
    script = f"""
        import resource, signal, numpy as np
        from occ_jax.codec import encode_raw, write_container
        coded = {{"w": encode_raw(np.zeros(100_000, np.float32))}}
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_container({str(target)!r}, coded)
        except OSError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert "model.occ.safetensors" in result.stdout
    assert "free some space or choose another place" in result.stdout
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_directory_that_is_not_there(tmp_path, kinds):
    with pytest.raises(OSError, match="nowhere"):
        write_container(tmp_path / "nowhere" / "x.occ.safetensors", kinds)


def test_permissions_follow_the_umask(path):
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
