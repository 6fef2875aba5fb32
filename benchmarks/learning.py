"""The time of a step of learning, against forward and backward passes of the network over the same tokens.

    python benchmarks/learning.py [--model smollm2-135m-q4_1] [--batches 1 2 4 8] [--window 512]

Layer by layer a step sees no text, and is compared with a pass over one window. End to end, with integers of 2 bits and
searched ranges in Hadamard coordinates, it moves and quantizes every matrix once and then runs the network over its
windows: what it adds to the passes is the same however many there are. The passes are timed before and after each
training, in the same run. A table goes to standard error, one JSON object to standard output.
"""

import dataclasses
import json
import sys
from collections.abc import Callable

import jax
import numpy as np
import tyro
from occ_llm.calibration import Statistics, calibrate, calibration_windows
from occ_llm.checkpoints import Checkpoint, load_checkpoint
from occ_llm.compression.finishing import predict
from occ_llm.coordinates import choose_coordinates
from occ_llm.folding import fold_norms
from occ_llm.learning import LearnSettings
from occ_llm.learning.end_to_end import EndToEnd
from occ_llm.learning.layerwise import Layerwise
from occ_llm.learning.session import pass_seconds, problem_of
from occ_llm.learning.train import Learned
from occ_llm.model import LanguageModel


def trainer(checkpoint: Checkpoint, statistics: Statistics, tokens: np.ndarray, settings: LearnSettings) -> Callable:
    """Return what trains with some settings."""
    config, weights = checkpoint.config, fold_norms(checkpoint.config, checkpoint.weights)
    problem = problem_of(settings, weights, statistics)
    start = choose_coordinates(settings.init, config, key=jax.random.key(settings.seed))
    if not settings.end_to_end:
        return Layerwise(config, problem, start, settings).train
    model = LanguageModel.from_weights(config, weights)
    return EndToEnd(model, problem, predict(model, tokens), start, settings, settings.integers).train


def main(
    model: str = "smollm2-135m-q4_1", window: int = 512, batches: tuple[int, ...] = (1, 2, 4, 8), steps: int = 9
) -> None:
    """Print the ratio of a step to its passes: layer by layer, and end to end for some numbers of windows.

    Args:
        model: a directory, a hub id, a .gguf file, or a name of `occ models`.
        window: tokens of a window.
        batches: windows of a step.
        steps: of each training; the first, which compiles, is not counted.
    """
    checkpoint = load_checkpoint(model)
    tokens = calibration_windows(checkpoint.tokenizer, text=None, window=window, max_windows=max(4, *batches))
    statistics = calibrate(checkpoint.config, checkpoint.weights, tokens, key=jax.random.key(0), fisher_windows=1)
    network = LanguageModel.from_weights(checkpoint.config, checkpoint.weights)
    layerwise = LearnSettings(steps=steps, window=window)
    end_to_end = LearnSettings(objective="kl", bits=2.0, clip=True, init="hadamard", steps=steps, window=window)
    rows = []
    for settings in (layerwise, *(dataclasses.replace(end_to_end, batch=batch) for batch in batches)):
        train = trainer(checkpoint, statistics, tokens, settings)
        before = pass_seconds(network, tokens[0])
        learned: Learned = train(key=jax.random.key(0))
        passes = settings.batch * min(before, pass_seconds(network, tokens[0]))
        assert learned.seconds_per_step is not None
        row = {
            "objective": settings.objective,
            "windows": settings.batch,
            "step_s": learned.seconds_per_step,
            "passes_s": passes,
            "ratio": learned.seconds_per_step / passes,
        }
        rows.append(row)
        print(
            f"{settings.objective:6} {settings.batch} windows  step {row['step_s']:6.2f} s  passes {passes:6.2f} s  "
            f"ratio {row['ratio']:.2f}",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps({"benchmark": "learning", "model": model, "window": window, "steps": steps, "rows": rows}))


if __name__ == "__main__":
    tyro.cli(main)
