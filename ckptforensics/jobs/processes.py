"""Parts of `ckpt` side by side, each in a process of its own, within one memory budget."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptforensics.errors import CkptError, UsageError, exit_code
from ckptforensics.jobs.limited import ENDS_WITH

_POLL_SECONDS = 0.05


@dataclass
class Job:
    """One command, about one model.

    Attributes
    ----------
    model : as the user named it
    arguments : of `ckpt`, or of another module of this package
    memory : bytes that it needs
    module : that is run
    reserved : bytes that its process may reserve, files that it maps among them; None for no limit
    seconds : after which its process is ended; None for no limit
    overdue : whether it was ended for that
    problem : what kept it from starting, or from ending by itself
    process, folder : its process, and where what it prints is
    sends : files among its arguments that go with it where its process is on another machine
    brings : names of files that it may write beside the first of these, and that come back then
    needs : files and directories that another machine must have, of the same names
    returned : exit code of a process on another machine, when it has ended
    """

    model: str
    arguments: Sequence[str] = ()
    memory: int = 0
    module: str = "ckptforensics"
    reserved: int | None = None
    seconds: float | None = None
    overdue: bool = False
    began: float = 0.0
    problem: CkptError | None = None
    process: subprocess.Popen[bytes] | None = None
    folder: Path = Path()
    sends: Sequence[Path] = ()
    brings: Sequence[str] = ()
    needs: Sequence[str] = ()
    returned: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from other jobs."""
        return self.module, *self.arguments

    @property
    def running(self) -> bool:
        """Whether its process has begun and not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        if self.problem is not None or self.returned is not None:
            return True
        return self.process is not None and not self.running

    @property
    def code(self) -> int:
        """Exit code of its process, or of what kept it from starting."""
        if self.problem is not None:
            return exit_code(self.problem)
        if self.returned is not None:
            return self.returned
        assert self.process is not None
        return self.process.returncode

    def start(self, environment: dict[str, str]) -> None:
        """Begin it."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        if self.reserved is not None:
            environment = environment | {ENDS_WITH: str(os.getpid())}
            command[2:3] = ["ckptforensics.jobs.limited", str(self.reserved), self.module]
        self.began = time.monotonic()
        # Files, not pipes: a process never waits for somebody to read what it printed.
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self.process = subprocess.Popen(  # noqa: S603 (this program, no shell)
                command, stdout=out, stderr=err, env=environment
            )

    def end_if_overdue(self) -> None:
        """End its process, and those that it started, if its time is over."""
        late = self.seconds is not None and time.monotonic() - self.began > self.seconds
        if late and self.running:
            self.overdue = True
            self.end()

    def end(self) -> None:
        """End its process, if it is running."""
        if self.running and self.process is not None:
            self.process.kill()
            self.process.wait()

    def printed(self) -> str:
        """What its process wrote to stdout."""
        if self.process is None and self.returned is None:
            return ""
        return (self.folder / "out").read_text("utf-8", "replace")

    def complaint(self) -> str:
        """The last line it wrote to stderr, or what kept it from starting."""
        if self.problem is not None:
            return f"ckpt: error: {self.problem}"
        lines = (self.folder / "err").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"ckpt: error: ended with exit code {self.code}"


@dataclass(frozen=True)
class Processes:
    """Runs jobs in processes of this machine: so many at a time, within so many bytes together."""

    at_once: int
    memory: int

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Run all jobs; yields each as it ends."""
        return run_jobs(jobs, at_once=self.at_once, memory=self.memory, in_order=False)


def run_jobs(
    jobs: Sequence[Job], *, at_once: int, memory: int, in_order: bool = True
) -> Iterator[Job]:
    """Run all jobs; yields them, in order or as they end, each when it is done.

    Parameters
    ----------
    at_once : processes at a time
    memory : bytes that all of them may need together; a job that needs more alone is a problem
    """
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    for job in jobs:
        if job.memory > memory:
            job.problem = UsageError(
                f"it needs about {job.memory / 1e9:.1f} GB of memory",
                path=Path(job.model),
                hint="allow more with --memory",
            )
    waiting = [job for job in jobs if job.problem is None]
    unseen = list(jobs)
    with tempfile.TemporaryDirectory(prefix="ckpt-jobs-") as folder:
        try:
            while unseen:
                running = [job for job in unseen if job.running]
                for job in running:
                    job.end_if_overdue()
                free = memory - sum(job.memory for job in running)
                seen = unseen[:1] if in_order else unseen
                done = next((job for job in seen if job.ended), None)
                if waiting and len(running) < at_once and waiting[0].memory <= free:
                    job = waiting.pop(0)
                    job.folder = Path(tempfile.mkdtemp(dir=folder))
                    job.start(environment)
                elif done is not None:
                    yield done
                    unseen.remove(done)
                else:
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in unseen:
                if job.running and job.process is not None:
                    job.process.terminate()
                    job.process.wait()
