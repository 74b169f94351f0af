"""Jobs on a cluster of dask: each on one worker, which has the memory it needs.

Where a job goes is decided here, not by the scheduler: no worker gets more than its MEMORY or more
jobs than threads, so that a worker that is lost takes only those with it that were running there.
A job that was lost runs once more, now with a worker to itself; when it has taken three of them
down, it is given up, with the reason, and the others go on.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import CkptError, ExitCode, MissingDependency, UsageError
from ckptforensics.jobs.processes import Job
from ckptforensics.jobs.tasks import Answer, Facts, Task, facts, package_version, run_task

if TYPE_CHECKING:
    from distributed import Client, Future

RESOURCE = "MEMORY"
_MOST_LOSSES = 3
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.5
# So long a run goes on without any worker: as long as a batch system may need for new ones.
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.1
_MOST_SAID = 300
# What is offered may be written in rounded numbers.
_ROUNDED = 1.02


@dataclass
class _Node:
    """A worker: what it has, and which jobs are there."""

    address: str
    process: str
    machine: str
    memory: float
    threads: int
    flights: list[_Flight] = field(default_factory=list)

    @property
    def free(self) -> float:
        return self.memory - sum(flight.memory for flight in self.flights)

    @property
    def lonely(self) -> bool:
        """Whether a job is there that is to have the worker to itself."""
        return any(flight.alone for flight in self.flights)


@dataclass(eq=False)
class _Waiting:
    """A job to be placed, and how many workers were lost under it."""

    job: Job
    losses: int = 0


@dataclass(eq=False)
class _Flight:
    """A job on a worker."""

    waiting: _Waiting
    node: _Node
    memory: float
    future: Future

    @property
    def alone(self) -> bool:
        return self.waiting.losses > 0


class Cluster:
    """A cluster that runs jobs.

    Parameters
    ----------
    address : of its scheduler, `tcp://host:port` or `tls://host:port`; TLS is configured as dask
        says, in its configuration or the environment
    tell : told in a line of a worker that joins later and cannot be used

    Raises
    ------
    UsageError
        if it is no such address.
    MissingDependency
        without dask and distributed.
    CkptError
        if no scheduler answers, or TLS is not configured.
    """

    def __init__(self, address: str, tell: Callable[[str], None] | None = None) -> None:
        check_address(address)
        self.address = address
        self._tell = tell or (lambda _: None)
        self._client = _connected(address)
        self._nodes: dict[str, _Node] = {}
        self._refused: set[str] = set()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close(timeout=2)

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Run all jobs; yields each as it ends.

        Raises
        ------
        CkptError
            if there is no worker, a worker offers no MEMORY, its machine has less than its workers
            offer, it has another version of this package or does not see a path that a job needs;
            or if the scheduler is lost on the way.
        """
        needs = tuple(dict.fromkeys(path for job in jobs for path in job.needs))
        if not jobs:
            return
        self._nodes, self._refused = {}, set()
        self._first_look(needs)
        largest = max(node.memory for node in self._nodes.values())
        queue: deque[_Waiting] = deque()
        for job in jobs:
            if job.memory > largest:
                job.problem = UsageError(
                    f"it needs about {job.memory / 1e9:.1f} GB of memory, and the largest worker "
                    f"offers {largest / 1e9:.1f}",
                    hint="lower --memory or add a larger worker",
                )
                yield job
            else:
                queue.append(_Waiting(job))
        with TemporaryDirectory(prefix="ckpt-cluster-") as folder:
            try:
                yield from self._run(queue, needs, Path(folder))
            finally:
                flights = [flight for node in self._nodes.values() for flight in node.flights]
                self._give_up(flights)

    def _run(self, queue: deque[_Waiting], needs: Sequence[str], folder: Path) -> Iterator[Job]:
        looked = seen = time.monotonic()
        while queue or any(node.flights for node in self._nodes.values()):
            now = time.monotonic()
            if now - looked > _LOOK_SECONDS:
                looked = now
                for lost in self._look(needs):
                    yield from self._again(lost, queue)
                if self._nodes:
                    seen = now
                elif now - seen > _PATIENCE_SECONDS:
                    raise CkptError(
                        f"the scheduler at {self.address} has no workers any more",
                        hint="start new ones and run it again: what is finished is kept",
                    )
            while queue and self._place(queue[0]):
                queue.popleft()
            ended = [f for n in self._nodes.values() for f in n.flights if f.future.done()]
            for flight in ended:
                flight.node.flights.remove(flight)
            for flight in ended:
                answer = _answer(flight.future)
                if answer.lost:
                    # Its address may belong to another process now, which has none of its jobs.
                    self._nodes.pop(flight.node.address, None)
                    together, flight.node.flights = [flight, *flight.node.flights], []
                    self._give_up(together)
                    for one in together:
                        yield from self._again(one, queue)
                else:
                    self._client.cancel(flight.future)
                    yield _filled(flight, answer, folder)
            if not ended:
                time.sleep(_POLL_SECONDS)

    def _place(self, waiting: _Waiting) -> bool:
        """Send the job to a worker that has room for it; whether there is one."""
        largest = max((node.memory for node in self._nodes.values()), default=0)
        # What its process maps counts too, so that large models do not stand in each other's way.
        wanted = min(largest, max(waiting.job.memory, waiting.job.reserved or 0))
        for node in sorted(self._nodes.values(), key=lambda n: -n.free):
            alone = waiting.losses > 0
            memory = node.memory if alone else wanted
            room = len(node.flights) < node.threads and not node.lonely and memory <= node.free
            if not room or memory < waiting.job.memory:
                continue
            flight = _Flight(waiting, node, memory, self._submitted(waiting, node, memory))
            node.flights.append(flight)
            return True
        return False

    def _submitted(self, waiting: _Waiting, node: _Node, memory: float) -> Future:
        job, key = waiting.job, f"ckpt-{uuid.uuid4().hex}"
        task = Task(
            key=key,
            process=node.process,
            job=replace(job, sends=()),
            files=tuple((str(path), path.read_bytes()) for path in job.sends),
            beside=node.threads,
        )
        return self._client.submit(
            run_task,
            task,
            key=key,
            workers=[node.address],
            allow_other_workers=False,
            resources={RESOURCE: memory},
            retries=0,
            pure=False,
        )

    def _again(self, flight: _Flight, queue: deque[_Waiting]) -> Iterator[Job]:
        """Let a job run again whose worker was lost; yields it if it has lost too many."""
        waiting = flight.waiting
        waiting.losses += 1
        if waiting.losses < _MOST_LOSSES:
            queue.append(waiting)
            return
        waiting.job.problem = CkptError(
            f"the worker that read it was lost {_MOST_LOSSES} times, the last time it was alone "
            f"on {flight.node.address}",
            hint="read it by itself without --dask to see why",
        )
        yield waiting.job

    def _give_up(self, flights: Sequence[_Flight]) -> None:
        if flights:
            try:
                self._client.cancel([flight.future for flight in flights], force=True)
            except Exception:
                logging.getLogger(__name__).debug("the scheduler is gone", exc_info=True)

    def _first_look(self, needs: Sequence[str]) -> None:
        """Wait for a worker; CkptError if there is none, or one that cannot be used."""
        until = time.monotonic() + _CONNECT_SECONDS
        self._look(needs, first=True)
        while not self._nodes:
            if time.monotonic() > until:
                raise CkptError(
                    f"the scheduler at {self.address} has no workers",
                    hint=f"start one with 'dask worker {self.address} --resources {RESOURCE}=64e9'",
                )
            time.sleep(_POLL_SECONDS)
            self._look(needs, first=True)

    def _look(self, needs: Sequence[str], *, first: bool = False) -> list[_Flight]:
        """See which workers have come and gone; what was running on those that are gone."""
        found = self._identities()
        gone = [node for address, node in self._nodes.items() if address not in found]
        for node in gone:
            del self._nodes[node.address]
        lost = [flight for node in gone for flight in node.flights]
        self._give_up(lost)
        new = [a for a in found if a not in self._nodes and a not in self._refused]
        if new:
            problems = self._welcome({address: found[address] for address in new}, needs)
            if first and problems:
                raise problems[0]
            for problem in problems:
                self._tell(str(problem))
        return lost

    def _identities(self) -> Mapping[str, Any]:
        identity = self._asked(lambda: self._client.sync(self._client.scheduler.identity))
        workers: Mapping[str, Any] = identity["workers"]
        return workers

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the scheduler answers; CkptError if it does not."""
        try:
            return ask()
        except Exception as problem:
            raise CkptError(
                f"the scheduler at {self.address} no longer answers: {_said(problem)}",
                hint="run it again: what is finished is kept",
            ) from None

    def _welcome(self, new: Mapping[str, Any], needs: Sequence[str]) -> list[CkptError]:
        """Take in new workers; what is wrong with those that cannot be used."""
        told: dict[str, Any] = self._asked(
            lambda: self._client.run(facts, needs, workers=list(new), on_error="return")
        )
        problems = []
        for address, identity in new.items():
            memory = identity["resources"].get(RESOURCE, 0)
            one = told.get(address)
            if one is None or isinstance(one, OSError):  # it is gone meanwhile, or seen again
                continue
            problem = self._wrong(address, memory, one)
            if problem is not None:
                self._refused.add(address)
                problems.append(problem)
                continue
            assert isinstance(one, Facts)
            self._nodes[address] = _Node(
                address, one.process, one.machine, memory, identity["nthreads"]
            )
        return problems

    def _wrong(self, address: str, memory: float, told: Any) -> CkptError | None:
        """Why a worker that offers so much memory and says this of itself cannot be used."""
        if not isinstance(told, Facts):
            return CkptError(
                f"worker {address} has no ckptforensics {package_version()}: {_said(told)}",
                hint="install this version there",
            )
        own = package_version()
        if told.version != own:
            return CkptError(
                f"worker {address} has ckptforensics {told.version} and this is {own}",
                hint="install the same version everywhere",
            )
        if memory <= 0:
            return CkptError(
                f"worker {address} offers no {RESOURCE}, so that nothing can be placed on it",
                hint=f"start it with --resources {RESOURCE}=64e9, the bytes it may use",
            )
        together = memory + sum(
            node.memory for node in self._nodes.values() if node.machine == told.machine
        )
        if told.memory is not None and together > _ROUNDED * told.memory:
            return CkptError(
                f"the workers on {told.machine} offer {together / 1e9:.1f} GB of {RESOURCE} "
                f"together, and it has {told.memory / 1e9:.1f}",
                hint="share its memory among them, so that large models are not placed together",
            )
        if told.lacks is not None:
            return CkptError(
                f"worker {address} does not see this path",
                path=told.lacks,
                hint="mount it there under the same name, or name models by URL or Hub id",
            )
        return None


def check_address(address: str) -> None:
    """UsageError if it is no address of a scheduler."""
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("tcp", "tls") or not host or not port.isdecimal():
        raise UsageError(
            f"{address!r} is no address of a dask scheduler",
            hint="write it as tcp://host:8786 or tls://host:8786",
        )


def _connected(address: str) -> Client:
    try:
        import distributed
    except ImportError:
        raise MissingDependency(
            "a cluster needs dask and distributed", hint="pip install 'ckptforensics[cluster]'"
        ) from None
    # What goes wrong is told here, once.
    for name in ("distributed", *(n for n in logging.root.manager.loggerDict if _is_dask(n))):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    _check_encryption(address)
    try:
        return distributed.Client(
            address, timeout=_CONNECT_SECONDS, set_as_default=False, name="ckptforensics"
        )
    except (OSError, TimeoutError) as problem:
        raise CkptError(
            f"no scheduler answers at {address}: {_said(problem)}",
            hint="start one with 'dask scheduler', or check the address",
        ) from None


def _check_encryption(address: str) -> None:
    """CkptError if the address needs what dask's configuration has not, or forbids."""
    from distributed import Security

    hint = "set the files of dask's distributed.comm.tls, as docs/scale.md says"
    try:
        how = Security().get_connection_args("client")
    except (OSError, TypeError, ValueError) as problem:
        raise CkptError(f"cannot speak to {address}: {_said(problem)}", hint=hint) from None
    if address.startswith("tls:") and how["ssl_context"] is None:
        raise CkptError(f"cannot speak to {address}: no certificates are configured", hint=hint)
    if address.startswith("tcp:") and how["require_encryption"]:
        raise CkptError(
            f"cannot speak to {address}: dask is configured to require encryption",
            hint="give the address as tls://host:port",
        )


