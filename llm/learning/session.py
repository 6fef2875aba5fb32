"""One training from a checkpoint to coordinates, with the measurements that stand beside it."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from occ_jax.learned import FitLog, RateDistortion

from ..calibration import Statistics, spread
from ..calibration.fingerprint import text_digest
from ..checkpoints import Checkpoint
from ..compression.finishing import Target, cut_shorter, predict
from ..compression.network import as_decoded, stored_bits
from ..coordinates import Coordinates, choose_coordinates
from ..errors import OccError, said_of
from ..evaluation.quality import token_nll
from ..folding import fold_norms
from ..model import LanguageModel, observe
from ..roles import EMBEDDING, HEAD, is_linear
from ..scratch import unfinished
from ..stored_coordinates import as_stored
from ..weights import Weights
from .end_to_end import EndToEnd
from .layerwise import Layerwise, Points
from .losses import Coded, Objective
from .placements import learned_coordinates, num_parameters
from .problem import Problem, control_weights, make_problem
from .settings import LearnSettings
from .train import Learned, first_parameters

_PROCEDURE = 8  # part of the name of an unfinished training: to be raised when the same settings train otherwise

TRIAL_WINDOWS = 8
"""Windows, unseen by the training, on which a divergence is measured before and after it."""

CONTROL_KEY = 1 << 16
"""Seed of the control's matrices, apart from all others."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], Any]]]
"""``with progress(label, total=steps) as advance``: shows how far a training has come."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A training and what was measured around it.

    Attributes:
        learned: coordinates and log.
        measured: the objective in original coordinates, at the start, as learned, and as a compressed file will have
            the same coordinates (a basis that is stored is rounded). Bits per weight count the transforms that are
            stored with matrices, which ``transform_bits`` gives apart.
        control: the same training on Gaussian matrices: its log and what was measured; ``None`` if not asked for.
        pass_seconds: a forward and a backward pass of the network on the tokens of a step, one window after the other.
    """

    learned: Learned
    measured: dict[str, Any]
    control: "Outcome | None"
    pass_seconds: float | None

    @property
    def gain(self) -> dict[str, float]:
        """Fall of rate and distortion from the original coordinates to the learned ones, as a file will have them."""
        before, after = self.measured["original"], self.measured["coded"]
        return {name: before[name] - after[name] for name in ("bits", "distortion")}

    def to_json(self) -> dict[str, Any]:
        """Everything but the coordinates and the log."""
        return {
            "parameters": num_parameters(self.learned.parameters),
            "measured": self.measured,
            "gain": self.gain,
            "seconds_per_step": self.learned.seconds_per_step,
            "pass_seconds": self.pass_seconds,
            "control": None if self.control is None else self.control.to_json(),
        }


