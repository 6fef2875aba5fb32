"""Entry point: parse, run, and turn every expected failure into one sentence and an exit code."""

import sys
from collections.abc import Sequence

import tyro

from occ_jax.codec import FormatError

from ..errors import OccError
from .analyse import Inspect, Models
from .compress import Calibrate, Compress, Decompress
from .demo import Demo
from .evaluate import Evaluate, Generate

COMMANDS = {
    "compress": Compress,
    "calibrate": Calibrate,
    "evaluate": Evaluate,
    "decompress": Decompress,
    "inspect": Inspect,
    "generate": Generate,
    "models": Models,
    "demo": Demo,
}

BAD_INPUT, INTERRUPTED = 2, 130


def main(args: Sequence[str] | None = None) -> None:
    """Run ``occ``; exits with 0, with 2 for input that cannot be used, or with 130 when interrupted."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="occ", description=__import__("occ_llm.cli").cli.__doc__, args=args, sort_subcommands=False
    )
    sys.exit(run(command))


def run(command) -> int:
    """Run one parsed command and return the exit code."""
    try:
        command.run()
    except KeyboardInterrupt:
        sys.stderr.write("occ: interrupted; nothing was written, run the same command to start again\n")
        return INTERRUPTED
    except (OccError, FormatError) as error:
        sys.stderr.write(f"occ: {error}\n")
        return BAD_INPUT
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"occ: {place}{error.strerror or error}; nothing was written\n")
        return BAD_INPUT
    return 0
