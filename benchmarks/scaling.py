"""How the time of a compression grows: with the number of layers, and with rows and columns of a matrix.

    python benchmarks/scaling.py

1. Networks of SmolLM2's width with 2, 4 and 8 blocks and random weights, compressed at one step with cached statistics:
   seconds against weights of the blocks (the embedding is small here), and the exponent of a straight line in
   logarithms. The first compression, which compiles, is not counted.
2. Quantization with feedback of single matrices: seconds against rows (exponent 1) and against columns. A column's
   error moves to every later column, so the arithmetic is rows x columns^2; the search of the trellis is
   rows x columns, and dominates until there are thousands of columns. The share of each is fitted.

Ratios and exponents are what counts; seconds are of this machine. The last line on standard output is one JSON object.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from occ_llm.calibration import calibrate
from occ_llm.checkpoints import Checkpoint, load_checkpoint
from occ_llm.compression import Settings, compress
from occ_llm.compression.plan import plan_matrix
from random_model import SMOLLM2, random_weights

from occ_jax.quantization.codebook import search_tables
from occ_jax.quantization.feedback import quantize_with_feedback
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.scales import CLASS_SHIFT, class_sigmas
from occ_jax.quantization.trellis import gaussian_codebook


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Best of several runs, after one that compiles."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def stack_seconds(num_layers: int, *, states: int, rounds: int) -> float:
    """Compression of a network with cached statistics."""
    config = dataclasses.replace(SMOLLM2, num_layers=num_layers, vocab_size=2048)
    tiny = load_checkpoint("tiny")
    checkpoint = Checkpoint(
        name=f"{num_layers} blocks",
        config=config,
        weights={name: w for name, w in random_weights(config).items()},
        tokenizer=tiny.tokenizer,
        tokenizer_files=tiny.tokenizer_files,
    )
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 512), dtype=np.int32)
    statistics = calibrate(config, checkpoint.weights, tokens, key=jax.random.key(0))
    settings = Settings(step=0.02, states=states, finish="never")
    with tempfile.TemporaryDirectory() as scratch:
        return fastest(lambda: compress(checkpoint, Path(scratch) / "out", statistics, settings, force=True), rounds)


def matrix_seconds(rows: int, columns: int, *, states: int, rounds: int) -> float:
    """Quantization of one random matrix with feedback."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, columns), np.float32)
    x = rng.standard_normal((columns, columns)) / columns**0.5
    factor = prepare_hessian((x @ x.T + 0.1 * np.eye(columns)).astype(np.float32), damping=0.01)
    tables = search_tables(gaussian_codebook(class_sigmas(), num_states=states))
    levels = plan_matrix("w", w, factor.relative_steps, np.ones(rows, np.float32)).levels(0.5)
    step_row, step_column = levels.steps()

    def run() -> None:
        result = quantize_with_feedback(
            w,
            factor,
            tables,
            step_row=step_row,
            step_column=step_column,
            row_level=levels.class_rows,
            column_level=levels.class_cols,
            num_states=states,
            class_shift=CLASS_SHIFT,
            devices=tuple(jax.devices()),
        )
        jax.block_until_ready(result.q)

    return fastest(run, rounds)


def main(
    blocks: tuple[int, ...] = (2, 4, 8),
    sizes: tuple[int, ...] = (1024, 2048, 4096),
    rows: int = 2048,
    states: int = 8,
    rounds: int = 2,
) -> None:
    """Measure.

    Args:
        blocks: blocks of the networks.
        sizes: rows of the matrices, and their columns.
        rows: rows of the matrices whose columns vary, and the other way round.
        states: of the trellis.
        rounds: runs of each, the best counts.
    """
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # as `occ` does
    measured: dict[str, list[float]] = {
        "blocks": [stack_seconds(n, states=states, rounds=rounds) for n in blocks],
        "rows": [matrix_seconds(n, rows, states=states, rounds=rounds) for n in sizes],
        "columns": [matrix_seconds(rows, n, states=states, rounds=rounds) for n in sizes],
    }
    # t = a n + b n^2 in the columns: search and feedback
    columns = np.array(sizes, float)
    a, b = np.linalg.lstsq(np.stack([columns, columns**2], 1), np.array(measured["columns"]), rcond=None)[0]
    share = b * columns**2 / (a * columns + b * columns**2)
    summary = {"benchmark": "scaling", "states": states, "sizes": sizes, "num_blocks": blocks, **measured}
    for name, at in (("blocks", blocks), ("rows", sizes), ("columns", sizes)):
        summary[f"{name}_exponent"] = exponent(at, measured[name])
        times = ", ".join(f"{n}: {t:.2f} s" for n, t in zip(at, measured[name], strict=True))
        print(f"{name:>8}  {times}; exponent {summary[f'{name}_exponent']:.2f}", file=sys.stderr)
    summary["feedback_share"] = share.tolist()
    print(f"feedback's share of a matrix: {', '.join(f'{s:.0%}' for s in share)}", file=sys.stderr)
    print(json.dumps(summary))


if __name__ == "__main__":
    tyro.cli(main)
