"""Progress as an injected object: the analysis reports steps and never knows who shows them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of a long computation."""

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
