"""The trainer of the library, on the parameters of a network's coordinates."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jaxtyping import Array, Key

from occ_jax.learned import FitLog, LossFn, fit

from ..config import ModelConfig
from ..coordinates import Coordinates
from ..scratch import SAVE_SECONDS
from ..stored_coordinates import as_stored
from .placements import Parameters, default_placements, initial_parameters, learned_coordinates
from .settings import LearnSettings

OnChunk = Callable[[int, FitLog], None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """The outcome of a training.

    Attributes:
        coordinates: of the whole network, as a file of transforms holds them.
        parameters: what was trained, at its end.
        log: one entry for each step.
        seconds_per_step: mean over the visits of the host but the first, so that compilation does not count and what is
            refreshed once for several steps does; ``None`` where there was one visit only.
    """

    coordinates: Coordinates
    parameters: Parameters
    log: FitLog
    seconds_per_step: float | None


CHUNK = 1
"""Steps between two visits of the host, compiled as one loop. With more than one, XLA:CPU (jaxlib 0.10.2, 2 cores)
comes to a standstill on matrices of real models, all of its threads waiting; the steps are the same."""


def first_parameters(config: ModelConfig, start: Coordinates, settings: LearnSettings) -> Parameters:
    """What a training begins with."""
    placements = settings.placements or default_placements(config, scalings=settings.is_integer)
    return initial_parameters(config, placements, start, settings.structure)


def train(
    config: ModelConfig,
    start: Coordinates,
    settings: LearnSettings,
    loss: LossFn,
    data: Any,
    *,
    lmbda: float,
    key: Key[Array, ""],
    state: Path | None = None,
    on_chunk: OnChunk | None = None,
    refresh: Callable[[Parameters, Any], Any] | None = None,
    refresh_every: int = 1,
) -> Learned:
    """Train every placement together.

    Args:
        config: architecture.
        start: coordinates in which training begins.
        settings: placements, steps, learning rate.
        loss: of the parameters.
        data: what the loss reads.
        lmbda: weight of the distortion.
        key: of the noise.
        state: where to keep an unfinished training.
        on_chunk: told about the progress.
        refresh: of parameters and ``data``, what the loss reads beside these.
        refresh_every: for so many steps.
    """
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)
    coldest = 1.0 if settings.temperature is None else settings.temperature
    visits: list[tuple[int, float]] = []

    def visited(done: int, log: FitLog) -> None:
        visits.append((done, time.perf_counter()))
        if on_chunk is not None:
            on_chunk(done, log)

    fitted = fit(
        first_parameters(config, start, settings),
        loss,
        key=key,
        steps=settings.num_steps,
        data=data,
        # Shares of single parameters in a divergence are as small as the usual eps.
        optimizer=optax.adam(schedule, eps=1e-12),
        lmbda=lmbda,
        temperature=optax.cosine_decay_schedule(1.0, settings.num_steps, alpha=coldest),
        chunk=CHUNK,
        state_path=state,
        save_seconds=SAVE_SECONDS,
        on_chunk=visited,
        refresh=refresh,
        refresh_every=refresh_every,
    )
    jax.block_until_ready(fitted.params)
    seconds_per_step = None
    if len(visits) > 1:
        (first, began), *_, (last, ended) = visits
        seconds_per_step = (ended - began) / (last - first)
    return Learned(
        coordinates=as_stored(learned_coordinates(config, start, fitted.params)),
        parameters=fitted.params,
        log=fitted.log,
        seconds_per_step=seconds_per_step,
    )
