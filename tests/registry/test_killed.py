"""A run that is killed, at every commit and at random times, ends in the catalog of a quiet one.

What the processes of models and pairs print was recorded of a real run and is played again, so that
a run takes milliseconds; the kill is a real SIGKILL of a forked process.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from ckptforensics.registry.audit import audit
from ckptforensics.registry.catalog import database
from ckptforensics.registry.options import AuditOptions
from tests.support.forks import fork, forked
from tests.support.recorded import Recorder, contents
from tests.support.registry import HOSTILE, RELATED, build

NAMES = ("zoo/seed0", "zoo/finetune", "lies/silent", "adapters/fits")
RANDOM_KILLS = 50


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for row in RELATED if row.name in NAMES] + [HOSTILE[0], HOSTILE[2]]
    return build(tmp_path_factory.mktemp("registry"), tuple(rows))


@pytest.fixture(scope="module")
def recorder(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    made = Recorder()
    run = options(tmp_path_factory.mktemp("recorded") / "catalog.db")
    with mock.patch.object(AuditOptions, "runner", SimpleNamespace(run=made.record)):
        audit([str(registry)], run)
    return made


def options(catalog: Path) -> AuditOptions:
    return AuditOptions(catalog=catalog, level="fast", workers=2)


def test_killed_before_and_after_every_commit(registry, recorder, tmp_path):
    quiet = run_to_end(registry, recorder, tmp_path / "quiet" / "catalog.db")
    commits = int((tmp_path / "quiet" / "commits").read_text())
    assert commits > 12
    for number in range(1, commits + 1):
        for after in (False, True):
            catalog = tmp_path / f"{number}-{after}" / "catalog.db"
            status = forked(partial(run, registry, recorder, catalog, number, after))
            assert os.WIFSIGNALED(status)
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert resumed(registry, recorder, catalog) == quiet, (number, after)
            shutil.rmtree(catalog.parent)


def test_killed_at_random_times(registry, recorder, tmp_path):
    began = time.monotonic()
    quiet = run_to_end(registry, recorder, tmp_path / "quiet" / "catalog.db")
    longest = time.monotonic() - began
    generator = random.Random(0)
    for number in range(RANDOM_KILLS):
        catalog = tmp_path / str(number) / "catalog.db"
        child = fork(partial(run, registry, recorder, catalog))
        time.sleep(generator.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert resumed(registry, recorder, catalog) == quiet, number
        shutil.rmtree(catalog.parent, ignore_errors=True)


def resumed(registry: Path, recorder: Recorder, catalog: Path) -> dict[str, Any]:
    """The catalog of a killed run when it has been run to its end, if it was not by then."""
    if catalog.is_file():
        assert_whole(catalog)
        with closing(sqlite3.connect(catalog)) as db:
            known = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()
            if known[0] and db.execute("SELECT ended FROM runs").fetchone() not in (None, (None,)):
                return contents(catalog)
    return run_to_end(registry, recorder, catalog)


def run(
    registry: Path, recorder: Recorder, catalog: Path, kill_at: int = 0, after: bool = False
) -> None:
    """An audit, whose process is killed before or after its commit of that number."""
    real = database.commit
    count = 0

    def commit(connection: sqlite3.Connection) -> None:
        nonlocal count
        count += 1
        if count == kill_at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(connection)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        mock.patch.object(database, "commit", commit),
        mock.patch.object(AuditOptions, "runner", SimpleNamespace(run=recorder.play)),
    ):
        audit([str(registry)], options(catalog))
    (catalog.parent / "commits").write_text(str(count))


def run_to_end(registry: Path, recorder: Recorder, catalog: Path) -> dict[str, Any]:
    """What the catalog holds after a run that nobody kills."""
    status = forked(partial(run, registry, recorder, catalog))
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0
    assert_whole(catalog)
    return contents(catalog)


def assert_whole(catalog: Path) -> None:
    """The database is sound, if there is one yet."""
    if catalog.is_file():
        with closing(sqlite3.connect(catalog)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
