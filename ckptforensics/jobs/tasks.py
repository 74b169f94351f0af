"""What a worker of a cluster does: it runs one job in a process of its own, and tells what it is.

The functions and records here go to the workers by name, so that these need the same version of
this package.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ckptforensics.compute.memory import machine_memory
from ckptforensics.findings.cache.key import sha256_of_parts
from ckptforensics.jobs.processes import Job
from ckptforensics.version import __version__

_POLL_SECONDS = 0.1
# Tells this worker's process from one that has its address later.
_PROCESS = uuid.uuid4().hex


@dataclass(frozen=True)
class Facts:
    """What a worker is.

    Attributes
    ----------
    process : tells it from others that had its address
    version : of this package, with a digest of its code
    machine, memory : name of its machine, and bytes that that has; None where that is not known
    lacks : the first of the paths it was asked for that it does not see
    """

    process: str
    version: str
    machine: str
    memory: int | None
    lacks: str | None


@dataclass(frozen=True)
class Task:
    """A job as it goes to a worker.

    Attributes
    ----------
    key : by which the cluster knows it
    process : of the worker that it was placed on
    job : with its files' content in `files`, by the paths that stand in its arguments
    beside : jobs that may run on the worker at a time, this one among them
    """

    key: str
    process: str
    job: Job
    files: tuple[tuple[str, bytes], ...]
    beside: int


@dataclass(frozen=True)
class Answer:
    """What came of a task: nothing where `lost`, since the worker is another process by now.

    Attributes
    ----------
    code, out, err, overdue : of its process, as of a `Job`
    brought : the files that it wrote of those that it brings, by name
    lacks : a path that it needs and this worker does not see
    """

    lost: bool = False
    code: int = 0
    out: bytes = b""
    err: bytes = b""
    overdue: bool = False
    brought: Mapping[str, bytes] = field(default_factory=dict)
    lacks: str | None = None


def facts(paths: Sequence[str]) -> Facts:
    """What this worker is, and which of these paths it lacks."""
    import socket

    host = socket.gethostname()
    return Facts(_PROCESS, package_version(), host, machine_memory(), _missing(paths))


@cache
def package_version() -> str:
    """This package's version, with a digest of its code: one may have changes, another not."""
    return f"{__version__} ({sha256_of_parts(('',))[:12]})"


def run_task(task: Task) -> Answer:
    """Run the task's job on this worker, to its end or until nobody waits for it any more."""
    if task.process != _PROCESS:
        return Answer(lost=True)
    lacks = _missing(task.job.needs)
    if lacks is not None:
        return Answer(lacks=lacks)
    with TemporaryDirectory(prefix="ckpt-task-") as name:
        job = task.job
        job.folder = Path(name)
        sent = {}
        for number, (path, data) in enumerate(task.files):
            # One of a name in a folder of its own, so that names stay.
            place = job.folder / str(number) / Path(path).name
            place.parent.mkdir()
            place.write_bytes(data)
            sent[path] = place
        job.arguments = [str(sent.get(word, word)) for word in job.arguments]
        threads = max(1, (os.cpu_count() or 1) // task.beside)
        environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
        job.start(environment)
        try:
            while job.running:
                job.end_if_overdue()
                if _unwanted(task.key):
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            job.end()
        return Answer(
            code=job.code,
            out=(job.folder / "out").read_bytes(),
            err=(job.folder / "err").read_bytes(),
            overdue=job.overdue,
            brought=_brought(job, sent),
        )


def _brought(job: Job, sent: Mapping[str, Path]) -> dict[str, bytes]:
    if not job.brings:
        return {}
    beside = next(iter(sent.values())).parent
    files = {name: beside / name for name in job.brings}
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}


def _missing(paths: Sequence[str]) -> str | None:
    return next((path for path in paths if not os.path.lexists(path)), None)


def _unwanted(key: str) -> bool:
    """Whether whoever wanted the task is gone, or has given it up."""
    from distributed import get_worker

    state = get_worker().state.tasks.get(key)
    return state is None or state.state == "cancelled"
