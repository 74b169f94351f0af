"""Progress as an injected object: the analysis reports steps and never knows who shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the steps of a long computation.

    Computations nest: one that is begun before another has finished is a part of a step of it, and
    `step` and `finish` are of the one begun last.
    """

    def start(self, label: str, total: int) -> None:
        """A computation of `total` steps begins."""

    def step(self, note: str = "") -> None:
        """One step is done."""

    def finish(self) -> None:
        """The computation begun last has ended, well or not."""


class Silent:
    """Shows nothing; the default of every library function."""

    def start(self, label: str, total: int) -> None:
        """Do nothing."""

    def step(self, note: str = "") -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def running(progress: Progress | None, label: str, total: int) -> Iterator[Callable[[str], None]]:
    """A computation of `total` steps: yields the function to call, with a note, after each.

    It is finished however the block ends. Such blocks nest, as `Progress` says; without a
    `progress` nobody is told.
    """
    shown = progress or Silent()
    shown.start(label, total)
    try:
        yield shown.step
    finally:
        shown.finish()