class Session:
    """What is learned about one model.

    Args:
        checkpoint: the model.
        statistics: of the folded network in original coordinates, with the Fisher information.
        settings: of the training.
        tokens: calibration windows, for the end-to-end objectives and to time a pass.
        unseen: other windows, on :data:`TRIAL_WINDOWS` of which the outcome of an end-to-end objective is measured;
            without them, on windows of the training.
        start: coordinates in which training begins, if they were learned before (``settings.init`` is ``learned``).
        progress: shows how far a training has come.
        track: shows how far other work has come.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        settings: LearnSettings,
        tokens: Int[np.ndarray, "windows length"],
        *,
        unseen: Int[np.ndarray, "more size"] | None = None,
        start: Coordinates | None = None,
        progress: Progress,
        track: Callable[[Iterable, str], Iterator] = lambda rows, label: iter(rows),
    ):
        self._checkpoint, self._statistics, self._settings = checkpoint, statistics, settings
        self._progress, self._track = progress, track
        self._tokens = cut_shorter(tokens, settings.window)
        self._unseen = None if unseen is None or not len(unseen) else cut_shorter(unseen, settings.window)
        self._config = checkpoint.config
        if start is None:
            moment = statistics.residual_moment() if settings.init == "klt" else None
            key = jax.random.key(settings.seed)
            start = choose_coordinates(settings.init, self._config, key=key, second_moment=moment)
        self._start = start
        self._states: list[Path] = []

    def forget(self) -> None:
        """Remove what is kept of the trainings, once their outcome is safe."""
        for state in self._states:
            state.unlink(missing_ok=True)

    def run(self, *, control: bool = False) -> Outcome:
        """Train, and measure. What an interrupted run has trained is not trained again, until :meth:`forget`.

        Args:
            control: train on Gaussian matrices of the same shapes and scales, too.

        Raises:
            OccError: nothing can be learned with these settings, or the model's weights cannot be used.
        """
        if control and self._settings.end_to_end:
            raise OccError(
                "--control has no meaning end to end, where a network of noise predicts nothing: leave it out"
            )
        with said_of(self._checkpoint.name):
            if self._settings.end_to_end:
                return self._end_to_end()
            outcome, objective = self._layerwise(self._folded, "learn")
            if not control:
                return outcome
            names = [n for n in self._folded if is_linear(n) or n in (EMBEDDING, HEAD)]
            noise = control_weights(self._folded, names, key=jax.random.key(self._settings.seed + CONTROL_KEY))
            beside, _ = self._layerwise(noise, "control", objective)
            return dataclasses.replace(outcome, control=beside)

    @cached_property
    def _folded(self) -> Weights:
        return dict(fold_norms(self._config, self._checkpoint.weights))

    @cached_property
    def _model(self) -> LanguageModel:
        return LanguageModel.from_weights(self._config, self._folded)

    @property
    def _identity(self) -> Coordinates:
        return choose_coordinates("identity", self._config, key=jax.random.key(0))

    def _layerwise(self, weights: Weights, label: str, objective: Objective | None = None) -> tuple[Outcome, Objective]:
        problem = problem_of(self._settings, weights, self._statistics)
        work = Layerwise(self._config, problem, self._start, self._settings, objective)
        learned = self._trained(work.train, label)
        measured = {
            name: self._described(place, problem, *work.measure(form))
            for name, (place, form) in self._places(learned.coordinates).items()
        }
        objective = work.objective
        del work, problem  # the pass takes a network with the gradient of its blocks, and should not lie beside them
        seconds = pass_seconds(self._model, self._tokens[0]) if label == "learn" else None
        return Outcome(learned=learned, measured=measured, control=None, pass_seconds=seconds), objective

    def _end_to_end(self) -> Outcome:
        settings, problem = self._settings, problem_of(self._settings, self._folded, self._statistics)
        objective: Objective
        if settings.is_integer:
            objective = settings.integers
            rates = Layerwise(self._config, problem, self._start, settings, objective)
        else:
            # The rate with the second moments says at which step the file will have its size.
            chosen = dataclasses.replace(settings, objective="scales", rate="water", output_feedback="never", batch=1)
            rates = Layerwise(self._config, problem, self._start, chosen)
            assert isinstance(rates.objective, Coded)
            objective = Coded(rates.objective.step)
        target = self._predicted(self._tokens)
        trial = None
        if self._unseen is not None:
            trial = self._predicted(self._unseen[spread(len(self._unseen), TRIAL_WINDOWS)])
        # The cores of a CPU share every product already; each of its devices would move all matrices once more.
        accelerators = [device for device in jax.devices() if device.platform != "cpu"]
        work = EndToEnd(self._model, problem, target, self._start, settings, objective, accelerators)
        learned = self._trained(work.train, "learn")
        measured = {}
        for name, (place, form) in self._places(learned.coordinates).items():
            described = self._described(place, problem, *rates.measure(form))
            measured[name] = described | {"distortion": work.measure(form, trial)}
        seconds = settings.batch * pass_seconds(self._model, self._tokens[0])
        return Outcome(learned=learned, measured=measured, control=None, pass_seconds=seconds)

    def _predicted(self, tokens: Int[np.ndarray, "windows length"]) -> Target:
        return predict(self._model, tokens, lambda rows: self._track(rows, "predict"))

    def _described(self, place: Coordinates, problem: Problem, point: RateDistortion, points: Points) -> dict[str, Any]:
        """Measurements as numbers that JSON knows; what is stored with matrices is paid for."""
        paid = stored_bits(self._config, place) / problem.num_weights
        kinds = {name: {"bits": float(p.bits), "distortion": float(p.distortion)} for name, p in points.items()}
        bits = float(point.bits) + paid
        return {"bits": bits, "distortion": float(point.distortion), "transform_bits": paid, "kinds": kinds}

    def _places(self, learned: Coordinates) -> dict[str, tuple[Coordinates, Coordinates]]:
        """Coordinates to measure in, and the same in the form of the learned ones: what is compiled serves for all."""

        def in_form(place: Coordinates) -> Coordinates:
            return as_stored(
                learned_coordinates(self._config, place, first_parameters(self._config, place, self._settings))
            )

        coded = as_decoded(learned)
        return {
            "original": (self._identity, in_form(self._identity)),
            "start": (self._start, in_form(self._start)),
            "learned": (learned, learned),
            "coded": (coded, coded),
        }

    def _trained(self, train: Callable[..., Learned], label: str) -> Learned:
        state = unfinished() / f"learn-{self._digest(label)}.safetensors"
        with self._progress(label, self._settings.num_steps) as advance:
            shown = 0

            def on_chunk(done: int, log: FitLog) -> None:
                nonlocal shown
                advance(done - shown)
                shown = done

            learned = train(key=jax.random.key(self._settings.seed), state=state, on_chunk=on_chunk)
        self._states.append(state)
        return learned

    def _digest(self, label: str) -> str:
        seen = text_digest(self._tokens) if self._settings.end_to_end else None
        begun = _digest_of(jax.tree.leaves(self._start)) if self._settings.init == "learned" else None
        parts = [
            self._statistics.fingerprint.digest,
            dataclasses.asdict(self._settings),
            seen,
            label,
            begun,
            _PROCEDURE,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def problem_of(settings: LearnSettings, weights: Weights, statistics: Statistics) -> Problem:
    """What a training with these settings looks at.

    Args:
        settings: of the training.
        weights: with folded norms.
        statistics: in original coordinates, with the Fisher information.
    """
    return make_problem(
        weights,
        statistics,
        hessians=settings.objective != "scales" or settings.rate != "field",
        outer=not settings.is_integer,
        damping=settings.damping,
        feeds_rows=settings.feeds_rows,
        token_weights=not (settings.is_integer and settings.feedback),  # GPTQ knows of none
    )


def _digest_of(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def pass_seconds(model: LanguageModel, tokens: Int[np.ndarray, " length"]) -> float:
    """Wall time of a forward and a backward pass without any transform: the gradient of every weight of the blocks."""
    rest = {name: part for name, part in model.params.items() if name != "blocks"}
    times = []
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(_pass(model.graphdef, model.params["blocks"], rest, jnp.asarray(tokens)))
        times.append(time.perf_counter() - began)
    return times[-1]


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=1)
def _pass(graphdef: Any, blocks: Any, rest: dict[str, Any], tokens: Int[Array, " length"]) -> Array:
    params = {**rest, "blocks": blocks}
    states, _ = observe(graphdef, params, tokens[None], reduce=lambda taps: None)
    return token_nll(states[:, :-1], rest.get("head", rest["embedding"]), tokens[None, 1:]).mean()
