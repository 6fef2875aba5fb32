"""``occ`` as processes of their own: how each ends, its wall time and the memory that it takes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One process.

    Attributes:
        exit_code: 0, or 130 after an interrupt.
        seconds: wall time.
        peak_memory_bytes: largest resident set.
    """

    exit_code: int
    seconds: float
    peak_memory_bytes: int


def stage(*arguments: str | Path, environment: Mapping[str, str], interrupt_after: float | None = None) -> Stage:
    """Run ``occ`` with these arguments.

    Args:
        arguments: of the command.
        environment: variables beside those of this process.
        interrupt_after: seconds until it is interrupted.
    """
    command = [sys.executable, "-m", "occ_llm.cli", *map(str, arguments)]
    print("occ", *arguments, file=sys.stderr)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    if interrupt_after is not None:
        time.sleep(interrupt_after)
        os.kill(process.pid, signal.SIGINT)  # one that has ended is not waited for yet, so its usage is not lost
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    result = Stage(exit_code=process.returncode, seconds=seconds, peak_memory_bytes=usage.ru_maxrss * 1024)
    print(f"  {result}", file=sys.stderr)
    return result