def _is_dask(name: str) -> bool:
    return name.startswith("distributed.")


def _answer(future: Future) -> Answer:
    """What a task that is done came to; what is neither result nor error is lost."""
    from distributed import KilledWorker

    if future.status == "finished":
        answer: Answer = future.result()
        return answer
    problem = future.exception() if future.status == "error" else None
    if problem is None or isinstance(problem, KilledWorker):
        return Answer(lost=True)
    return Answer(code=int(ExitCode.ERROR), err=f"ckpt: error: {_said(problem)}".encode())


def _filled(flight: _Flight, answer: Answer, folder: Path) -> Job:
    """The job as if its process had run here."""
    job = flight.waiting.job
    if answer.lacks is not None:
        job.problem = UsageError(
            f"worker {flight.node.address} does not see this path",
            path=answer.lacks,
            hint="mount it there under the same name",
        )
        return job
    job.folder = folder / uuid.uuid4().hex
    job.folder.mkdir()
    (job.folder / "out").write_bytes(answer.out)
    (job.folder / "err").write_bytes(answer.err)
    job.returned, job.overdue = answer.code, answer.overdue
    for name in job.brings:
        if name in answer.brought:
            job.sends[0].with_name(name).write_bytes(answer.brought[name])
    return job


def _said(problem: object) -> str:
    """What an exception says, in one line."""
    words = " ".join(str(problem).split()) or type(problem).__name__
    return words[:_MOST_SAID]
