"""The state of an unfinished fit in a file: all of it or nothing, and nothing that could run."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open

from occ_jax.codec.container import write_whole

_KEY = "occ_fit"


def fingerprint(steps: int, key: Array, *trees: Any) -> str:
    """What a state belongs to: number of steps, key, and the structure and values of the given trees.

    Schedules, data and the loss are the caller's to keep.
    """
    crc = zlib.crc32(f"{steps} {jax.random.key_impl(key)} {[jax.tree.structure(t) for t in trees]}".encode())
    for leaf in (jax.random.key_data(key), *jax.tree.leaves(trees)):
        array = np.asarray(leaf)
        crc = zlib.crc32(array.tobytes(), zlib.crc32(f"{array.shape}".encode(), crc))
    return f"{crc:08x}"


def write_state(path: str | os.PathLike[str], step: int, trees: Sequence[Any], identity: str) -> None:
    """Save the leaves of trees after ``step`` steps, beside ``path`` first, then under its name."""
    blobs = {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tuple(trees)))}
    write_whole(Path(path), blobs, {_KEY: f"{identity} {step}"})


def read_state(path: str | os.PathLike[str], like: Sequence[Any], identity: str) -> tuple[int, Sequence[Any]]:
    """The step and the trees that :func:`write_state` saved, in the structure of ``like``.

    Raises:
        ValueError: the file is no state, is damaged, or belongs to another fit.
    """
    try:
        with safe_open(path, framework="np") as file:
            words = (file.metadata() or {}).get(_KEY, "").split()
            names = sorted(file.keys())
            leaves = [file.get_tensor(name) for name in names]
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not the state of a fit ({error}): remove it to begin anew") from error
    structure = jax.tree.structure(tuple(like))
    if len(words) != 2 or words[0] != identity or structure.num_leaves != len(leaves):
        raise ValueError(
            f"{path} is the state of another fit (other parameters, key, optimizer or number of steps): "
            "remove it to begin anew, or choose another path"
        )
    return int(words[1]), jax.tree.unflatten(structure, leaves)
