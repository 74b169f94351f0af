"""A few tasks at a time, in threads that nobody has to wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

Task = Callable[[threading.Event], None]


class Cancelled(Exception):
    """The work was given up by another thread; nothing is wrong with its input."""


class Crew:
    """Runs one batch of tasks, several at a time, until one fails or somebody cancels.

    The threads are daemons and are not joined after a failure: one that waits for a server must
    not keep an interrupted command from ending.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(self, tasks: Sequence[Task], most: int, on_end: Callable[[], None]) -> None:
        """Run all tasks, `most` at a time; `on_end` is called here after each.

        Tasks are given an event after which what they do is of no use.

        Raises
        ------
        Cancelled
            if `cancel` was called.
        BaseException
            what the first task to fail raised; the others are told to stop.
        """
        waiting = deque(tasks)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                try:
                    task(self._stop)
                except BaseException as problem:
                    self._ended.put(problem)
                    return
                self._ended.put(None)

        for _ in range(min(most, len(tasks))):
            threading.Thread(target=work, name="fetch", daemon=True).start()
        try:
            for _ in tasks:
                problem = self._ended.get()
                if problem is not None:
                    raise problem
                on_end()
        finally:
            self._stop.set()

    def cancel(self) -> None:
        """Make `run`, in whatever thread, raise Cancelled soon."""
        self._stop.set()
        self._ended.put(Cancelled())
