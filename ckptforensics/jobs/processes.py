"""Several models signed side by side, each by a process of its own, within one memory budget."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ckptforensics.errors import CkptError, UsageError, exit_code

_POLL_SECONDS = 0.05
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def memory_size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | None:
    """Bytes from what the user wrote: `8GB`, `500MB`, `2GiB`."""
    if value is None:
        return None
    number = value.strip().rstrip("BGIKMbgikm")
    unit = value.strip()[len(number) :].upper() or "B"
    try:
        size = int(float(number) * _UNITS[unit if unit.endswith("B") else unit + "B"])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise click.BadParameter(f"{value!r} is no size such as 8GB or 500MB", context, parameter)
    return size


@dataclass
class Job:
    """One model to sign.

    Attributes
    ----------
    model : as the user named it
    memory : bytes that signing it needs
    output : file its signature goes to, or None
    problem : what kept it from starting
    process, folder : its process, and where what it prints is
    """

    model: str
    memory: int = 0
    output: Path | None = None
    problem: CkptError | None = None
    process: subprocess.Popen[bytes] | None = None
    folder: Path = Path()

    @property
    def running(self) -> bool:
        """Whether its process has begun and not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.problem is not None or (self.process is not None and not self.running)

    @property
    def code(self) -> int:
        """Exit code of its process, or of what kept it from starting."""
        if self.problem is not None:
            return exit_code(self.problem)
        assert self.process is not None
        return self.process.returncode

    def start(self, options: Sequence[str], environment: dict[str, str]) -> None:
        """Begin to sign it, with these options of `ckpt sign`."""
        own = ["--memory", str(self.memory)]
        own += [] if self.output is None else ["--output", str(self.output)]
        command = [sys.executable, "-m", "ckptforensics", "sign", self.model, *options, *own]
        # Files, not pipes: a process never waits for somebody to read what it printed.
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self.process = subprocess.Popen(  # noqa: S603 (this program, no shell)
                command, stdout=out, stderr=err, env=environment
            )

    def printed(self) -> str:
        """What its process wrote to stdout."""
        return (self.folder / "out").read_text("utf-8", "replace") if self.process else ""

    def complaint(self) -> str:
        """The last line it wrote to stderr, or what kept it from starting."""
        if self.problem is not None:
            return f"ckpt: error: {self.problem}"
        lines = (self.folder / "err").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"ckpt: error: ended with exit code {self.code}"


def run_jobs(
    jobs: Sequence[Job], options: Sequence[str], *, at_once: int, memory: int
) -> Iterator[Job]:
    """Sign every model with `ckpt sign MODEL OPTIONS`; yields the jobs in order, each when done.

    Parameters
    ----------
    options : passed to every process
    at_once : processes at a time
    memory : bytes that all of them may need together; a model that needs more alone is a problem
    """
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    for job in jobs:
        if job.memory > memory:
            job.problem = UsageError(
                f"signing it needs about {job.memory / 1e9:.1f} GB of memory",
                path=Path(job.model),
                hint="allow more with --memory",
            )
    waiting = [job for job in jobs if job.problem is None]
    shown = 0
    with tempfile.TemporaryDirectory(prefix="ckpt-sign-") as folder:
        try:
            while shown < len(jobs):
                running = [job for job in jobs if job.running]
                free = memory - sum(job.memory for job in running)
                if waiting and len(running) < at_once and waiting[0].memory <= free:
                    job = waiting.pop(0)
                    job.folder = Path(tempfile.mkdtemp(dir=folder))
                    job.start(options, environment)
                elif jobs[shown].ended:
                    yield jobs[shown]
                    shown += 1
                else:
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in jobs:
                if job.running and job.process is not None:
                    job.process.terminate()
                    job.process.wait()


def output_names(models: Sequence[str], folder: Path) -> list[Path]:
    """A file for each model's signature in the folder, by the models' last names, all different."""
    taken: set[str] = set()
    paths = []
    for model in models:
        stem = Path(model.partition("@")[0]).name or "model"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        paths.append(folder / f"{name}.safetensors")
    return paths


def default_memory() -> int:
    """Half of the machine's memory, where it is known, else 8 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 8 * 10**9
