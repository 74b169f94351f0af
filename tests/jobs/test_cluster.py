"""Jobs on a cluster of dask whose workers are killed, and what is told of a wrong cluster."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptforensics.errors import CkptError, MissingDependency, UsageError
from ckptforensics.jobs import cluster as cluster_module
from ckptforensics.jobs.cluster import Cluster, check_address
from ckptforensics.jobs.processes import Job
from ckptforensics.jobs.tasks import Answer, Facts, Task, package_version, run_task
from ckptforensics.registry.audit import audit
from ckptforensics.registry.options import AuditOptions
from tests.registry.test_killed import contents
from tests.support.containers import assert_one_error, run
from tests.support.registry import RELATED, build

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")

MEMORY = 10**9
# Says which process it is in this folder, does something, and stays.
STAY = "import os,signal,time; open('{}/' + str(os.getpid()), 'x'); {}; time.sleep(60)"
KILL = "os.kill(os.getppid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Two workers, each of which is started again when it is killed."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=True,
        resources={"MEMORY": MEMORY},
        memory_limit=0,
        dashboard_address=None,
        silence_logs=50,
    ) as started:
        yield started
    gc.collect()  # sockets that are still open warn here, not in another module's tests


@pytest.fixture
def cluster(local) -> Iterator[Cluster]:
    with Cluster(local.scheduler_address) as connected:
        yield connected


def job(name: str, code: str = "pass", memory: int = 10**8, **how: Any) -> Job:
    return Job(name, ["-n1", "-r1", code], memory, module="timeit", reserved=memory, **how)


def outcomes(cluster: Cluster, jobs: list[Job]) -> dict[str, SimpleNamespace]:
    """What came of each job, read as soon as it ends."""
    return {
        one.model: SimpleNamespace(
            code=one.code,
            problem=one.problem,
            overdue=one.overdue,
            printed=one.printed(),
            complaint=one.complaint() if one.code else "",
        )
        for one in cluster.run(jobs)
    }


def test_a_job_that_kills_three_workers_is_given_up_and_the_others_end(cluster, tmp_path):
    jobs = [job(str(i), "import time; time.sleep(.2)") for i in range(4)]
    jobs.insert(1, job("killer", STAY.format(tmp_path, KILL)))
    ended = outcomes(cluster, jobs)
    assert set(ended) == {"killer", *"0123"}
    assert "lost 3 times" in str(ended.pop("killer").problem)
    for one in ended.values():
        assert (one.code, one.problem) == (0, None)
        assert one.printed.startswith("1 loop")
    assert_ended(tmp_path, 3)


def test_jobs_end_as_in_processes_of_this_machine(cluster, tmp_path):
    failing = job("failing", "1/0")
    slow = job("slow", "import time; time.sleep(60)", seconds=0.5)
    large = job("large", memory=2 * MEMORY)
    hungry = job("hungry", "bytearray(6 * 10**9)")
    sent = tmp_path / "in" / "a b.txt"
    sent.parent.mkdir()
    sent.write_text("told")
    copying = Job(
        "copying",
        ["-c", "", str(sent)],
        module="tests.support.copying",
        sends=[sent],
        brings=("out.txt",),
    )
    ended = outcomes(cluster, [failing, slow, large, hungry, copying])
    assert ended["failing"].code == 1
    assert ended["failing"].complaint == "ZeroDivisionError: division by zero"
    assert ended["slow"].overdue
    assert "the largest worker offers 1.0" in str(ended["large"].problem)
    assert ended["hungry"].complaint == "MemoryError"
    assert ended["copying"].code == 0, ended["copying"].complaint
    assert (sent.parent / "out.txt").read_text() == "TOLD"


def test_what_nobody_waits_for_is_ended(cluster, tmp_path):
    running = cluster.run(
        [job("first", "import time; time.sleep(1)"), job("long", STAY.format(tmp_path, 0))]
    )
    assert next(running).model == "first"
    running.close()
    assert_ended(tmp_path, 1)


def assert_ended(folder: Path, count: int) -> None:
    """Of so many processes that said so in a folder, none is there any more."""
    pids = [int(file.name) for file in folder.iterdir()]
    assert len(pids) == count
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_large_jobs_are_not_on_one_worker_together(cluster, tmp_path):
    """Each notes its worker while it runs; two of 600 MB do not fit into 1 GB."""
    mark = f"open({str(tmp_path)!r} + '/' + str(os.getppid()), 'x')"
    code = f"import os,time; f={mark}; time.sleep(.3); os.unlink(f.name)"
    ended = list(cluster.run([job(str(i), code, 6 * 10**8) for i in range(4)]))
    assert [one.code for one in ended] == [0] * 4  # 'x' fails if the worker has another one


def kill_two(local: Any, killed: list[int], stop: threading.Event) -> None:
    """Kill two workers, each while it is at work."""
    while len(killed) < 2 and not stop.wait(0.1):
        for state in list(local.scheduler.workers.values()):
            pid = next(
                (n.pid for n in local.workers.values() if n.worker_address == state.address), None
            )
            if pid is not None and pid not in killed and state.processing:
                stop.wait(0.5)
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
                break


def test_the_catalog_equals_that_of_a_quiet_run(local, tmp_path):
    names = ("zoo/seed0", "zoo/finetune")
    registry = build(tmp_path / "registry", tuple(r for r in RELATED if r.name in names))
    quiet, killed = tmp_path / "quiet" / "catalog.db", tmp_path / "killed" / "catalog.db"
    audit([str(registry)], AuditOptions(catalog=quiet, level="fast", workers=2))
    stop = threading.Event()
    killed_workers: list[int] = []
    killer = threading.Thread(target=kill_two, args=(local, killed_workers, stop))
    killer.start()
    with Cluster(local.scheduler_address) as somewhere:
        options = AuditOptions(catalog=killed, level="fast", memory=4 * 10**8, elsewhere=somewhere)
        document = audit([str(registry)], options)
    stop.set()
    killer.join()
    assert len(killed_workers) == 2
    assert (document.coverage.signed, document.coverage.pairs) == (2, 1)
    assert untimed(killed) == untimed(quiet)


def untimed(catalog: Path) -> str:
    """All that the catalog holds, but for how long the tests of a pair took."""
    return re.sub(r'(seconds[\\]+": *)[\d.e-]+', r"\1", json.dumps(contents(catalog)))


@pytest.mark.parametrize(
    "address", ["host:8786", "http://host:1", "tcp://host", "tcp://:1", "tcp://h:x"]
)
def test_what_is_no_address(address, capsys, planted, tmp_path):
    with pytest.raises(UsageError, match="no address of a dask scheduler"):
        check_address(address)
    ran = run(capsys, "audit", planted, "--dask", address, "--catalog", tmp_path / "c.db")
    assert_one_error(ran, 4, "write it as tcp://host:8786")


def test_a_scheduler_that_does_not_answer(capsys, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_CONNECT_SECONDS", 0.3)
    words = ("audit", planted, "--catalog", tmp_path / "c.db", "--dask")
    assert_one_error(run(capsys, *words, "tcp://127.0.0.1:9"), 2, "no scheduler answers at")
    assert_one_error(run(capsys, *words, "tls://127.0.0.1:9"), 2, "comm.tls", "docs/scale.md")
    ran = run(capsys, *words, "tcp://127.0.0.1:9", "--workers", "2")
    assert_one_error(ran, 4, "--workers is of this machine")


def test_without_dask(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"ckptforensics\[cluster\]"):
        Cluster("tcp://host:1")


def fake(monkeypatch, told: dict[str, Any], memory: float = MEMORY) -> Cluster:
    """A cluster with workers that say these things of themselves."""
    workers = {a: {"resources": {"MEMORY": memory} if memory else {}, "nthreads": 1} for a in told}
    client = SimpleNamespace(
        sync=lambda _: {"workers": workers},
        scheduler=SimpleNamespace(identity=None),
        run=lambda *_, **__: told,
        close=lambda **_: None,
    )
    monkeypatch.setattr(cluster_module, "_connected", lambda _: client)
    return Cluster("tcp://host:1")


def test_jobs_that_are_lost_together_run_again_once_each(monkeypatch):
    """The worker's process is another one when its two jobs come, and its address the same."""
    made = fake(monkeypatch, {"a": facts()})
    made._client.sync = lambda _: {
        "workers": {"a": {"resources": {"MEMORY": MEMORY}, "nthreads": 2}}
    }
    sent: list[str] = []

    def submit(_: object, task: Task, **how: Any) -> SimpleNamespace:
        sent.append(task.job.model)
        answer = Answer(lost=sent.count(task.job.model) == 1)
        return SimpleNamespace(done=lambda: True, status="finished", result=lambda: answer)

    made._client.submit, made._client.cancel = submit, lambda *_, **__: None
    assert sorted(one.model for one in made.run([job("x"), job("y")])) == ["x", "y"]
    assert sorted(sent) == ["x", "x", "y", "y"]
    assert run_task(Task("key", "another process", job("z"), (), 1)).lost


