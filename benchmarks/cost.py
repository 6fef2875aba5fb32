"""What one model takes: time and memory of a calibration, and of compressions from cached statistics.

    python benchmarks/cost.py [--model smollm2-135m-q4_1] [--text FILE] [--windows 32]

``occ calibrate`` and ``occ compress`` run as processes of their own, with a cache of compiled functions that is empty
at the start: with 8 states at 3 bits, with the default at 3 bits, and with the default at 2 bits (feedback along the
outputs, and row scales and gains tuned afterwards). Nothing else should run on the machine. The last line on standard
output is one JSON object with seconds and peak memory of each, and the number of cores.
"""

import dataclasses
import functools
import json
import os
import tempfile
from pathlib import Path

import tyro
from occ_llm.cli.compress import CalibrationText
from stages import Stage, stage

FILES = {
    "compression at 3 bits, 8 states": ("--bits", "3", "--states", "8"),
    "compression at 3 bits": ("--bits", "3"),
    "compression at 2 bits": ("--bits", "2"),
}
"""What is made -> its options."""


def main(model: str = "smollm2-135m-q4_1", text: Path | None = None, windows: int = 32) -> None:
    """Measure.

    Args:
        model: a model's name, directory or GGUF file; one that need not be downloaded first.
        text: calibration text; by default the documentation that every Python carries.
        windows: of 1024 tokens, to calibrate on.
    """
    calibration = ["--calibration-windows", str(windows), *(() if text is None else ("--text", str(text)))]
    with tempfile.TemporaryDirectory(prefix="occ-cost-") as scratch:
        place = Path(scratch)
        statistics = place / "statistics.safetensors"
        run = functools.partial(stage, environment={"JAX_COMPILATION_CACHE_DIR": str(place / "compiled")})
        stages: dict[str, Stage] = {"calibration": run("calibrate", model, statistics, *calibration)}
        calibration += ["--statistics", str(statistics)]
        for number, (name, options) in enumerate(FILES.items()):
            stages[name] = run("compress", model, place / str(number), *options, *calibration)
    facts = {"benchmark": "cost", "model": model, "windows": windows, "cores": os.cpu_count()}
    facts["fisher_windows"] = min(windows, CalibrationText.fisher_windows)
    print(json.dumps(facts | {name: dataclasses.asdict(result) for name, result in stages.items()}))


if __name__ == "__main__":
    tyro.cli(main)
