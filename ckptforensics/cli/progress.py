"""How the steps of a long computation are shown on stderr: a bar, or lines for a log."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import click

from ckptforensics.progress import Progress

# Shorter work shows no bar, and a log file gets a line no more often than this.
_BAR_AFTER_SECONDS = 0.7
_LINE_EVERY_SECONDS = 10.0
_SHORT_SECONDS = 60.0


class ShownProgress(Progress, Protocol):
    """Progress that also tells what comes from the Hub meanwhile."""

    def transferred(self, count: int) -> None:
        """So many bytes came from the Hub."""


@dataclass
class _Task:
    """A computation that has begun; `row` is its bar, once it has one."""

    label: str
    total: int
    done: int = 0
    note: str = ""
    begun: float = field(default_factory=time.monotonic)
    row: Any = None

    def left(self) -> str:
        """How long the rest takes at the rate so far, where that is minutes."""
        taken = time.monotonic() - self.begun
        seconds = taken / max(1, self.done) * (self.total - self.done)
        return f", about {seconds / 60:.0f} min left" if seconds >= _SHORT_SECONDS else ""


class Bar:
    """A bar on the terminal for each computation that runs, once it has taken a moment."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._bars: Any = None
        self._moved = ""
        # Transfers are reported by the thread that reads ahead.
        self._lock = threading.Lock()

    def start(self, label: str, total: int) -> None:
        with self._lock:
            self._tasks.append(_Task(label, total))

    def step(self, note: str = "") -> None:
        with self._lock:
            self._tasks[-1].done += 1
            self._tasks[-1].note = note
            self._update()

    def transferred(self, count: int) -> None:
        with self._lock:
            self._moved = f"{count / 1e6:,.1f} MB"
            self._update()

    def finish(self) -> None:
        with self._lock:
            task = self._tasks.pop()
            if task.row is not None:
                self._bars.remove_task(task.row)
            if self._bars is not None and not self._tasks:
                self._bars.stop()
                self._bars = None

    def _update(self) -> None:
        for task in self._tasks:
            if task.row is None and time.monotonic() - task.begun > _BAR_AFTER_SECONDS:
                self._bars = self._bars or _started_bars()
                task.row = self._bars.add_task(task.label, total=task.total, note="")
            if task.row is not None:
                words = f"{self._moved} {task.note}".strip()
                self._bars.update(task.row, completed=task.done, note=words)


def _started_bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    bars.start()
    return bars


class Lines:
    """A line now and then, for logs: of the computation begun last."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._last = 0.0
        self._moved = ""

    def start(self, label: str, total: int) -> None:
        if not self._tasks:
            self._last = time.monotonic()
        self._tasks.append(_Task(label, total))

    def step(self, note: str = "") -> None:
        self._tasks[-1].done += 1
        self._line()

    def transferred(self, count: int) -> None:
        self._moved = f", {count / 1e6:,.1f} MB transferred"
        self._line()

    def finish(self) -> None:
        self._tasks.pop()

    def _line(self) -> None:
        if self._tasks and time.monotonic() - self._last > _LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            task = self._tasks[-1]
            click.echo(
                f"{task.label} {task.done} of {task.total}{self._moved}{task.left()}", err=True
            )