def test_a_scheduler_that_is_lost_on_the_way(monkeypatch):
    made = fake(monkeypatch, {"a": facts()})

    def gone(_: object) -> None:
        raise OSError("closed")

    made._client.sync = gone
    with pytest.raises(CkptError, match="no longer answers: closed; run it again"):
        next(made.run([job("x")]))


def facts(**other: Any) -> Facts:
    known = {
        "process": "p", "version": package_version(), "machine": "m", "memory": 10**10,
        "lacks": None,
    }  # fmt: skip
    return Facts(**(known | other))


WRONG = {
    "no worker": ({}, MEMORY, "has no workers; start one with 'dask worker tcp://host:1"),
    "no memory": ({"a": facts()}, 0, "worker a offers no MEMORY"),
    "another version": ({"a": facts(version="0.0.1 (x)")}, MEMORY, r"ckptforensics 0\.0\.1 \(x\)"),
    "not installed": (
        {"a": ModuleNotFoundError("No module named 'ckptforensics'")},
        MEMORY,
        "worker a has no ckptforensics .* install this version there",
    ),
    "not seen": ({"a": facts(lacks="/models")}, MEMORY, "/models: worker a does not see this path"),
    "together": (
        {"a": facts(), "b": facts()}, 6 * 10**9, "workers on m offer 12.0 GB .* it has 10.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_with_a_cluster_is_one_line(name, monkeypatch):
    told, memory, words = WRONG[name]
    monkeypatch.setattr(cluster_module, "_CONNECT_SECONDS", 0)
    with pytest.raises(CkptError, match=words):
        next(fake(monkeypatch, told, memory).run([job("x")]))


def test_a_path_that_the_workers_do_not_see(cluster, tmp_path):
    with pytest.raises(CkptError, match=r"nosuch: worker tcp://\S+ does not see this path"):
        next(cluster.run([job("x", needs=[str(tmp_path), str(tmp_path / "nosuch")])]))
