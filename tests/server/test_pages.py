"""The pages over a catalog: what each shows, and JSON of the same beside it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from html import unescape
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from ckptforensics.errors import one_line
from ckptforensics.registry.audit import add_models
from ckptforensics.registry.options import AuditOptions
from ckptforensics.results.audit import AuditDocument
from ckptforensics.results.comparison import ComparisonDocument
from ckptforensics.results.files import document_text
from tests.support.catalogs import LONG_NAME, made_up, policy
from tests.support.commands import ckpt
from tests.support.served import ROOT, Server, serving

COUNT = 240
# Of a page of models.
AT_A_TIME = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, AuditDocument]:
    path = tmp_path_factory.mktemp("made") / "models.db"
    return path, made_up(path, COUNT, hostile=True, policy=policy())


@pytest.fixture(scope="module")
def document(made) -> AuditDocument:
    return made[1]


@pytest.fixture(scope="module")
def server(made) -> Iterator[Server]:
    with serving(made[0]) as running:
        yield running


def numbers(path: Path) -> dict[str, int]:
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as db:
        return dict(db.execute("SELECT name, id FROM models").fetchall())


def valid(answer, kind: str) -> dict:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{kind}.schema.json").read_text())
    Draft202012Validator(schema).validate(answer.json)
    assert answer.headers["content-type"] == "application/json"
    return answer.json


def test_the_live_document_is_the_one_that_the_audit_wrote(server, document):
    assert server.ask("/.json").text == document_text(document)
    valid(server.ask("/.json"), "audit")


def test_the_first_page_is_that_of_the_report(server, document):
    page = server.ask("/")
    assert page.status == 200
    assert f"Audit of {COUNT} models" in page.text
    assert 'href="/.json">this page as JSON' in page.text


def test_models_come_a_hundred_at_a_time_and_json_with_them(server, document):
    seen, page = [], "/models.json"
    while page:
        answer = server.ask(page)
        part = AuditDocument.model_validate(valid(answer, "audit"))
        assert len(part.models) <= AT_A_TIME
        seen += part.models
        coverage = part.coverage
        assert coverage.models == len(part.models)
        assert coverage.signed == sum(m.state == "signed" for m in part.models)
        assert coverage.bytes == sum(m.bytes for m in part.models)
        assert coverage.not_read == ()
        names = {m.name for m in part.models}
        wanted = tuple(f for f in document.findings if f.model in names)
        assert part.findings == wanted
        links = answer.headers.get("link", "")
        page = next(
            (one.split(">")[0].strip(" <") for one in links.split(",") if 'rel="next"' in one), ""
        )
    assert tuple(seen) == document.models
    first, second = server.ask("/models").text, server.ask("/models?page=2").text
    assert first.count("<tr><td>") == AT_A_TIME
    assert f"page 2 of {-(-COUNT // AT_A_TIME)}" in second
    assert 'href="/models.json?page=2"' in second


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("q=ORG3/", lambda model, found: "org3/" in f"{model.name} {model.path}".lower()),
        ("state=unread", lambda model, found: model.state == "unread"),
        ("severity=warning", lambda model, found: "warning" in found),
        (
            "state=signed&severity=error&q=gemma3",
            lambda model, found: (
                model.family == "gemma3" and model.state == "signed" and "error" in found
            ),
        ),
        ("q=nothing+is+called+so", lambda model, found: False),
    ],
)
def test_models_are_chosen(query, wanted, server, document):
    found = {model.name: set() for model in document.models}
    for row in document.findings:
        if row.counts and row.model in found:
            found[row.model].add(row.severity)
    expected = [model for model in document.models if wanted(model, found[model.name])]
    answer = AuditDocument.model_validate(server.ask(f"/models.json?{query}").json)
    assert answer.models == tuple(expected[:AT_A_TIME])
    assert f"<h1>{len(expected):,} of {COUNT} models</h1>" in server.ask(f"/models?{query}").text


def test_every_model_has_a_page_and_its_own_document(server, made, document):
    known = numbers(made[0])
    for model in document.models[::5]:
        path = f"/models/{known[model.name]}"
        part = AuditDocument.model_validate(valid(server.ask(f"{path}.json"), "audit"))
        assert part.models == (model,)
        assert part.findings == tuple(f for f in document.findings if f.model == model.name)
        assert part.coverage.models == 1
        page = server.ask(path).text
        title = page.partition("<title>")[2].partition("</title>")[0]
        assert unescape(title) == one_line(model.name)
        assert f'href="{path}.json"' in page


def test_a_family_has_a_page(server, made, document):
    known = numbers(made[0])
    model = next(m for m in document.models if len(m.relatives) > 2)
    answer = server.ask(f"/families/{known[model.name]}.json")
    members = {m.name for m in AuditDocument.model_validate(valid(answer, "audit")).models}
    assert {model.name, *(r.name for r in model.relatives)} <= members
    assert len(members) < COUNT
    assert server.ask(f"/families/{known[model.name]}").status == 200
    alone = next(m for m in document.models if not m.relatives)
    assert server.ask(f"/families/{known[alone.name]}").status == 404


def test_a_pair_of_relatives_has_a_page(server, made, document):
    known = numbers(made[0])
    seen = 0
    for model in document.models[::7]:
        for row in model.relatives:
            path = f"/pairs/{known[model.name]}/{known[row.name]}"
            answer = server.ask(f"{path}.json")
            valid(answer, "comparison")
            found = ComparisonDocument.model_validate(answer.json)
            (pair,) = found.pairs
            assert found.level == "fast"
            assert {pair.a, pair.b} == set(found.names) == {model.name, row.name}
            assert (pair.verdict, pair.relation) == (row.verdict, row.relation)
            # The same two, whichever is named first.
            assert server.ask(f"/pairs/{known[row.name]}/{known[model.name]}.json").json == (
                answer.json
            )
            page = server.ask(path).text
            for line in pair.reasons:
                assert line in unescape(page)
            seen += 1
    assert seen > 20
    strangers = [m.name for m in document.models if not m.relatives]
    assert server.ask(f"/pairs/{known[strangers[0]]}/{known[strangers[1]]}").status == 404


def test_every_finding_and_rule_has_a_page(server, document):
    shown = [*document.findings[::9], *(f for f in document.findings if f.rule == "CKPT018")]
    assert {f.rule for f in shown} >= {"CKPT009", "CKPT018"}
    for finding in shown:
        part = valid(server.ask(f"/findings/{finding.id}.json"), "audit")
        assert AuditDocument.model_validate(part).findings == (finding,)
        assert server.ask(f"/findings/{finding.id}").status == 200
    for rule in document.rules:
        part = AuditDocument.model_validate(server.ask(f"/rules/{rule.id}.json").json)
        wanted = tuple(f for f in document.findings if f.rule == rule.id)
        assert part.findings == wanted
        assert {m.name for m in part.models} == {f.model for f in wanted if rule.id != "CKPT018"}
        assert server.ask(f"/rules/{rule.id}").status == 200


def test_the_catalog_is_told_without_where_it_is(server, made):
    told = ckpt("catalog", "info", "--catalog", made[0], "--format", "json")
    expected = json.loads(told.stdout) | {"path": "models.db"}
    assert valid(server.ask("/catalog.json"), "catalog") == expected
    assert server.ask("/find.json").json == expected
    for page in ("/catalog", "/find"):
        assert str(made[0].parent) not in server.ask(page).text


def test_hostile_names_are_text(server, made):
    for page in ("/", "/models", "/models?q=script", f"/models/{numbers(made[0])[LONG_NAME]}"):
        text = server.ask(page).text
        assert "<script>alert" not in text
        assert "<img" not in text
        assert not any(ord(c) < 32 and c != "\n" for c in text)
        assert "\u202e" not in text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/..%2f..%2fetc/passwd", 404),
        ("/models/%00", 404),
        ("/../../etc/passwd", 404),
        ("/models/1/", 404),
        ("/models/-1", 404),
        ("/models/" + "9" * 5000, 404),
        ("/models/999999999999999", 404),
        ("/models/\u00b2", 404),
        ("/findings/0123456789abcdef", 404),
        ("/findings/'%20OR%201=1", 404),
        ("/rules/CKPT999", 404),
        ("/rules/__proto__.json", 404),
        ("/?audit=12345", 404),
        ("/?audit=x", 400),
        ("/models?page=0", 404),
        ("/models?page=x", 400),
        ("/models.json?page=999", 404),
        ("/models?state=hungry", 400),
        ("/models?q=" + "x" * 1000, 400),
        ("//evil.example/", 404),
        ("/static/style.css", 404),
    ],
)
def test_what_is_not_there_is_said_in_one_line(path, status, server):
    from urllib.parse import quote

    answer = server.ask(quote(path, safe="/%?=&'"))
    assert answer.status == status
    if ".json" in path:
        assert list(answer.json) == ["error"]
    else:
        assert '<p class="problem">' in answer.text
    assert "Traceback" not in answer.text
    assert "passwd" not in answer.text


def test_head_is_answered_without_a_body(server):
    whole, head = server.ask("/models"), server.ask("/models", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_several_audits_are_told_apart(tmp_path):
    path = tmp_path / "models.db"
    first = made_up(path, 12)
    add_models([str(ROOT / "fixtures" / "zoo" / "seed0")], AuditOptions(path, weights=False))
    with serving(path) as server:
        # The last audit comes first; what was only added has no findings, and says why.
        assert server.ask("/.json").text == document_text(first)
        page = server.ask("/?audit=2").text
        assert "Audit of 1 model<" in page
        assert "ckpt catalog add" in page
        assert server.ask("/.json?audit=2").json["coverage"]["models"] == 1
        catalog = server.ask("/catalog").text
        assert 'href="/?audit=1"' in catalog
        assert 'href="/?audit=2"' in catalog
        # What belongs to an audit that is not the last leads to pages of it.
        (name,) = (m["name"] for m in server.ask("/.json?audit=2").json["models"])
        model = server.ask(f"/models/{numbers(path)[name]}").text
        assert 'href="/models?audit=2"' in model
        assert 'href="/?audit=2"' in model


def test_an_audit_that_has_not_ended_says_so(tmp_path):
    path = tmp_path / "models.db"
    whole = made_up(path, 30)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET ended = NULL, left_json = NULL")
        db.execute("DELETE FROM findings")
    with serving(path) as server:
        part = AuditDocument.model_validate(server.ask("/.json").json)
        assert part.coverage.not_read[-1].what == "the rest of the audit"
        assert "has not ended" in server.ask("/").text
        assert len(part.models) == len(whole.models)


@pytest.mark.parametrize(
    "harm",
    [
        'UPDATE models SET reading_json = \'{"files": "<b>"}\'',
        "UPDATE models SET reading_json = 'no JSON\nat all'",
        "UPDATE runs SET settings_json = '[]'",
        "UPDATE models SET reading_json = x'ff00fe'",
        "UPDATE models SET name = 7, path = NULL, state = 'signed'",
        "DROP TABLE relations",
        "ALTER TABLE models RENAME COLUMN name TO title",
        "DELETE FROM runs",
    ],
)
def test_a_catalog_that_somebody_spoiled_is_said_in_one_line(harm, tmp_path):
    path = tmp_path / "models.db"
    made_up(path, 3)
    with sqlite3.connect(path) as db, suppress(sqlite3.IntegrityError):
        db.execute(harm)
    db.close()
    with serving(path) as server:
        for page in ("/", "/.json", "/models", "/models/1.json"):
            answer = server.ask(page)
            assert answer.status in (200, 404, 500, 503)
            assert "Traceback" not in answer.text
            assert str(tmp_path) not in answer.text
            if answer.status != 200 and page.endswith(".json"):
                assert list(answer.json) == ["error"]
        _, told = server.end()
        assert "Traceback" not in told
        assert len(told.splitlines()) <= 4


def test_a_catalog_without_models_says_what_to_do(tmp_path):
    from ckptforensics.registry.catalog.writer import open_writer

    with open_writer(tmp_path / "models.db"):
        pass
    with serving(tmp_path / "models.db") as server:
        assert "ckpt audit" in server.ask("/").text
        assert server.ask("/.json").status == 404
        assert server.ask("/catalog").status == 200
