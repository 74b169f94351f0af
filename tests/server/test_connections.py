"""Connections that ask for nothing: they are closed, and others are answered meanwhile."""

from __future__ import annotations

import resource
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptforensics.server.connections import HEAD_SECONDS
from tests.support.catalogs import made_up
from tests.support.served import Server, serving

FILES = 64


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "models.db"
    made_up(path, 12)
    return path


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def opened(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=2 * HEAD_SECONDS)


def seconds_until_closed(connection: socket.socket, began: float) -> float:
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


def test_who_asks_for_nothing_is_not_waited_for(catalog):
    whole = b"GET /.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    starts = (
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Some: thing\r\n",
        whole + b"GET / HT",
        b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
    )
    with serving(catalog) as server, ExitStack() as stack:
        began = time.monotonic()
        connections = [stack.enter_context(opened(server)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.sendall(start)
        # Bytes that come one by one are no request either.
        while time.monotonic() - began < HEAD_SECONDS / 2:
            connections[2].sendall(b"x")
            connections[4].sendall(b"x")
            time.sleep(0.5)
        assert server.ask("/.json").status == 200
        for connection in connections:
            assert seconds_until_closed(connection, began) < HEAD_SECONDS + 3
        assert server.end() == (0, "")


def test_silent_connections_leave_room_for_others_and_stderr_quiet(catalog):
    with serving(catalog, preexec_fn=few_files) as server, ExitStack() as stack:
        silent = [stack.enter_context(opened(server)) for _ in range(2 * FILES)]
        deadline = time.monotonic() + HEAD_SECONDS + 10
        for connection in silent:
            assert seconds_until_closed(connection, 0) < deadline
        assert server.ask("/.json").status == 200
        code, told = server.end()
    assert code == 0
    assert "Traceback" not in told
    assert len(told.splitlines()) <= 1


def test_too_many_at_once_are_told_so(catalog):
    with serving(catalog, preexec_fn=few_files) as server, ExitStack() as stack:
        for _ in range(FILES // 4):
            stack.enter_context(opened(server))
        assert server.ask("/.json").status == 503


def test_files_that_run_out_are_told_in_one_line(catalog):
    """Most connections are allowed, so that the system's limit is met first."""
    unlimited = (
        "import sys\n"
        "from ckptforensics.server import running\n"
        "running.most_connections = lambda: 1000\n"
        "from ckptforensics.cli.main import main\n"
        "sys.exit(main())\n"
    )
    start = (sys.executable, "-c", unlimited)
    with serving(catalog, start=start, preexec_fn=few_files) as server, ExitStack() as stack:
        for _ in range(2 * FILES):
            stack.enter_context(opened(server))
        time.sleep(3)
        code, told = server.end()
    (line,) = told.splitlines()
    assert line.startswith("ckpt: ")
    assert "open files" in line
    assert code == 0
