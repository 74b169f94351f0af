"""How a registry is audited."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from ckptforensics.jobs.memory import default_memory
from ckptforensics.jobs.processes import Processes
from ckptforensics.jobs.runner import Runner
from ckptforensics.registry.policy import Policy
from ckptforensics.results.comparison import Level

# A process may take so long, and as long as its bytes take at so many a second.
_LEAST_SECONDS = 300.0
_BYTES_A_SECOND = 20e6
# A sparse file may claim any size.
_MOST_SECONDS = 6 * 3600.0


def _today() -> date:
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class AuditOptions:
    """How a registry is audited.

    Attributes
    ----------
    catalog : file of the catalog, made where there is none
    level : of the comparisons, as `compare` takes it
    workers : processes at a time
    elsewhere : a cluster that runs the processes; None for this machine
    memory : bytes that all processes may use together, half of the machine's by default
    seconds : after which the process of one model or pair is ended; by default by its size
    neighbours : candidates by signature that a model is compared with, at most
    weights : whether weights are signed; else headers and claims are read, and what `sketches` says
    sketches : whether models are sketched, so that `find` knows them
    offline : ask no server
    policy : the user's
    known : identifiers of findings that a baseline has
    today : by which suppressions expire
    """

    catalog: Path
    level: Level = "default"
    workers: int = 1
    elsewhere: Runner | None = None
    memory: int = field(default_factory=default_memory)
    seconds: float | None = None
    neighbours: int = 3
    weights: bool = True
    sketches: bool = True
    offline: bool = False
    policy: Policy = field(default_factory=Policy)
    known: frozenset[str] = frozenset()
    today: date = field(default_factory=_today)

    @property
    def runner(self) -> Runner:
        """Runs the processes of models and pairs."""
        return self.elsewhere or Processes(self.workers, self.memory)

    @property
    def share(self) -> int:
        """Bytes of one process."""
        return max(1, self.memory // self.workers)

    def seconds_for(self, nbytes: int) -> float:
        """After how long a process that reads so many bytes is ended."""
        if self.seconds is not None:
            return self.seconds
        return round(min(_MOST_SECONDS, _LEAST_SECONDS + nbytes / _BYTES_A_SECOND))
