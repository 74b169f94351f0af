"""The server as a process: what it needs, how it ends, and that it leaves no trace."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.snapshot import snapshot, state_of
from ckptforensics.registry.catalog.writer import open_writer
from tests.support.catalogs import made_up
from tests.support.commands import ckpt
from tests.support.forks import forked
from tests.support.served import ROOT, multipart, serving

# What a request to stop may take, of which answers that are being made have one second.
SOON = 3.0
NOBODY = 65534


@pytest.fixture
def catalog(tmp_path) -> Path:
    path = tmp_path / "kept" / "models.db"
    made_up(path, 12)
    return path


def files_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder: inode, size and time of its last change."""
    return {
        str(file.relative_to(folder)): (
            (s := file.stat()).st_ino,
            s.st_size,
            s.st_mtime_ns,
        )
        for file in [folder, *folder.rglob("*")]
    }


def refused(*words: object, code: int = 4, **environment: str) -> str:
    """The one line with which `ckpt serve` ends."""
    done = ckpt("serve", *words, **environment)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ckpt: error: ")
    assert done.stdout == ""
    return line


def test_nothing_is_made_or_changed_beside_the_catalog(catalog):
    before = files_of(catalog.parent)
    with serving(catalog) as server:
        for path in ("/", "/models", "/models/1", "/families/1", "/catalog", "/find", "/.json"):
            assert server.ask(path).status == 200
        body, kind = multipart(sketch=b"{}")
        assert server.ask("/find", "POST", body, Content_Type=kind).status == 400
        assert files_of(catalog.parent) == before
        server.end()
    assert files_of(catalog.parent) == before


