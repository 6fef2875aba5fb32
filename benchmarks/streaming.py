"""A model of 1.1 billion parameters through every stage, and the memory that each takes.

    python benchmarks/streaming.py

A TinyLlama-shaped model with random bfloat16 weights is written in shards, then ``occ calibrate``, ``occ compress`` and
``occ decompress`` run as processes of their own. Calibration and compression are interrupted after some seconds and
started again; with ``--compare``, another one of each runs through, and the files are compared byte for byte. Layers
are streamed, so memory follows the largest matrix and the embedding, not the model. The last line on standard output is
one JSON object with peak memory in bytes and seconds of every stage.
"""

import dataclasses
import functools
import hashlib
import json
import signal
import tempfile
from pathlib import Path

import tyro
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.checkpoints.compressed import CONTAINER
from random_model import TINYLLAMA, random_weights
from stages import stage

SHARD_BYTES = 500_000_000


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(
    layers: int = 22,
    bits: float = 3.0,
    states: int = 8,
    windows: int = 2,
    interrupt_calibration_after: float = 120.0,
    interrupt_after: float = 120.0,
    compare: bool = False,
    work: Path | None = None,
) -> None:
    """Measure.

    Args:
        layers: blocks of the model; 22 make 1.1 billion parameters.
        bits: rate of the linear layers.
        states: of the trellis.
        windows: calibration windows of 1024 tokens.
        interrupt_calibration_after: seconds until calibration is interrupted; it keeps how far it has come once a
            minute.
        interrupt_after: seconds until the compression is interrupted.
        compare: make both files a second time without an interrupt, and compare.
        work: directory for about 10 GB; a temporary one by default.
    """
    # Jobs in the background of a shell ignore interrupts, and hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = dataclasses.replace(TINYLLAMA, num_layers=layers)
    with tempfile.TemporaryDirectory(prefix="occ-streaming-", dir=work) as scratch:
        place = Path(scratch)
        model = place / "model"
        run = functools.partial(stage, environment={"XDG_CACHE_HOME": str(place / "cache")})
        write_hf_directory(
            model,
            config=config,
            weights=random_weights(config),
            tokenizer_files=load_checkpoint("tiny").tokenizer_files,
            dtype="bfloat16",
            max_shard_bytes=SHARD_BYTES,
        )
        options = ["--bits", str(bits), "--states", str(states), "--finish", "never"]
        calibration = ["--calibration-windows", str(windows)]
        measured = place / "statistics.safetensors"
        calibrate = ["calibrate", *calibration, model, measured]
        stages = {"calibration interrupted": run(*calibrate, interrupt_after=interrupt_calibration_after)}
        stages["calibration resumed"] = run(*calibrate)
        calibration += ["--statistics", str(measured)]
        compress = ["compress", model, place / "small", *options, *calibration]
        stages["compression interrupted"] = run(*compress, interrupt_after=interrupt_after)
        stages["compression resumed"] = run(*compress)
        stages["decompress"] = run("decompress", place / "small", place / "dense", "--dtype", "bfloat16")
        summary = {
            "benchmark": "streaming",
            "parameters": sum(w.size for w in random_weights(config).values()),
            "file_bytes": (place / "small" / CONTAINER).stat().st_size,
        }
        if compare:
            again = [place / "again", place / "again.safetensors"]
            stages["calibration uninterrupted"] = run(*calibrate[:-1], again[1])
            stages["compression uninterrupted"] = run("compress", model, again[0], *options, *calibration)
            pairs = [(place / "small" / CONTAINER, again[0] / CONTAINER), (measured, again[1])]
            summary["identical"] = all(digest(one) == digest(other) for one, other in pairs)
    summary |= {name: dataclasses.asdict(result) for name, result in stages.items()}
    summary["peak_memory_bytes"] = max(result.peak_memory_bytes for result in stages.values())
    print(json.dumps(summary))


if __name__ == "__main__":
    tyro.cli(main)
