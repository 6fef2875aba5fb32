"""``compress``: a checkpoint in, a smaller directory out, from which every reader of this project opens the model."""

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ..calibration import Statistics
from ..checkpoints import Checkpoint
from ..checkpoints.atomic import atomic_directory, check_output
from ..checkpoints.layout import num_weights
from ..errors import OccError, said_of
from ..parallel import Track, untracked
from ..scratch import claimed
from .allocation import Allocation
from .card import model_card
from .compressor import Compressor
from .correction import Easing, Slope, corrected, measure_slopes, slope_groups
from .maker import CalibrationTokens, Maker
from .settings import Settings
from .sizes import Sizes
from .staging import Staging, staging_name
from .survey import Survey, survey
from .targets import search_step

_FINISHED = 3  # files that are finished at most until the finished one has the size that is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came out of a compression.

    Attributes:
        sizes: measured on the file.
        step: the global step.
        finished: whether row scales and gains were tuned.
        seconds: wall time, that of the survey included even if other files were made of it before.
        allocation: where the compression of another rate of the same network may start.
        slopes: what the errors of groups of layers cost, if the sensitivity was corrected.
    """

    sizes: Sizes
    step: float
    finished: bool
    seconds: float
    allocation: Allocation
    slopes: tuple[Slope, ...] = ()


def compress(
    checkpoint: Checkpoint,
    out: Path,
    statistics: Statistics,
    settings: Settings,
    *,
    tokens: CalibrationTokens | None = None,
    surveyed: Survey | None = None,
    near: Allocation | None = None,
    force: bool = False,
    text: str = "",
    track: Track = untracked,
) -> Compressed:
    """Compress a model into a directory that appears whole or not at all.

    Args:
        checkpoint: the model.
        out: the output directory.
        statistics: of the folded network in original coordinates, by :func:`occ_llm.calibration.calibrate`.
        settings: how small, and by which means.
        tokens: text for finishing, for blocks in sequence, for correcting the sensitivity and for a target divergence.
        surveyed: a survey of the same model with the same statistics, if several files are to be made of it.
        near: the allocation of a neighbouring rate under otherwise equal settings: saves most of the search.
        force: replace an existing model at ``out``.
        text: what the statistics were collected on, for the model card.
        track: shows progress.

    Raises:
        OccError: ``out`` exists or cannot be written, the weights cannot be read, no step reaches the target, or
            something is asked for that needs text, and there is none.
    """
    started = time.perf_counter()
    _check_tokens(settings, tokens)
    settings = settings.decided(num_weights(checkpoint.config))
    if tokens is None:
        settings = dataclasses.replace(settings, finish="never")
    inputs = [path for path in (checkpoint.path, settings.transforms) if path is not None]
    check_output(out, force=force, inputs=inputs)
    if surveyed is not None and not surveyed.serves(settings):
        raise ValueError("the survey was made in other coordinates, or with another seed, damping or feedback")
    known = contextlib.nullcontext(surveyed) if surveyed else survey(checkpoint, statistics, settings, track=track)
    name = staging_name(statistics.fingerprint, settings, *_seen(settings, tokens), near=near)
    with claimed(name) as staged, known as found:
        staging = Staging(staged)
        slopes: tuple[Slope, ...] = ()
        with said_of(checkpoint.name):
            if settings.correct_sensitivity:
                assert tokens is not None
                slopes, near = _slopes(checkpoint, found, settings, staging.part("draft"), tokens, track, near)
                found = corrected(found, slopes)
            maker = Maker(checkpoint, Compressor(found, settings, track), settings, staging, tokens, track, near=near)
            first = maker.first_allocation()
            step = first.step
            for _ in range(_FINISHED):
                step = search_step(settings.goal, step, maker.measure, slope=maker.slope, curve=maker.curve)
                if maker.settles(step):
                    break
            with atomic_directory(out, force=force, inputs=inputs) as directory:
                sizes = maker.write(directory, step)
                card = model_card(checkpoint.name, settings, sizes, text, finished=maker.finishes)
                (directory / "README.md").write_text(card, encoding="utf-8")
        staging.remove()
    return Compressed(
        sizes=sizes,
        step=step,
        finished=maker.finishes,
        seconds=time.perf_counter() - started + (surveyed.seconds if surveyed else 0.0),
        allocation=first,
        slopes=slopes,
    )


def _slopes(
    checkpoint: Checkpoint,
    found: Survey,
    settings: Settings,
    staging: Staging,
    tokens: CalibrationTokens,
    track: Track,
    near: Allocation | None,
) -> tuple[tuple[Slope, ...], Allocation]:
    """Slopes around a first file of about the size that is asked for, or of the divergence; and its allocation."""
    settings = dataclasses.replace(settings, sequential=False, finish="never")
    draft = Maker(checkpoint, Compressor(found, settings, track), settings, staging, tokens, track, near=near)
    first = draft.first_allocation()
    step = first.step
    easing = Easing(checkpoint, found.network, lambda: draft.coded(step), tokens.finishing)  # refuses too little text
    if settings.goal.kind == "kl":
        step = search_step(settings.goal, step, draft.measure, slope=draft.slope, curve=draft.curve)
    sizes = {name: plan.num_weights for name, plan in found.plans.items()}
    return measure_slopes(easing, slope_groups(found.network), sizes, staging, track), first


def _seen(settings: Settings, tokens: CalibrationTokens | None) -> tuple[Int[np.ndarray, "..."] | None, ...]:
    """Text that a compression sees beside its statistics."""
    if tokens is None:
        return (None, None)
    return tokens.finishing, tokens.held_back, *((tokens.calibration,) if settings.sequential else ())


def _check_tokens(settings: Settings, tokens: CalibrationTokens | None) -> None:
    if settings.finish == "always" and tokens is None:
        raise OccError("finishing needs calibration text: give tokens, or set finish='never'")
    if settings.sequential and tokens is None:
        raise OccError("blocks in sequence need the calibration text once more: give tokens, or drop --sequential")
    if settings.correct_sensitivity and tokens is None:
        raise OccError("correcting the sensitivity measures divergences on text: give tokens, or do without")
    if settings.kl is not None and (tokens is None or tokens.held_back is None):
        raise OccError("a target divergence is measured on held-back text: give tokens with held_back windows")
