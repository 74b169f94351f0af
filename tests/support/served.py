"""A catalog that is served by `ckpt serve` in a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_ADDRESS = re.compile(r"serving .* at http://([^/]*):(\d+)/(?:\?token=(\S+))?")


class Answer(NamedTuple):
    """What a request was answered with."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    host: str
    port: int
    token: str | None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Answer:
        """One request; `_` in the name of a header is `-`, a header of None is left out."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit code of the server, once it was told to end, and all that it told the user."""
        self.process.send_signal(number)
        told = self.process.communicate(timeout=30)[1]
        return self.process.returncode, told


@contextmanager
def serving(
    catalog: Path, *arguments: str, start: tuple[str, ...] = (), **how: Any
) -> Iterator[Server]:
    """Serve a catalog at any free port as long as the block lasts."""
    command = [*(start or (sys.executable, "-m", "ckptforensics")), "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--catalog", str(catalog), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=how.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})},
        **how,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = _ADDRESS.search(line)
        assert found, line
        yield Server(process, "127.0.0.1", int(found[2]), found[3])
    finally:
        process.kill()
        process.communicate()


def multipart(**fields: bytes) -> tuple[bytes, str]:
    """The body of a form with these files and values, and its kind."""
    edge = "edge-of-a-part"
    parts = []
    for name, value in fields.items():
        file = '; filename="../../etc/passwd.json"' if name == "sketch" else ""
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts += [head.encode(), value, b"\r\n"]
    return b"".join([*parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"