@pytest.mark.parametrize("beside_a_writer", [False, True])
def test_a_folder_without_write_rights_is_read(beside_a_writer):
    """As another user where the tests are root's, whom no permission stops."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own folders are for nobody else
        catalog = Path(folder) / "kept" / "models.db"
        made_up(catalog, 12)
        with open_writer(catalog) if beside_a_writer else nullcontext() as writer:
            if writer is not None:
                writer.begin_run(["x"])
            before = files_of(catalog.parent)
            catalog.parent.chmod(0o555)
            try:
                assert runs_seen_by_somebody_else(catalog) == 1 + beside_a_writer
            finally:
                catalog.parent.chmod(0o755)
            after = files_of(catalog.parent)
        # A writer's own files change whenever it likes.
        assert set(after) == set(before)
        assert beside_a_writer or after == before


def runs_seen_by_somebody_else(catalog: Path) -> int:
    """How many runs a process sees that may write nowhere."""
    seen, told = os.pipe()

    def look() -> None:
        if os.geteuid() == 0:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        query = "SELECT count(*) FROM runs"
        (runs,), state = snapshot(catalog, lambda db: db.execute(query).fetchone())
        assert state == state_of(catalog)
        os.write(told, str(runs).encode())

    assert forked(look) == 0
    os.close(told)
    with os.fdopen(seen) as pipe:
        return int(pipe.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_asked_to(number, catalog):
    with serving(catalog) as server, socket.create_connection((server.host, server.port)) as kept:
        kept.sendall(b"GET /.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        kept.recv(10)
        # One that has sent half of a request is not waited for either.
        with socket.create_connection((server.host, server.port)) as half:
            half.sendall(b"POST /find HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.2)
            began = time.monotonic()
            assert server.end(number) == (0, "")
            assert time.monotonic() - began < SOON
        kept.settimeout(5)
        while kept.recv(65_536):
            pass


def test_it_ends_though_a_page_is_being_made(catalog):
    slow = (
        "import sys, time\n"
        "from ckptforensics.server import current\n"
        "current.live_audit = lambda *a: time.sleep(60)\n"
        "from ckptforensics.cli.main import main\n"
        "sys.exit(main())\n"
    )
    with (
        serving(catalog, start=(sys.executable, "-c", slow)) as server,
        socket.create_connection((server.host, server.port)) as waiting,
    ):
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        assert server.end() == (0, "")
        assert time.monotonic() - began < SOON


def test_an_error_of_its_own_is_told_in_one_line_and_to_its_user_only(catalog):
    broken = (
        "import sys\n"
        "from ckptforensics.server import current\n"
        "def fail(*a): raise ZeroDivisionError('a secret\\nin two lines')\n"
        "current.live_audit = fail\n"
        "from ckptforensics.cli.main import main\n"
        "sys.exit(main())\n"
    )
    with serving(catalog, start=(sys.executable, "-c", broken)) as server:
        for path in ("/", "/.json"):
            answer = server.ask(path)
            assert answer.status == 500
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
        _, told = server.end()
    lines = told.splitlines()
    assert len(lines) == 2
    assert all("ZeroDivisionError: a secret" in line for line in lines)


def test_a_port_in_use_is_said(catalog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--catalog", catalog, "--port", port)
    assert f"port {port} is in use" in line
    assert "--port" in line


def test_an_address_that_is_not_ours_is_said(catalog):
    assert "--host" in refused("--catalog", catalog, "--host", "203.0.113.7", "--port", 0)
    assert "--host" in refused("--catalog", catalog, "--host", "no.such.host.invalid")


def test_what_is_no_catalog_is_said(tmp_path, catalog):
    assert "no such catalog" in refused("--catalog", tmp_path / "none.db")
    assert "no such catalog" in refused("--catalog", tmp_path / "no" / "none.db")
    (tmp_path / "text.db").write_text("hello " * 1000)
    assert "no catalog" in refused("--catalog", tmp_path / "text.db", code=2)
    (tmp_path / "empty.db").touch()
    assert "empty" in refused("--catalog", tmp_path / "empty.db", code=2)
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    assert "no catalog" in refused("--catalog", tmp_path / "other.db", code=2)
    newer, older = tmp_path / "newer.db", tmp_path / "older.db"
    for path, version in ((newer, 99), (older, 1)):
        with sqlite3.connect(path) as db:
            db.executescript("".join(database.migrations()[: min(version, 2)]))
            db.execute(f"PRAGMA application_id = {database._APPLICATION}")
            db.execute(f"PRAGMA user_version = {version}")
    assert "update ckptforensics" in refused("--catalog", newer, code=2)
    assert "ckpt catalog vacuum" in refused("--catalog", older, code=2)
    refused("--catalog", tmp_path)


@pytest.mark.parametrize("text", ["", "short", "a b" * 20, "\u00e9" * 20, "x" * 2000])
def test_a_token_that_protects_nothing_is_refused(text, catalog, tmp_path):
    (tmp_path / "token").write_text(text)
    line = refused("--catalog", catalog, "--token-file", tmp_path / "token")
    assert "16 to 1000" in line


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_its_extra_it_says_how_to_get_it(missing, catalog):
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from ckptforensics.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--catalog", str(catalog)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    (line,) = done.stderr.splitlines()
    assert "pip install 'ckptforensics[serve]'" in line
    assert done.returncode == 2


def test_a_catalog_that_goes_away_is_said_and_one_that_comes_is_shown(catalog):
    with serving(catalog) as server:
        assert server.ask("/.json").status == 200
        moved = catalog.rename(catalog.with_name("moved.db"))
        answer = server.ask("/.json")
        assert answer.status == 503
        assert "no such catalog" in answer.text
        assert str(catalog.parent) not in answer.text
        moved.rename(catalog)
        assert server.ask("/.json").status == 200


# One state of the catalog.


def test_a_snapshot_is_taken_again_where_a_writer_came_in_between(catalog):
    counts: list[int] = []

    def read(db: sqlite3.Connection) -> int:
        count = db.execute("SELECT count(*) FROM runs").fetchone()[0]
        counts.append(count)
        if len(counts) == 1:
            with open_writer(catalog) as writer:
                writer.begin_run(["x"])
        return count

    found, _ = snapshot(catalog, read)
    assert (found, counts) == (2, [1, 2])


def test_beside_a_writer_the_state_changes_with_every_commit(catalog):
    seen = [state_of(catalog)]
    with open_writer(catalog) as writer:
        for name in "abc":
            writer.begin_run([name])
            seen.append(state_of(catalog))
            assert state_of(catalog) == seen[-1]
            count = snapshot(catalog, lambda db: db.execute("SELECT count(*) FROM runs").fetchone())
            assert count[0][0] == len(seen)
    seen.append(state_of(catalog))
    assert None not in seen
    assert len(set(seen)) == len(seen)


def test_what_a_killed_writer_leaves_is_read(catalog):
    def write() -> None:
        with open_writer(catalog) as writer:
            writer.begin_run(["x"])
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(forked(write)) == signal.SIGKILL
    assert catalog.with_name(f"{catalog.name}-wal").stat().st_size > 0
    with serving(catalog) as server:
        assert server.ask("/catalog.json").json["runs"] == 2
