"""A loopback server that speaks the routes of the Hugging Face Hub, and fails on request."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

REPO = "org/tiny"
COMMIT = "1" * 40


@dataclass
class Request:
    """One answered request."""

    route: str
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """How a route misbehaves: `status` answers so, `cut` ends the body after so many bytes."""

    route: str
    times: float
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    # `headers` then replace those of the right answer
    ignore_range: bool = False


class Hub:
    """Repositories by commit, a log of requests, and the faults still to happen."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.blobs: dict[str, bytes] = {}
        self.moves: dict[str, str] = {}
        # Repositories that are listed and not to be had.
        self.others: list[str] = []
        self.delay = 0.0
        # Requests that are being answered, and the most that were at a time.
        self.answering = 0
        self.most_at_once = 0
        self._counting = threading.Lock()
        self.main = _serve(self, _Main)
        self.cdn = _serve(self, _Cdn)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.main.server_port}"

    def add(
        self, folder: Path | dict[str, bytes], commit: str = COMMIT, branch: str = "main"
    ) -> None:
        """Publish the files of a directory."""
        if isinstance(folder, Path):
            folder = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
        self.commits[commit] = folder
        self.branches[branch] = commit
        for data in folder.values():
            self.blobs[hashlib.sha256(data).hexdigest()] = data

    def fail(self, route: str, times: float = 1, **how: Any) -> None:
        self.faults.append(Fault(route, times, **how))

    def requests(self, route: str) -> list[Request]:
        return [r for r in self.log if r.route == route]

    def sent(self, route: str = "cdn") -> int:
        return sum(r.sent for r in self.requests(route))

    def forget(self) -> None:
        self.log.clear()

    def fault(self, route: str) -> Fault | None:
        for fault in self.faults:
            if fault.route == route and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One request, which takes at least `delay` seconds."""
        with self._counting:
            self.answering += 1
            self.most_at_once = max(self.most_at_once, self.answering)
        try:
            time.sleep(self.delay)
            yield
        finally:
            with self._counting:
                self.answering -= 1

    def close(self) -> None:
        for server in (self.main, self.cdn):
            server.shutdown()
            server.server_close()


def _serve(hub: Hub, handler: type[_Handler]) -> ThreadingHTTPServer:
    bound = type(handler.__name__, (handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), bound)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client may hang up on what it did not ask for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.hub.counted():
            self.answer(unquote(urlsplit(self.path).path))

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def failed(self, route: str, fault: Fault | None) -> bool:
        if fault is None or fault.status is None:
            return False
        self.reply(route, fault.status, b"{}", fault.headers, fault.cut)
        return True

    def reply(
        self,
        route: str,
        status: int,
        body: bytes,
        headers: dict[str, str],
        cut: int | None = None,
    ) -> None:
        promised = len(body)
        if cut is not None:
            body = body[:cut]
            self.close_connection = True
        if self.command == "HEAD":
            body = b""
        # Logged first: a test may count as soon as the client has read.
        self.hub.log.append(
            Request(route, self.command, self.path, dict(self.headers), status, len(body))
        )
        self.send_response(status)
        for name, value in {"Content-Length": str(promised), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def content(
        self, route: str, data: bytes, headers: dict[str, str], fault: Fault | None
    ) -> None:
        fault = fault or Fault(route, 0)
        headers = {"Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or fault.ignore_range:
            self.reply(route, 200, data, {**headers, **fault.headers}, fault.cut)
            return
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.reply(route, 206, data[begin:end], {**headers, **fault.headers}, fault.cut)


class _Main(_Handler):
    def answer(self, path: str) -> None:
        if path == "/api/models":
            self.list()
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        route = "api" if api else "resolve" if resolve else "other"
        fault = self.hub.fault(route)
        if self.failed(route, fault):
            return
        match = api or resolve
        if match is None or match[1] != REPO:
            self.reply(route, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        commit = self.hub.branches.get(match[2], match[2])
        files = self.hub.commits.get(commit)
        if files is None:
            self.reply(route, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            info = {"id": REPO, "sha": commit, "siblings": [_sibling(n, files[n]) for n in files]}
            self.reply(route, 200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif match[3] not in files:
            self.reply(route, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self.file(match[3], files[match[3]], commit, fault)
        if api and match[2] in self.hub.moves:
            self.hub.branches[match[2]] = self.hub.moves[match[2]]

    def list(self) -> None:
        """The repositories of an owner."""
        if self.failed("list", self.hub.fault("list")):
            return
        owner = parse_qs(urlsplit(self.path).query).get("author", [""])[0]
        found = [{"id": repo} for repo in [*self.hub.others, REPO] if repo.startswith(f"{owner}/")]
        self.reply("list", 200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def file(self, name: str, data: bytes, commit: str, fault: Fault | None) -> None:
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit}
        if not _large(name):
            self.content("resolve", data, {**headers, "ETag": f'"{digest[:40]}"'}, fault)
            return
        linked = {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"http://127.0.0.1:{self.hub.cdn.server_port}/{digest}",
        }
        self.reply("resolve", 302, b"", {**headers, **linked})


class _Cdn(_Handler):
    def answer(self, path: str) -> None:
        fault = self.hub.fault("cdn")
        if self.failed("cdn", fault):
            return
        digest = path.strip("/")
        self.content("cdn", self.hub.blobs[digest], {"ETag": f'"{digest}"'}, fault)


def _large(name: str) -> bool:
    return not name.endswith(".json")


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
    if _large(name):
        digest = hashlib.sha256(data).hexdigest()
        sibling["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
    return sibling


@contextmanager
def loopback_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub that huggingface_hub asks in place of the real one, with empty caches."""
    hub = Hub()
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ckptforensics.sources.retry._FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("ckptforensics.sources.retry._LONGEST_WAIT_SECONDS", 0.002)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "xdg"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    try:
        yield hub
    finally:
        hub.close()


@contextmanager
def hub_process(folder: Path, home: Path, delay: float = 0.0) -> Iterator[dict[str, str]]:
    """A Hub with the files of a directory in a process of its own.

    Yields the environment of a process that asks it in place of the real one, with empty caches
    below `home`.
    """
    command = [sys.executable, "-m", "tests.support.hub", str(folder), str(delay)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
            yield {
                **clean,
                "HF_ENDPOINT": server.stdout.readline().strip(),
                "HF_HOME": str(home / "hf"),
                "XDG_CACHE_HOME": str(home / "xdg"),
                "NO_PROXY": "127.0.0.1",
            }
        finally:
            server.stdin.close()  # which ends it


def _main() -> None:
    hub = Hub()
    hub.add(Path(sys.argv[1]))
    hub.delay = float(sys.argv[2])
    sys.stdout.write(f"{hub.endpoint}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _main()
