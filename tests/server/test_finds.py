"""Find by upload: what is uploaded is looked for as `ckpt find` does, and is never trusted."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.registry.audit import add_models
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.results import save_document
from ckptforensics.server import finds
from ckptforensics.server.answers import Refused
from ckptforensics.server.finds import MOST_AT_ONCE, MOST_BYTES, Finds
from ckptforensics.server.options import ServeOptions
from tests.support.commands import ckpt
from tests.support.hub import REPO, hub_process
from tests.support.served import ROOT, Server, multipart, serving

ZOO = ROOT / "fixtures" / "zoo"
# Of an answer, which two runs do not share.
TIMES = {"search_seconds", "seconds"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    for name in ("seed0", "seed1", "finetune"):
        shutil.copytree(ZOO / name, folder / "store" / name, copy_function=shutil.copyfile)
    path = folder / "kept" / "models.db"
    add_models([str(folder / "store")], AuditOptions(path, weights=False))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sketch") / "sketch.json"
    save_document(sketch(open_checkpoint(ZOO / "finetune-long")), file)
    return file


@pytest.fixture(scope="module")
def server(catalog) -> Iterator[Server]:
    with serving(catalog) as running:
        yield running


def uploaded(server: Server, data: bytes, path: str = "/find.json"):
    body, kind = multipart(sketch=data)
    return server.ask(path, "POST", body, Content_Type=kind)


def test_what_is_uploaded_is_found_as_the_command_finds_it(server, catalog, saved):
    told = ckpt("find", saved, "--catalog", catalog, "--no-compare", "--format", "json", "-q")
    expected = json.loads(told.stdout)
    assert [m["name"].rpartition("/")[2] for m in expected["matches"]] == ["finetune", "seed0"]
    answers = [
        uploaded(server, saved.read_bytes()),
        # As curl's --data-binary sends it, and as a program would.
        server.ask(
            "/find.json",
            "POST",
            saved.read_bytes(),
            Content_Type="application/x-www-form-urlencoded",
        ),
        server.ask("/find.json", "POST", saved.read_bytes(), Content_Type="application/json"),
    ]
    schema = json.loads((ROOT / "docs" / "schemas" / "find.schema.json").read_text())
    for answer in answers:
        assert answer.status == 200
        Draft202012Validator(schema).validate(answer.json)
        assert without_times(answer.json) == without_times(expected) | {"catalog": "models.db"}
    page = uploaded(server, saved.read_bytes(), "/find").text
    for match in expected["matches"]:
        assert match["name"] in page
    assert str(catalog.parent) not in page


def without_times(document: dict) -> dict:
    return {name: value for name, value in document.items() if name not in TIMES}


def bad(saved: Path) -> dict[str, bytes]:
    good = json.loads(saved.read_text())
    tokens = good["found"]["tokens"]
    other = {**good, "schema_version": "9.0"}
    short = {**good, "found": {**good["found"], "tokens": [{**tokens[0], "likeness": "AAAA"}]}}
    return {
        "empty": b"",
        "no JSON": b"\x00\xff\xfe" * 100,
        "half": saved.read_bytes()[:500],
        "a list": b"[1, 2]",
        "nested": b'{"a":' * 100_000,
        "another document": (ROOT / "tests/results/old/signature-1.0.json").read_bytes(),
        "another version": json.dumps(other).encode(),
        "too few numbers": json.dumps(short).encode(),
        "infinite": saved.read_bytes().replace(b'"unit": ', b'"unit": 1e999, "x": ', 1),
        "a configuration": b'{"model_type": "llama"}',
        "half a surrogate": b'{"kind": "sketch", "tool_version": "\\ud800"}',
    }


def test_what_is_no_sketch_is_said_in_one_line(server, catalog, saved):
    for name, data in bad(saved).items():
        answer = uploaded(server, data)
        assert answer.status == 400, name
        (line,) = answer.json.values()
        assert line, name
        assert line.isprintable(), name
        assert len(line) < 500, name
        page = uploaded(server, data, "/find")
        assert page.status == 400, name
        for text in (answer.text, page.text):
            assert "Traceback" not in text
            assert str(catalog.parent) not in text
            assert "/passwd" not in text
    assert "9.0" in uploaded(server, bad(saved)["another version"]).text
    assert "signature and no sketch" in uploaded(server, bad(saved)["another document"]).text
    # It goes on.
    assert uploaded(server, saved.read_bytes()).status == 200


def test_forms_that_bring_nothing_are_refused(server):
    for body, kind in (
        multipart(other=b"1"),
        multipart(hub=b""),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"hub=", "application/x-www-form-urlencoded"),
    ):
        assert server.ask("/find.json", "POST", body, Content_Type=kind).status == 400, body


def test_too_much_is_refused_before_it_is_read(server):
    assert uploaded(server, b" " * MOST_BYTES).status == 413
    assert uploaded(server, b" " * MOST_BYTES, "/find").status == 413
    # One that does not say how much it is.
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(
            b"POST /find.json HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(20):
            try:
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            except OSError:
                break
        connection.settimeout(10)
        assert b"413" in connection.recv(100)


def test_those_who_send_half_keep_nobody_waiting(server, saved):
    data = saved.read_bytes()
    head = f"POST /find.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((server.host, server.port)))
            for _ in range(5 * MOST_AT_ONCE)
        ]
        for connection in slow:
            connection.sendall(head.encode() + data[:100])
        time.sleep(0.3)
        assert server.ask("/.json").status == 200
        assert uploaded(server, data).status == 200
        # Half of them go away, one sends the rest.
        for connection in slow[1::2]:
            connection.close()
        slow[0].sendall(data[100:])
        slow[0].settimeout(30)
        assert b" 200 " in slow[0].recv(100)
    assert uploaded(server, data).status == 200


def test_more_than_can_be_looked_for_at_once_are_told_to_come_again(catalog, saved):
    slow = (
        "import sys, time\n"
        "from ckptforensics.server import finds\n"
        "find = finds.find\n"
        "finds.find = lambda *a: (time.sleep(2), find(*a))[1]\n"
        "from ckptforensics.cli.main import main\n"
        "sys.exit(main())\n"
    )
    data = saved.read_bytes()
    with (
        serving(catalog, start=(sys.executable, "-c", slow)) as server,
        ThreadPoolExecutor(MOST_AT_ONCE) as pool,
    ):
        under_way = [pool.submit(uploaded, server, data) for _ in range(MOST_AT_ONCE)]
        time.sleep(0.7)
        answer = uploaded(server, data)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "try again" in answer.text
        assert uploaded(server, data, "/find").status == 503
        assert [one.result().status for one in under_way] == [200] * MOST_AT_ONCE
        assert uploaded(server, data).status == 200


def test_an_upload_that_does_not_end_is_ended(catalog, monkeypatch):
    monkeypatch.setattr(finds, "UPLOAD_SECONDS", 0.05)

    async def never() -> None:
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "POST", "path": "/find", "headers": [], "query_string": b""}
    asked = Finds(ServeOptions(catalog))
    with pytest.raises(Refused) as refused:
        asyncio.run(asked.answer(Request(scope, never)))
    assert refused.value.status == 408


def test_models_of_the_hub_are_named_only_where_that_is_allowed(server):
    body, kind = multipart(hub=b"org/name")
    answer = server.ask("/find.json", "POST", body, Content_Type=kind)
    assert answer.status == 403
    assert "--allow-hub" in answer.text
    assert "--allow-hub" in server.ask("/find").text


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "seed0", "org/", "-rf/x", "s3://bucket/x"),
        *("a/b" * 200, "org/na me", "org/name\n", "file:///etc/passwd"),
    ],
)
def test_what_is_no_name_of_the_hub_goes_nowhere(name, catalog, monkeypatch):
    def started(*words: str, **how: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    asked = Finds(ServeOptions(catalog, allow_hub=True))
    with pytest.raises(Refused) as refused:
        asyncio.run(asked._of_hub(name))
    assert refused.value.status == 400


def test_a_model_of_the_hub_is_found_where_that_is_allowed(catalog, tmp_path):
    with (
        hub_process(ZOO / "finetune-long", tmp_path / "home") as hub,
        serving(catalog, "--allow-hub", env=hub) as server,
    ):
        body, kind = multipart(hub=REPO.encode())
        answer = server.ask("/find.json", "POST", body, Content_Type=kind)
        assert answer.status == 200, answer.text
        names = [match["name"].rpartition("/")[2] for match in answer.json["matches"]]
        assert names == ["finetune", "seed0"]
        assert answer.json["model"]["path"] == REPO
        body, kind = multipart(hub=b"org/nobody")
        answer = server.ask("/find.json", "POST", body, Content_Type=kind)
        assert answer.status == 400
        assert "org/nobody" in answer.text
        assert 'name="hub"' in server.ask("/find").text
