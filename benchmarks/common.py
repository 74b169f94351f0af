"""What every benchmark prints about the machine, and how it runs and times a command."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Run:
    """One run of a command: wall and processor seconds, peak resident bytes."""

    seconds: float
    cpu: float
    peak: int


def ckpt(*arguments: str) -> list[str]:
    """The command line of `ckpt` as a user has it."""
    script = Path(sys.executable).with_name("ckpt")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "ckptforensics"]
    return [*start, *arguments]


# Runnable processes a core from which on a machine is busy.
_QUIET = 0.5
# Makes numba compile nothing, so that `ckpt` does without it.
NO_NUMBA = {"NUMBA_DISABLE_JIT": "1"}


def run(command: list[str], **variables: str) -> Run:
    """Run a command to its end, start of the interpreter included; it must succeed."""
    # An installed package has its bytecode saved, whatever this process may write.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= variables
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{errors.decode()}")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte)


def turns(commands: list[list[str]], runs: int) -> list[list[Run]]:
    """Runs of the commands one after another, again and again, so that a busy moment meets all."""
    return [[run(command) for command in commands] for _ in range(runs)]


def best(work: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def drop_from_cache(files: list[Path]) -> None:
    """Let the operating system forget the files' contents, so that reading them is cold."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_once(files: list[Path]) -> float:
    """Seconds that `cat` takes for the files."""
    return run(["cat", *map(str, files)]).seconds


def machine() -> list[tuple[str, str]]:
    """Rows about the machine, the versions and the load."""
    import torch

    return [
        ("machine", f"{processor()}, {os.cpu_count()} cores, {platform.system()}"),
        (
            "versions",
            f"Python {platform.python_version()}, NumPy {np.__version__}, "
            f"torch {torch.__version__}",
        ),
        ("load average", load()),
        ("threads", f"NumPy's BLAS: {blas_threads()}; torch: {torch.get_num_threads()}"),
    ]


def require_quiet() -> None:
    """End the program where others use the machine: a ratio of such a run means nothing.

    Raises
    ------
    SystemExit
        if more than half a process for each core was runnable in the last minute.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > _QUIET * cores:
        raise SystemExit(
            f"the load is {load()} on {cores} cores: wait until it is below {_QUIET * cores:g}"
        )


def ratios(one: Sequence[float], other: Sequence[float]) -> str:
    """The median of the ratios of what was measured in turns, and the range."""
    found = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def load() -> str:
    """Average number of runnable processes of the last minute, where it is known."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def blas_threads() -> str:
    """Threads of NumPy's BLAS as its library reports them."""
    from threadpoolctl import threadpool_info

    pools = {
        f"{pool['internal_api']} {pool['version']}, {pool['num_threads']}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return "; ".join(sorted(pools)) or "none found"


def processor() -> str:
    """The processor's name, where the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def fill_page(page: Path, name: str, text: str) -> None:
    """Put text between the markers `<!-- name: begin -->` and `end` of a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    tail = rest.split(end)[1]
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8")


def spread(values: list[float]) -> str:
    """Median and range, in seconds."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"
