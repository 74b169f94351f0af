"""The face of all that runs jobs: processes of this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ckptforensics.jobs.processes import Job


class Runner(Protocol):
    """Runs jobs somewhere."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Run all jobs; yields each when it has ended, or cannot be run and has its problem."""
