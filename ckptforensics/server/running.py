"""The server as a process: its socket, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from ckptforensics.errors import ExitCode, UsageError
from ckptforensics.registry.catalog.snapshot import snapshot
from ckptforensics.server.connections import Connection, Told, most_connections
from ckptforensics.server.options import ServeOptions
from ckptforensics.server.pages import make_app

_WAITING = 512
# Answers that are being made when the server is ended have so long.
_LAST_SECONDS = 1


def serve(options: ServeOptions, tell: Callable[[str], None]) -> None:
    """Serve the catalog until the process is interrupted or told to end.

    Parameters
    ----------
    tell : told the address, once it is answered at

    Raises
    ------
    UsageError
        if there is no such catalog, or the address cannot be had.
    CkptError
        if the catalog cannot be read.
    """
    snapshot(options.catalog, lambda db: None)
    # What they would tell is about requests that break off, or are none.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    listening, most = _listen(options), most_connections()
    config = uvicorn.Config(
        make_app(options),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most,
        backlog=most,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    server = _Server(config)
    tell(_address(options, listening))
    with listening:
        server.run(sockets=[listening])
    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        # Nobody waits for the answer that a thread is still making.
        os._exit(ExitCode.DONE)


class _Server(uvicorn.Server):
    """Ends when it is asked to, and leaves it at that: to be ended is no error."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; what goes wrong beside requests is told in a line."""
        asyncio.get_running_loop().set_exception_handler(Told(lambda: self.should_exit))
        await super().startup(sockets)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(options: ServeOptions) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
        try:
            if os.name == "posix":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(_WAITING)
        except BaseException:
            made.close()
            raise
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            line = f"port {options.port} is in use"
            raise UsageError(line, hint="name another with --port; 0 takes any free one") from None
        why = problem.strerror or str(problem)
        raise UsageError(
            f"cannot listen at {options.host}, port {options.port}: {why}",
            hint="change --host or --port",
        ) from None
    return made


def _address(options: ServeOptions, listening: socket.socket) -> str:
    """Where it is answered: of all addresses of this machine, at its name."""
    port = listening.getsockname()[1]
    host = socket.gethostname() if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
