"""Entry point: parse, run, and turn every expected failure into one sentence and an exit code."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import jax
import tyro

from occ_jax.errors import InputError

from ..checkpoints.named import cache_directory
from .analyse import Inspect, Models
from .bench import BenchCommand
from .compress import Calibrate, Compress, Decompress
from .demo import Demo
from .evaluate import Evaluate, Generate
from .learn import Learn

DESCRIPTION = "Compress language models: a model in, a smaller file out, and the measurements between."

COMMANDS = {
    "compress": Compress,
    "calibrate": Calibrate,
    "evaluate": Evaluate,
    "decompress": Decompress,
    "inspect": Inspect,
    "generate": Generate,
    "models": Models,
    "demo": Demo,
    "bench": BenchCommand,
    "learn": Learn,
    # Commands of other packages: dataclasses with a method run(), which raises InputError for what the user can mend.
    **{point.name: point.load() for point in sorted(entry_points(group="occ.commands"))},
}

COMPILED_BYTES = 1 << 28
"""Largest size of the cache of compiled functions; the least recently used ones leave it."""

BAD_INPUT, INTERRUPTED = 2, 130


def main(args: Sequence[str] | None = None) -> None:
    """Run ``occ``; exits with 0, with 2 for input that cannot be used, or with 130 when interrupted.

    On a machine without an accelerator every core is a device of its own: quantization shares its rows between them.
    What has been compiled once is kept in the user's cache, unless ``JAX_COMPILATION_CACHE_DIR`` says where.
    """
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Parse and run one command, and return the exit code."""
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="occ", description=DESCRIPTION, args=args)
        command.run()
    except KeyboardInterrupt:
        return _failed("interrupted; nothing is half-written, run the same command to go on", INTERRUPTED)
    except InputError as error:
        return _failed(str(error), BAD_INPUT)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _failed(f"{place}{error.strerror or error}; nothing was written", BAD_INPUT)
    return 0


def _failed(sentence: str, code: int) -> int:
    sys.stderr.write(f"occ: {sentence}\n")
    return code
