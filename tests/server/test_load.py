"""Two hundred requests at a time while an audit writes: all answered, each of one state."""

from __future__ import annotations

import asyncio
import json
import re
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
from ckptforensics.registry.options import AuditOptions
from ckptforensics.results.audit import AuditDocument
from ckptforensics.results.files import document_text
from tests.support.recorded import Recorder, contents
from tests.support.registry import HOSTILE, RELATED, build
from tests.support.served import Server, serving

AT_ONCE = 200
NAMES = ("zoo/seed0", "zoo/finetune", "lies/silent", "adapters/fits")
PAGES = (
    *("/", "/.json", "/models", "/models.json", "/models/N", "/models/N.json", "/families/N"),
    *("/catalog", "/catalog.json", "/find"),
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    rows = [row for row in RELATED if row.name in NAMES] + [HOSTILE[0], HOSTILE[2]]
    return build(tmp_path_factory.mktemp("registry"), tuple(rows))


@pytest.fixture(scope="module")
def recorder(registry, tmp_path_factory) -> Recorder:
    made = Recorder()
    with mock.patch.object(AuditOptions, "runner", SimpleNamespace(run=made.record)):
        audit([str(registry)], options(tmp_path_factory.mktemp("recorded") / "catalog.db"))
    return made


def options(catalog: Path) -> AuditOptions:
    return AuditOptions(catalog=catalog, level="fast", workers=2)


def played(registry: Path, recorder: Recorder, catalog: Path, pause: float) -> AuditDocument:
    """The recorded audit, which takes a while over each model and pair."""

    def slowly(jobs: Any) -> Any:
        for job in recorder.play(jobs):
            time.sleep(pause)
            yield job

    with mock.patch.object(AuditOptions, "runner", SimpleNamespace(run=slowly)):
        return audit([str(registry)], options(catalog))


def test_two_hundred_at_a_time_while_an_audit_writes(registry, recorder, tmp_path):
    quiet, catalog = tmp_path / "quiet" / "catalog.db", tmp_path / "busy" / "catalog.db"
    # An audit before, of which there is something to see; then all models are read again.
    for path in (quiet, catalog):
        played(registry, recorder, path, 0)
    for model in registry.rglob("config.json"):
        model.touch()
    expected = played(registry, recorder, quiet, 0)
    with closing(sqlite3.connect(catalog)) as db:
        (number,) = db.execute("SELECT id FROM models WHERE name = 'zoo/seed0'").fetchone()
    with serving(catalog) as server:
        work = partial(played, registry, recorder, catalog, 0.3)
        busy, answers = asyncio.run(_both(server, work, number))
        assert len(answers) > 2 * AT_ONCE
        states = {_consistent(path, status, body) for path, status, body in answers}
        # The audit was seen under way, and ended.
        assert {False, True} <= states
        assert server.ask("/.json").text == document_text(busy)
        assert server.end() == (0, "")
    assert contents(catalog) == contents(quiet)
    assert busy.findings == expected.findings


async def _both(
    server: Server, work: Any, number: int
) -> tuple[AuditDocument, list[tuple[str, int, bytes]]]:
    """The audit, and all that was answered by its end and in a round behind it."""
    auditing = asyncio.create_task(asyncio.to_thread(work))
    answers: list[tuple[str, int, bytes]] = []
    last = False
    while not last:
        last = auditing.done()
        paths = [PAGES[i % len(PAGES)].replace("N", str(number)) for i in range(AT_ONCE)]
        # All are connected before the first is asked for.
        opened = await asyncio.gather(
            *(asyncio.open_connection(server.host, server.port) for _ in paths)
        )
        answers += await asyncio.gather(
            *(_ask(path, *streams) for path, streams in zip(paths, opened, strict=True))
        )
    return await auditing, answers


async def _ask(
    path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, int, bytes]:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.read(-1), 120)
    writer.close()
    top, _, body = answer.partition(b"\r\n\r\n")
    return path, int(top.split()[1]), body


def _consistent(path: str, status: int, body: bytes) -> bool | None:
    """Whether the audit has ended in a page that agrees with itself; None where it says nothing."""
    assert status == 200, (path, status, body[:200])
    if path.endswith(".json") and path != "/catalog.json":
        document = AuditDocument.model_validate_json(body)
        names = {model.name for model in document.models}
        assert len(names) == len(document.models) == document.coverage.models
        assert {finding.model for finding in document.findings} <= names
        assert document.coverage.bytes == sum(model.bytes for model in document.models)
        whole = path == "/.json"
        for model in document.models if whole else ():
            assert {claim.matched for claim in model.claims if claim.matched} <= names
            assert {relative.name for relative in model.relatives} <= names
        return document.runs[0].ended is not None
    if path == "/":
        text = body.decode()
        data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
        shown = int(re.search(r"Audit of ([\d,]+) model", text)[1].replace(",", ""))
        assert len(data["models"]) == len(data["served"]["numbers"]) == shown
        return "has not ended" not in text
    return None
