"""Connections: how many may be open, and how long one may stay open without asking for anything.

uvicorn limits neither the time that a request's head takes nor that an answer takes to be taken, so
that a few hundred silent clients would keep everybody else out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ckptforensics.server.answers import tell

# The rest of an upload has a limit of its own.
HEAD_SECONDS = 10.0
# Of an answer some part must be taken in so long; the system takes some hundred kB at once.
_TAKING_SECONDS = 60.0
_MOST = 256
_ONCE_IN_SECONDS = 60.0


def most_connections() -> int:
    """Connections that are answered at a time: a quarter of the files a process may have open.

    As many again are answered that there are too many, and beyond these they are closed.
    """
    try:
        import resource
    except ImportError:  # not on this operating system
        return _MOST
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else max(1, min(_MOST, limit // 4))


class Connection(H11Protocol):
    """A connection that is closed if no request comes over it, or nobody takes the answer."""

    _timer: asyncio.TimerHandle | None = None
    _untaken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request; close what is too many."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and (
            len(self.connections) > 2 * self.limit_concurrency
        ):
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read what has come; the head of a request ends the waiting for it."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop()

    def on_response_complete(self) -> None:
        """Wait for the next request, whatever comes of the body of this one."""
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        self._stop()
        self._untaken = self.transport.get_write_buffer_size()
        seconds = _TAKING_SECONDS if self._untaken else HEAD_SECONDS
        self._timer = self.loop.call_later(seconds, self._waited)

    def _waited(self) -> None:
        if self.transport.get_write_buffer_size() < self._untaken:
            self._wait()
        else:
            self.transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Told:
    """An event loop's handler of errors that nobody handles: one line each, once a minute.

    Parameters
    ----------
    ending : whether the server ends: asyncio then tries once more to listen at what is closed
    """

    def __init__(self, ending: Callable[[], bool]) -> None:
        self._ending = ending
        self._last: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Tell the user who started the server."""
        if self._ending():
            return
        problem = context.get("exception")
        line = str(context["message"])
        if problem is not None:
            line += f": {type(problem).__name__}: {problem}"
        now = time.monotonic()
        if now - self._last.get(line, -_ONCE_IN_SECONDS) >= _ONCE_IN_SECONDS:
            self._last[line] = now
            tell(line)
