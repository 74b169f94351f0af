"""Commands side by side, within a number of processes and a memory budget."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptforensics.jobs.memory import memory_size
from ckptforensics.jobs.processes import Job, run_jobs


def test_jobs_know_nothing_of_the_command_line():
    code = "import sys, ckptforensics.jobs.memory, ckptforensics.jobs.processes; "
    code += "assert not [m for m in sys.modules if m == 'click' or '.cli' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5GiB", 3 << 29), ("500m", 5 * 10**8), ("64", 64)]
)
def test_sizes(text: str, size: int):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "a lot", "-1GB", "0", "8TB", "inf", "1e999GB"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="no size"):
        memory_size(text)


class _Slow(Job):
    """A job whose process only sleeps."""

    def start(self, environment) -> None:
        code = f"import time; time.sleep({self.model})"
        self.process = subprocess.Popen([sys.executable, "-c", code])


def test_memory_and_number_are_kept():
    """However long each takes, those that run together need no more than is allowed."""
    seen = []

    class Watched(_Slow):
        def start(self, environment) -> None:
            running = [job for job in watched if job.running]
            seen.append((len(running) + 1, self.memory + sum(job.memory for job in running)))
            super().start(environment)

    watched = [Watched(s, memory=m) for s, m in (("0.3", 60), ("0.1", 30), ("0.2", 60))]
    ended = list(run_jobs(watched, at_once=2, memory=100))
    assert [job.model for job in ended] == ["0.3", "0.1", "0.2"]
    assert len(seen) == 3
    assert max(count for count, _ in seen) == 2
    assert max(memory for _, memory in seen) <= 100


def test_more_than_all_memory_is_a_problem_of_that_model():
    jobs = [_Slow("0", memory=50), _Slow("0", memory=500)]
    ended = list(run_jobs(jobs, at_once=2, memory=100))
    assert ended[0].code == 0
    assert ended[1].code == 4
    assert "allow more with --memory" in ended[1].complaint()


def test_leaving_early_ends_the_others():
    jobs = [_Slow("0", memory=1), _Slow("60", memory=1)]
    begun = time.monotonic()
    running = run_jobs(jobs, at_once=2, memory=10)
    next(running)
    running.close()
    assert not jobs[1].running
    assert time.monotonic() - begun < 30


def test_jobs_come_in_order_or_as_they_end():
    def slow() -> list[Job]:
        return [_Slow(seconds) for seconds in ("0.6", "0.05")]

    assert [job.model for job in run_jobs(slow(), at_once=2, memory=1)] == ["0.6", "0.05"]
    ended = run_jobs(slow(), at_once=2, memory=1, in_order=False)
    assert [job.model for job in ended] == ["0.05", "0.6"]


def test_a_job_that_takes_too_long_is_ended():
    (job,) = run_jobs([_Slow("60", seconds=0.2)], at_once=1, memory=1)
    assert job.overdue
    assert job.code != 0


@pytest.mark.parametrize(("gigabytes", "code"), [(1, 0), (6, 1)])
def test_a_process_reserves_no_more_than_it_may(gigabytes: int, code: int):
    work = ["timeit", "-n1", "-r1", f"bytearray({gigabytes} * 10**9)"]
    job = Job("x", work[1:], module=work[0], reserved=10**9)
    for ended in run_jobs([job], at_once=1, memory=1):
        assert ended.code == code
        assert (ended.complaint() == "MemoryError") == bool(code)


def test_processes_end_with_whoever_started_them(tmp_path):
    """Also where that is killed, and so cannot end them."""
    told = tmp_path / "started"
    (tmp_path / "sleeper.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(told)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    code = (
        "from ckptforensics.jobs.processes import Job, run_jobs; "
        "list(run_jobs([Job('x', module='sleeper', reserved=10**9)], at_once=1, memory=1))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    _until(lambda: told.is_file() and told.read_text())
    child = Path(f"/proc/{told.read_text()}")
    parent.kill()
    parent.wait()
    _until(lambda: not child.exists())


def _until(done: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < 20
        time.sleep(0.05)
