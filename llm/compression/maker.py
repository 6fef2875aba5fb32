"""Files at a step: make one, measure it, finish it, write it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int

from occ_jax.codec import CodedTensor, decode_tensor, encode_raw, with_row_factors

from ..checkpoints import Checkpoint
from ..checkpoints.compressed import BASIS
from ..errors import OccError
from ..evaluation import Reference, Windows, evaluate
from ..model import LanguageModel
from ..parallel import Track, in_pairs
from ..roles import is_linear
from ..scratch import scratch
from .allocation import Allocation, allocate
from .compressor import Compressor, encode_rest
from .estimates import Estimates
from .factors import Factors
from .finishing import FinishSettings, Target, Tuned, cut_shorter, finish, predict
from .model_files import open_model, write_model
from .plan import RateOutOfReachError
from .sequential import Code, code_in_sequence
from .settings import Settings
from .sizes import Sizes, linear_bits
from .staging import Staging


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationTokens:
    """Text beside the statistics, as tokens.

    Attributes:
        calibration: windows on which the statistics are collected, once and, in sequence, again.
        finishing: windows on which row scales and gains are tuned.
        held_back: windows that nothing else has seen, on which a divergence is measured to meet a target.
        unseen: what the text has beside these.
    """

    calibration: Int[np.ndarray, "windows length"]
    finishing: Int[np.ndarray, "tuned length"]
    held_back: Int[np.ndarray, "held length"] | None = None
    unseen: Int[np.ndarray, "more length"] | None = None


@final
class Maker:
    """Makes the file of one compression at any step, and keeps what the next attempt can use.

    Args:
        checkpoint: the original.
        compressor: of its network; planned.
        settings: how.
        staging: keeps finished work.
        tokens: text for finishing and for measuring a divergence.
        track: shows progress.
        near: allocation of a neighbouring rate, if there is one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        compressor: Compressor,
        settings: Settings,
        staging: Staging,
        tokens: CalibrationTokens | None,
        track: Track,
        *,
        near: Allocation | None = None,
    ):
        self._checkpoint = checkpoint
        self._compressor = compressor
        self._settings = settings
        self._staging = staging
        self._tokens = tokens
        self._track = track
        self._near = near
        self._first: Allocation | None = None
        self._estimates: Estimates | None = None
        self._last: tuple[float, dict[str, CodedTensor]] | None = None
        self._made: tuple[float, dict[str, CodedTensor]] | None = None
        self._growth = 0.0  # of the size, by finishing
        self._target: Target | None = None
        self._reference: Reference | None = None

    @property
    def finishes(self) -> bool:
        """Whether row scales and gains are tuned."""
        return self._settings.finish == "always"

    @property
    def slope(self) -> float:
        """Expected change per octave of the step: of a rate, or of the binary logarithm of a divergence."""
        if self._settings.goal.kind == "bytes":
            return -sum(plan.num_weights for plan in self._compressor.plans.values()) / 8
        return 2.0 if self._settings.goal.kind == "kl" else -1.0

    def first_allocation(self) -> Allocation:
        """Step and codebook from which the search starts."""
        if self._first is None:
            self._first = self._staging.allocation("first", self._guess)
        return self._first

    def curve(self, step: float) -> float:
        """The step for which tables and classes of a file were chosen: with others its size is another function."""
        return self._estimated(step).step

    def measure(self, step: float) -> float:
        """Make the file at a step and return what it has of the goal's kind.

        A size is that of the file before finishing, and what :meth:`settles` has seen finishing add.
        """
        kind = self._settings.goal.kind
        if kind == "step":
            return step
        if kind == "kl":
            return self._staging.measured(step, lambda: self._divergence(step))
        return self._staging.measured(step, lambda: self._size(step, self.coded(step))) + self._growth

    def settles(self, step: float) -> bool:
        """Whether the file at a step still has the size that is asked for when it is finished.

        If not, :meth:`measure` counts what finishing adds from now on.
        """
        goal = self._settings.goal
        if goal.kind not in ("bits", "bytes") or not self.finishes:
            return True
        (size,) = self._staging.series(f"finished {step.hex()}", lambda: [self._size(step, self._finished(step))])
        self._growth += size - self.measure(step)
        return goal.met_by(size)

    def coded(self, step: float) -> dict[str, CodedTensor]:
        """Every tensor of the file at a step, before finishing."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        allocation, compressor, finishes = self._allocation(step), self._compressor, self.finishes

        def code(names: Sequence[str], factors: Callable[[], Factors] | None) -> dict[str, CodedTensor]:
            def make(missing: Sequence[str]) -> dict[str, CodedTensor]:
                renewed = factors() if factors is not None and missing else None
                return compressor.encode(missing, allocation, fine_rows=finishes, factors=renewed)

            return self._staging.tensors(step, names, allocation.codebook, make)

        self._staging.begin(step)
        coded = self._in_sequence(code) if self._settings.sequential else self._in_pairs(code)
        self._last = step, coded | encode_rest(compressor.network, gains=finishes)
        return self._last[1]

    def write(self, directory: Path, step: float) -> Sizes:
        """Write the finished file at a step and everything that belongs beside it, except for the model card."""
        return self._write(directory, self._finished(step))

    def _guess(self) -> Allocation:
        goal, compressor = self._settings.goal, self._compressor
        plans = compressor.plans
        look = functools.partial(allocate, plans, compressor.probe, num_states=self._settings.states)
        if goal.kind == "step":
            return look(step=goal.value)
        if goal.kind == "kl":
            return look(target_bits=3.0 * compressor.num_linear_weights)
        look = functools.partial(look, pilot=compressor.pilot, near=self._near)
        if goal.kind == "bits":
            counted, rest, unit = [name for name in plans if is_linear(name)], 0, compressor.num_linear_weights
        else:
            counted, unit = [*plans], 8
            rest = sum(coded.num_bytes for coded in encode_rest(compressor.network, gains=True).values())
        side_info = 8 * rest + compressor.side_info_bits(counted)
        try:
            return look(target_bits=unit * goal.value - side_info, target=set(counted).__contains__)
        except RateOutOfReachError as error:
            least, most = (goal.describe((side_info + bits) / unit) for bits in (0, error.most_bits))
            raise OccError(
                f"--{goal.kind} {goal.value:.12g} cannot be reached: with these settings the model takes from about "
                f"{least} to about {most}; choose a target in that range"
            ) from error

    def _allocation(self, step: float) -> Allocation:
        estimated = self._estimated(step)
        if step == estimated.step:
            return estimated
        return dataclasses.replace(estimated, step=step, classes_at=estimated.step)

    def _estimated(self, step: float) -> Allocation:
        """The allocation whose tables serve at a step."""
        if self._estimates is None:
            self._estimates = Estimates(self.first_allocation(), self._estimate)
        return self._estimates.at(step)

    def _estimate(self, step: float) -> Allocation:
        compressor, states = self._compressor, self._settings.states
        return self._staging.allocation(
            step.hex(), lambda: allocate(compressor.plans, compressor.probe, num_states=states, step=step)
        )

    def _in_pairs(self, code: Code) -> dict[str, CodedTensor]:
        groups = self._compressor.network.by_block()
        places = tuple(groups)
        coded: dict[str, CodedTensor] = {}
        shown = self._track(places, "quantize and code")
        for _, made in in_pairs(lambda place: code(groups[place], None), shown, places):
            coded |= made
        return coded

    def _in_sequence(self, code: Code) -> dict[str, CodedTensor]:
        assert self._tokens is not None
        return code_in_sequence(
            self._compressor.network,
            self._tokens.calibration,
            code,
            damping=self._settings.damping,
            progress=lambda places: self._track(places, "quantize in sequence"),
        )

    def _finished(self, step: float) -> dict[str, CodedTensor]:
        """Every tensor of the file at a step."""
        if self._made is None or self._made[0] != step:
            coded = self.coded(step)
            self._made = step, self._tuned(step, coded) if self.finishes else coded
        return self._made[1]

    def _size(self, step: float, coded: dict[str, CodedTensor]) -> float:
        if self._settings.goal.kind == "bits":
            return linear_bits(coded, self._allocation(step).codebook)
        with scratch("size") as place:
            return float(self._write(place, coded).file_bytes)

    def _divergence(self, step: float) -> float:
        assert self._tokens is not None
        assert self._tokens.held_back is not None
        if self._reference is None:
            self._reference = Reference(self._original())
        windows = Windows(tokens=self._tokens.held_back, num_bytes=1)
        with scratch("measure") as place:
            self._write(place, self._finished(step))
            quality = evaluate(
                open_model(place), windows, reference=self._reference, progress=lambda r: self._track(r, "measure")
            )
        assert quality.kl_mean is not None
        return quality.kl_mean

    def _original(self) -> LanguageModel:
        return LanguageModel.from_weights(self._checkpoint.config, self._checkpoint.weights)

    def _tuned(self, step: float, coded: dict[str, CodedTensor]) -> dict[str, CodedTensor]:
        assert self._tokens is not None
        settings = FinishSettings(steps=self._settings.finish_steps)
        if self._target is None:
            windows = cut_shorter(self._tokens.finishing, settings.window)[: settings.steps]
            self._target = predict(self._original(), windows, lambda rows: self._track(rows, "predict"))
        with scratch("finish") as place:
            self._write(place, coded)
            tuned = finish(
                open_model(place),
                self._target,
                settings,
                final_gain=BASIS not in coded,
                state=self._staging.finishing(step),
                progress=lambda steps: self._track(steps, "finish"),
            )
        return _apply(tuned, coded)

    def _write(self, directory: Path, coded: dict[str, CodedTensor]) -> Sizes:
        settings = self._settings
        model = {"coordinates": settings.coordinates, "quantizer": settings.quantizer, "feedback": settings.feedback}
        chosen = {
            "output_feedback": settings.feeds_rows,
            "sequential": settings.sequential,
            "correct_sensitivity": settings.correct_sensitivity,
        }
        model |= {name: True for name, on in chosen.items() if on}
        return write_model(directory, coded, self._checkpoint, model)


def _apply(tuned: Tuned, coded: dict[str, CodedTensor]) -> dict[str, CodedTensor]:
    """The same indices with tuned row steps, biases and gains."""
    result = dict(coded)
    for name, factors in tuned.row_factors.items():
        result[name] = with_row_factors(coded[name], factors)
        bias = name.removesuffix("weight") + "bias"
        if bias in coded:
            result[bias] = encode_raw(decode_tensor(coded[bias]) * factors.astype(np.float32), "float16")
    return result | {name: encode_raw(gain, "float16") for name, gain in tuned.gains.items()}
