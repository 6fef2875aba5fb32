"""Entry point: parse, run, and turn every expected failure into one sentence and an exit code."""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import jax
import tyro

from occ_jax.errors import InputError

from ..checkpoints.named import cache_directory
from .analyze import Analyze
from .bench import BenchCommand
from .compress import Calibrate, Compress, Decompress
from .demo import Demo
from .evaluate import Evaluate, Generate
from .inspection import Inspect, Models
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
    "analyze": Analyze,
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
    interrupt_when_stopped()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_compiled(cache_directory() / "compiled")
    sys.exit(run(args))


def interrupt_when_stopped() -> None:
    """Let a process that is asked to end, or whose terminal is closed, clean up as an interrupted one does.

    A signal that the caller ignores (``nohup``) stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _keep_compiled(directory: Path) -> None:
    """Keep compiled functions in a directory of limited size; it is only ever a matter of time if that fails."""
    for entry in directory.glob("*-cache"):
        # Left without its time of use by a process that was killed; JAX could not write another one beside it.
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache entry")


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
