"""An audit as SARIF, CycloneDX and in-toto: valid by the official schemas, and true."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from jsonschema.validators import validator_for
from packageurl import PackageURL

from ckptforensics.errors import one_line
from ckptforensics.render import render
from ckptforensics.render.audit import sarif, words
from ckptforensics.render.audit.cyclonedx import purl
from ckptforensics.render.audit.intoto import subject_digest
from ckptforensics.results.audit import AuditedFile, AuditedModel, RelativeRecord
from tests.render.test_audit_text import EMPTY
from tests.support.audits import audit, sha256

OFFICIAL = Path(__file__).parent / "official"
SIZES = [1, 40, 1_000]


@cache
def sarif_schema():
    schema = json.loads((OFFICIAL / "sarif-2.1.0.json").read_text())
    return validator_for(schema)(schema)


def sarif_run(document) -> dict:
    log = json.loads(render(document, "sarif"))
    sarif_schema().validate(log)
    (run,) = log["runs"]
    return run


@pytest.mark.parametrize("document", [audit(1), audit(40), EMPTY], ids=["1", "40", "none"])
def test_sarif_is_valid_and_has_what_github_asks_for(document):
    run = sarif_run(document)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in document.rules]
    for rule in rules:
        assert 0 < len(rule["fullDescription"]["text"]) <= 1_024
        assert rule["help"]["text"]
    assert len(run["results"]) == len(document.findings)
    for result, row in zip(run["results"], document.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == row.rule
        assert result["level"] == row.severity
        assert result["partialFingerprints"]["primaryLocationLineHash"] == f"{row.id}:1"
        (place,) = result["locations"]
        region = place["physicalLocation"]["region"]
        assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"}
        assert region["startLine"] == region["endLine"] == (row.location.line or 1)
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert not uri.startswith("/")
        assert uri.isascii()
        assert uri.isprintable()
        assert " " not in uri
        suppressions = [one["justification"] for one in result.get("suppressions", ())]
        assert suppressions == ([] if row.suppressed is None else [row.suppressed])
        assert result["baselineState"] == ("unchanged" if row.known else "new")


def test_sarif_says_what_was_not_read():
    document = audit(40)
    (invocation,) = sarif_run(document)["invocations"]
    told = [one["message"]["text"] for one in invocation["toolExecutionNotifications"]]
    assert f"not read: {words.gaps(document.coverage)}" in told
    assert "not read: models/private: permission denied" in told
    assert len(told) == 2 + len(words.missing(document))


def test_sarif_without_a_baseline_calls_nothing_new():
    document = audit(5)
    rows = tuple(row.model_copy(update={"known": False}) for row in document.findings)
    run = sarif_run(document.model_copy(update={"findings": rows}))
    assert not any("baselineState" in result for result in run["results"])


def test_sarif_is_cut_at_what_github_takes(monkeypatch):
    assert sarif.MOST_RESULTS == 25_000
    monkeypatch.setattr(sarif, "MOST_RESULTS", 12)
    run = sarif_run(audit(5))
    assert [one["level"] for one in run["results"]][:5] == ["error"] * 5
    assert len(run["results"]) == 12
    told = run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert told == f"{len(audit(5).findings) - 12} findings left out: GitHub takes 12 results"


def test_a_rule_that_is_not_among_those_applied_is_made_up():
    document = audit(5).model_copy(update={"rules": ()})
    run = sarif_run(document)
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {
        row.rule for row in document.findings
    }


def model(**fields) -> AuditedModel:
    return AuditedModel(
        **{"name": "m", "source": "directory", "path": "m", "state": "signed", **fields}
    )


@pytest.mark.parametrize(
    ("path", "file", "uri"),
    [
        ("models/a b", "README.md", "models/a%20b/README.md"),
        ("./models/a", "sub/x.json", "models/a/sub/x.json"),
        ("models/x.gguf", "x.gguf", "models/x.gguf"),
        ("/srv/models/a", "README.md", "file:///srv/models/a/README.md"),
        ("s3://bucket/a", "README.md", "s3/bucket/a/README.md"),
        ("hub:org/name", "README.md", "hub/org/name/README.md"),
        ("C:\\models\\a", "README.md", "C/models/a/README.md"),
        ("models/\x1b[31m", "README.md", "models/%5Cx1b%5B31m/README.md"),
        ("models/\u4e2d", "README.md", "models/%E4%B8%AD/README.md"),
        ("javascript:alert(1)", "x", "javascript/alert%281%29/x"),
    ],
)
def test_places_are_paths_in_the_repository(path, file, uri):
    assert sarif.uri(model(path=path), file) == uri


def test_a_message_has_no_links_and_no_places_for_arguments():
    assert sarif.message("[a](http://x) {0} \\[") == "\\[a\\](http://x) {{0}} \\\\\\["


@pytest.mark.parametrize("document", [audit(1), audit(40), EMPTY], ids=["1", "40", "none"])
def test_cyclonedx_is_valid(document):
    text = render(document, "cyclonedx")
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    components = json.loads(text)["components"]
    assert [one["name"] for one in components] == [one_line(m.name) for m in document.models]
    assert {one["type"] for one in components} <= {"machine-learning-model"}


def test_ancestors_are_where_a_direction_is_shown_and_variants_where_none_is():
    def relative(name: str, verdict: str, arrow: str) -> RelativeRecord:
        evidence = ("p <= 10^-9",)
        return RelativeRecord(
            name=name, verdict=verdict, relation=None, arrow=arrow, evidence=evidence
        )

    relatives = (
        relative("older", "derived", "a->b"),
        relative("younger", "derived", "b->a"),
        relative("unordered", "derived", "unknown"),
        relative("sibling", "related", "a->b"),
        relative("copy", "same weights", "unknown"),
        relative("other", "independent", "unknown"),
    )
    document = EMPTY.model_copy(update={"models": (model(relatives=relatives),)})
    (component,) = json.loads(render(document, "cyclonedx"))["components"]
    pedigree = component["pedigree"]
    names = {
        kind: [one["name"] for one in pedigree[kind]]
        for kind in ("ancestors", "descendants", "variants")
    }
    assert names == {
        "ancestors": ["older"],
        "descendants": ["younger"],
        "variants": ["unordered", "sibling", "copy"],
    }
    properties = {one["name"]: one["value"] for one in pedigree["ancestors"][0]["properties"]}
    assert properties["ckptforensics:evidence"] == "p <= 10^-9"
    assert "confidence" not in json.dumps(component)


def test_what_is_known_in_part_is_an_incomplete_composition():
    document = audit(40)
    bom = json.loads(render(document, "cyclonedx"))
    refs = {one["bom-ref"]: one["name"] for one in bom["components"]}
    (incomplete,) = [one for one in bom["compositions"] if one["aggregate"] == "incomplete"]
    assert [refs[ref] for ref in incomplete["assemblies"]] == [
        one_line(model.name) for model in document.models if model.state != "signed"
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"name": "Org/Model-1.5", "source": "hub", "commit": "AB" * 20},
            "pkg:huggingface/Org/Model-1.5@" + "ab" * 20,
        ),
        ({"name": "gpt2", "source": "huggingface"}, "pkg:huggingface/gpt2"),
        ({"name": "Org/x", "source": "directory"}, None),
        ({"name": "../x/y", "source": "hub"}, None),
        ({"name": "a/<b>", "source": "hub"}, None),
        ({"name": "a/b", "source": "hub", "commit": "main?x=1"}, "pkg:huggingface/a/b"),
    ],
)
def test_package_urls_are_those_of_the_specification(fields, expected):
    found = purl(model(**fields))
    assert found == expected
    if found is not None:
        assert PackageURL.from_string(found).to_string() == found


def test_licences_are_declared_and_spdx_where_they_are():
    document = EMPTY.model_copy(
        update={"models": (model(licence="apache-2.0"), model(name="n", licence="llama3.1"))}
    )
    text = render(document, "cyclonedx")
    first, second = json.loads(text)["components"]
    assert first["licenses"] == [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}]
    assert second["licenses"] == [{"license": {"name": "llama3.1", "acknowledgement": "declared"}}]


def statements(document) -> list[dict]:
    return [json.loads(line) for line in render(document, "intoto").splitlines() if line]


@pytest.mark.parametrize("count", SIZES)
def test_statements_are_those_of_in_toto(count):
    document = audit(count)
    found = statements(document)
    whole = [m for m in document.models if m.files and all(f.sha256 for f in m.files)]
    assert len(found) == len(whole)
    for said, about in zip(found, whole, strict=True):
        parsed = json_format.ParseDict(said, statement_pb2.Statement())
        Statement.copy_from_pb(parsed).validate()
        assert said["predicateType"] == "https://in-toto.io/attestation/svr/v0.2"
        predicate = said["predicate"]
        # All four are required by version 0.2 of the predicate.
        assert predicate["verifier"]["id"].startswith("pkg:pypi/ckptforensics@")
        assert predicate["verifier"]["policies"] == []
        assert predicate["timeCreated"] == "2026-11-28T02:10:00Z"
        assert all(one.startswith("CKPTFORENSICS_") for one in predicate["properties"])
        audited = predicate["ckptforensics_audit"]
        assert audited["models_left_out"] == count - len(whole)
        assert audited["model"] == one_line(about.name)


def test_only_what_passed_is_a_property():
    document = audit(200)
    for said in statements(document):
        name = said["predicate"]["ckptforensics_audit"]["model"]
        (about,) = [m for m in document.models if one_line(m.name) == name]
        levels = {
            row.severity for row in document.findings if row.model == about.name and row.counts
        }
        passed = said["predicate"]["properties"]
        assert ("CKPTFORENSICS_NO_ERROR" in passed) == ("error" not in levels)
        assert ("CKPTFORENSICS_NO_WARNING" in passed) == (not levels & {"error", "warning"})
        assert ("CKPTFORENSICS_NO_NOTE" in passed) == (not levels)


def test_what_was_not_read_passes_nothing():
    whole = (AuditedFile(name="a", role="weights", bytes=1, sha256=sha256("a")),)
    document = EMPTY.model_copy(update={"models": (model(state="headers", files=whole),)})
    (said,) = statements(document)
    assert said["predicate"]["properties"] == []


def test_the_subject_is_that_of_model_signing():
    """The digest was made by model-signing 1.1.1 of a folder of these files, each holding its name.

    Its order is that of paths, not of strings: a/b.txt stands before a-b.txt.
    """
    names = (
        *("model.safetensors", "a/b.txt", "a-b.txt", "a.txt", "Zed.json", "config.json"),
        *("\u00fc.bin", ".gitattributes"),
    )
    files = [AuditedFile(name=n, role="other", bytes=1, sha256=sha256(n)) for n in names]
    expected = "a1627462e695997975a2eb791a1e8a51f5be3dcb22b0fb16087e94c5a6c520b3"
    assert subject_digest(files) == expected
    assert subject_digest(files[::-1]) == expected
    unread = AuditedFile(name="more.bin", role="weights", bytes=1, stated_sha256=sha256("x"))
    assert subject_digest([*files, unread]) is None
    assert subject_digest([]) is None
    ignored = AuditedFile(name=".git/config", role="other", bytes=1)
    assert subject_digest([*files, ignored]) == expected
