"""Time and memory of a calibration, and how much of the machine's speed at matrix products it reaches.

    python benchmarks/calibration.py [--model smollm2-135m-q4_1] [--text FILE] [--windows 32] [--length 1024]

The statistics go to a temporary file, so the memory is that of the computation. Next to the wall time stand the
operations that the method needs and the rate of one large matrix product, measured before and after in the same
process. The table goes to standard error, one JSON object to standard output.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from occ_llm.calibration import calibrate, calibration_windows, statistic_shapes
from occ_llm.checkpoints import load_checkpoint, tensor_shapes
from occ_llm.cli.compress import CalibrationText
from occ_llm.config import ModelConfig
from occ_llm.roles import is_linear


def product_flops_per_s(size: int = 2048, repeats: int = 5) -> float:
    """Best rate of a square float32 product."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def operations(config: ModelConfig, windows: int, length: int, fisher_windows: int) -> dict[str, float]:
    """Floating-point operations of each part; causal attention counts the half that is needed."""
    tokens, back = windows * length, min(windows, fisher_windows) * length
    linear = sum(np.prod(shape) for name, shape in tensor_shapes(config).items() if is_linear(name))
    head = config.vocab_size * config.hidden_size
    attention = config.num_layers * config.num_heads * config.head_dim * length  # 2 products over half the positions
    squares = {"hessian": 0, "fisher": 0, "weighted": 0}
    for name, shape in statistic_shapes(config).items():
        if len(shape) == 2:
            squares[name.rpartition(".")[2]] += shape[0] * shape[1]
    return {
        "forward": 2.0 * tokens * (linear + attention),
        "recompute": 2.0 * back * (linear + attention + head),
        "backward": 2.0 * back * (linear + 2 * attention + head),
        # A symmetric product needs half the operations; weighted moments are formed twice, with one solution between.
        "second_moments": 1.0 * tokens * squares["hessian"] + back * (squares["fisher"] + 4.0 * squares["weighted"]),
    }


def main(
    model: str = "smollm2-135m-q4_1",
    text: Path | None = None,
    windows: int = 32,
    length: int = 1024,
    fisher_windows: int = CalibrationText.fisher_windows,
    seed: int = 0,
) -> None:
    """Print the table and the JSON line.

    Args:
        model: a model's name, directory or GGUF file.
        text: calibration text; by default the documentation that every Python carries.
        windows: how many windows to take from it.
        length: tokens in a window.
        fisher_windows: windows that go back, for the output Fisher.
        seed: of the labels.
    """
    checkpoint = load_checkpoint(model)
    content = None if text is None else text.read_text(encoding="utf-8")
    tokens = calibration_windows(checkpoint.tokenizer, text=content, window=length, max_windows=windows)
    stages: list[float] = []

    def timed(steps: Iterable) -> Iterator:
        for step in steps:
            start = time.perf_counter()
            yield step
            stages.append(time.perf_counter() - start)

    rate = product_flops_per_s()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "statistics.safetensors"
        os.environ["XDG_CACHE_HOME"] = directory  # nothing to go on with from a run that was interrupted
        calibrate(
            checkpoint.config,
            checkpoint.weights,
            tokens,
            key=jax.random.key(seed),
            path=path,
            fisher_windows=fisher_windows,
            progress=timed,
        )
        seconds, file_bytes = time.perf_counter() - start, path.stat().st_size
    rate = max(rate, product_flops_per_s())
    depth = checkpoint.config.num_layers
    flops = operations(checkpoint.config, *tokens.shape, fisher_windows)
    row = {
        "model": checkpoint.name,
        "windows": tokens.shape[0],
        "length": tokens.shape[1],
        "fisher_windows": min(fisher_windows, tokens.shape[0]),
        "seconds": seconds,
        "forward_seconds": sum(stages[:depth]),
        "head_seconds": stages[depth],
        "backward_seconds": sum(stages[depth + 1 :]),
        "tflop": sum(flops.values()) / 1e12,
        "gflops_per_s": sum(flops.values()) / seconds / 1e9,
        "product_gflops_per_s": rate / 1e9,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "file_bytes": file_bytes,
    }
    for name, value in row.items():
        sys.stderr.write(f"{name:>22}  {value:,.1f}\n" if isinstance(value, float) else f"{name:>22}  {value}\n")
    print(json.dumps(row))


if __name__ == "__main__":
    tyro.cli(main)
