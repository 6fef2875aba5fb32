"""Calibration: text and a network in, statistics out."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..checkpoints.atomic import atomic_file
from ..config import ModelConfig
from ..errors import OccError
from ..evaluation.windows import check_tokens
from ..folding import fold_norms
from ..scratch import resumable
from ..weights import Weights
from .fingerprint import Fingerprint, fingerprint
from .position import STATISTICS, Journal, read_position
from .statistics import Statistics
from .storage import load_statistics, statistics_writer
from .sweep import BATCH_TOKENS, Progress, Sweep, Write


def calibrate(
    config: ModelConfig,
    weights: Weights,
    windows: Int[np.ndarray, "windows length"],
    *,
    key: jax.Array,
    path: Path | None = None,
    fisher: bool = True,
    fisher_windows: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    dtype: Any = np.float32,
    force: bool = False,
    identity: Fingerprint | None = None,
    progress: Progress = lambda steps: steps,
) -> Statistics:
    r"""Collect the :class:`Statistics` of a network on some text, in original coordinates with the norms folded.

    The number of floating-point operations is about three forward passes and the products :math:`X^\top X`; no
    gradient of a weight is formed. On the way back the tokens that read the residual stream in one block are held, with
    the gradients of what they lead to. Batches change the result by rounding only.

    Args:
        config: architecture.
        weights: tensors under Hugging Face names, read one block at a time, twice.
        windows: tokens, one window per row.
        key: seed of the labels.
        path: write the statistics to this file and read them lazily from there. Until all are finished they lie in
            the user's cache, and a calibration that was interrupted goes on from the last minute, with the same result
            to the bit. ``None`` keeps them in memory.
        fisher: collect the output Fisher too. Without it there is no way back, which is three times faster.
        fisher_windows: windows that the output Fisher is collected on, spread over the others; ``None`` = all. The
            diagonal needs far fewer tokens than a second moment, and each costs twice as much.
        batch_tokens: tokens that go through a block at a time (at least one window does).
        dtype: of all computations and sums.
        force: replace the file at ``path``.
        identity: fingerprint of just this, if the caller has it: to find it reads every weight.
        progress: wraps the steps to show how far the work has come.

    Raises:
        OccError: tokens that the model does not know, activations that are not finite, or ``path`` cannot be written.

    References:
        Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, arXiv 1503.05671,
        section 2 (the true Fisher, with labels from the model) and 3.
    """
    check_windows(config, windows)
    if fisher_windows is not None and fisher_windows < 1:
        raise OccError(f"the output Fisher needs at least one window, not {fisher_windows}: give more, or fisher=False")
    network = fold_norms(config, weights)
    identity = identity or fingerprint(
        config, network, windows, key=key, fisher=fisher, fisher_windows=fisher_windows, dtype=dtype
    )
    about: dict[str, Any] = {"config": config, "num_tokens": int(windows.size), "fingerprint": identity}

    def collect(write: Write, journal: Journal | None = None) -> None:
        sweep = Sweep(
            config,
            network,
            windows,
            write,
            key=key,
            fisher_windows=fisher_windows,
            batch_tokens=batch_tokens,
            dtype=dtype,
            journal=journal,
        )
        (sweep.there_and_back if fisher else sweep.there)(progress)

    if path is None:
        tensors: dict[str, np.ndarray] = {}
        collect(tensors.__setitem__)
        return Statistics(**about, tensors=tensors)
    name = f"calibration-{identity.digest[:32]}-{batch_tokens}"
    with atomic_file(path, force=force) as aside, resumable(name) as place:
        begun = read_position(place)
        written = {"fisher": fisher, "dtype": np.dtype(dtype), "written": begun.written}
        with statistics_writer(place / STATISTICS, **about, **written) as writer:
            collect(writer, Journal(place, begun, writer))
        shutil.move(place / STATISTICS, aside)
    return load_statistics(path)


def check_windows(config: ModelConfig, windows: Int[np.ndarray, "windows length"]) -> None:
    """Refuse text that cannot be calibrated on.

    Raises:
        OccError: there are no tokens, or some are not in the model's vocabulary.
    """
    if windows.size == 0:
        raise OccError("the calibration text has no tokens: give a longer text, or shorter windows")
    check_tokens(windows, config.vocab_size, "the calibration text")
