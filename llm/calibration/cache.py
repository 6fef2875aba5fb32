"""Statistics that are collected once: a file that the user names, or a directory of them by fingerprint."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..checkpoints.named import cache_directory
from ..config import ModelConfig
from ..errors import OccError
from ..folding import fold_norms
from ..weights import Weights
from .collect import calibrate
from .fingerprint import fingerprint
from .statistics import Statistics
from .storage import load_statistics
from .sweep import BATCH_TOKENS, Progress


def load_or_calibrate(
    config: ModelConfig,
    weights: Weights,
    windows: Int[np.ndarray, "windows length"],
    *,
    key: jax.Array,
    path: Path | None = None,
    cache_dir: Path | None = None,
    fisher: bool = True,
    fisher_windows: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    dtype: Any = np.float32,
    progress: Progress = lambda steps: steps,
) -> Statistics:
    """The statistics of a network on some text: from a file that fits, or collected now and kept for the next time.

    Args:
        config, weights, windows, key, fisher, fisher_windows, batch_tokens, dtype, progress: as for
            :func:`~occ_llm.calibration.calibrate`.
        path: a statistics file of the user. It is read if it exists, and must fit; it is written if it does not.
        cache_dir: where files named by their fingerprint are kept, if there is no ``path``; by default
            ``$XDG_CACHE_HOME/occ_jax/calibration``. A damaged file there is replaced.

    Raises:
        OccError: ``path`` holds statistics of another model, another text or other settings, or is damaged.
    """
    folded = fold_norms(config, weights)
    found = fingerprint(config, folded, windows, key=key, fisher=fisher, fisher_windows=fisher_windows, dtype=dtype)
    file = path or (cache_dir or cache_directory() / "calibration") / f"{found.digest[:32]}.safetensors"
    if file.exists():
        try:
            statistics = load_statistics(file)
            found.require(statistics.fingerprint, str(file))
        except OccError:
            if path is not None:
                raise
        else:
            return statistics
    return calibrate(
        config,
        weights,
        windows,
        key=key,
        path=file,
        fisher=fisher,
        fisher_windows=fisher_windows,
        batch_tokens=batch_tokens,
        dtype=dtype,
        force=path is None,
        identity=found,
        progress=progress,
    )
