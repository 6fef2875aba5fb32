"""Perplexity evaluation of SmolLM2-135M against transformers on PyTorch, in float32, on the same cores in one run.

    pip install -e .[interop]
    python benchmarks/forward.py

Windows of 2048 tokens; the two take turns, the best of the rounds counts. Processor seconds stand beside wall time, as
they suffer less from whatever else the machine does. The last line on standard output is one JSON object.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro
from occ_llm.checkpoints import Checkpoint, load_checkpoint
from occ_llm.evaluation import cut_windows, evaluate
from occ_llm.model import LanguageModel
from occ_llm.text import python_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """One evaluation of all windows.

    Attributes:
        nll: mean negative log-likelihood, nats per token.
        wall_s: wall time.
        cpu_s: time of all threads of the process.
    """

    nll: float
    wall_s: float
    cpu_s: float


def transformers_evaluation(checkpoint: Checkpoint) -> Callable[[np.ndarray], float]:
    """Return the usual evaluation with transformers: the mean loss of every window."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**checkpoint.config.to_hf()), dtype=torch.float32)
    state = {name: torch.from_numpy(np.array(w)) for name, w in checkpoint.weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"transformers and the checkpoint disagree about tensors: {missing} {unexpected}")
    model.tie_weights()
    model.eval()

    def run(tokens: np.ndarray) -> float:
        with torch.inference_mode():
            rows = torch.from_numpy(tokens).long()
            return float(np.mean([model(row[None], labels=row[None]).loss.item() for row in rows]))

    return run


def timed(run: Callable[[], float]) -> Timing:
    """Run once."""
    wall, cpu = time.perf_counter(), time.process_time()
    nll = run()
    return Timing(nll=nll, wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)


def fastest(timings: list[Timing]) -> Timing:
    """Best of each figure."""
    return Timing(nll=timings[0].nll, wall_s=min(t.wall_s for t in timings), cpu_s=min(t.cpu_s for t in timings))


def main(windows: int = 2, window: int = 2048, rounds: int = 3) -> None:
    """Compare.

    Args:
        windows: windows per evaluation.
        window: tokens per window.
        rounds: evaluations of each; the first, which compiles, is not counted.
    """
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # as `occ` does
    checkpoint = load_checkpoint("smollm2-135m-q4_1")
    rows = cut_windows(python_text("heldout"), checkpoint.tokenizer, window=window, max_windows=windows)
    model = LanguageModel.from_weights(checkpoint.config, checkpoint.weights).on(tuple(jax.devices()))
    theirs = transformers_evaluation(checkpoint)
    runs = {"occ_jax": lambda: evaluate(model, rows).nll, "transformers": lambda: theirs(rows.tokens)}
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            timing = timed(run)
            print(f"round {number} {name:>12}: nll {timing.nll:.6f}", file=sys.stderr, end="")
            print(f", {timing.wall_s:.2f} s, {timing.cpu_s:.2f} processor s", file=sys.stderr)
            if number > 0:
                timings[name].append(timing)
    best = {name: fastest(several) for name, several in timings.items()}
    ours, reference = best["occ_jax"], best["transformers"]
    summary = {
        "benchmark": "forward",
        "windows": len(rows.tokens),
        "window": window,
        "speedup": reference.wall_s / ours.wall_s,
        "cpu_speedup": reference.cpu_s / ours.cpu_s,
        "nll_difference": abs(ours.nll - reference.nll),
        **{name: dataclasses.asdict(timing) for name, timing in best.items()},
    }
    print(f"speed relative to transformers: {summary['speedup']:.2f} x", file=sys.stderr)
    print(json.dumps(summary))


if __name__ == "__main__":
    tyro.cli(main)
