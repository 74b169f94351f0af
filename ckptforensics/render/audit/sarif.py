"""An audit as SARIF 2.1.0, as code scanning on GitHub takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted
from ckptforensics.render.audit import words
from ckptforensics.render.view import View
from ckptforensics.results.audit import AuditDocument, AuditedModel, FindingRecord, RuleRecord

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
# GitHub refuses a file with more results, or with longer descriptions of rules.
MOST_RESULTS = 25_000
_MOST_TOLD = 1_000
_DESCRIPTION = 1_024
_REMOTE = re.compile(r"^([a-z][a-z0-9+.-]*):(?://)?", re.I)


def audit_sarif(document: AuditDocument, view: View) -> str:
    """One run: a result a finding, the gravest first; the view changes nothing.

    What was not read, and what is beyond GitHub's limits, are notifications of the run.
    """
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(document)]}
    return json.dumps(log, indent=1, allow_nan=False) + "\n"


def _run(document: AuditDocument) -> dict[str, Any]:
    places = {model.name: model for model in document.models}
    rules = _rules(document)
    index = {rule["id"]: number for number, rule in enumerate(rules)}
    # A baseline was applied where it knows something; a first one knows nothing.
    compared = any(row.known for row in document.findings)
    results = []
    for row in document.findings[:MOST_RESULTS]:
        result = _result(row, places.get(row.model))
        result["ruleIndex"] = index[row.rule]
        if compared:
            result["baselineState"] = "unchanged" if row.known else "new"
        results.append(result)
    driver = {
        "name": "ckptforensics",
        "version": document.tool_version,
        "semanticVersion": document.tool_version,
        "rules": rules,
    }
    return {
        "tool": {"driver": driver},
        "automationDetails": {"id": "ckptforensics/audit/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(document)],
        "results": results,
    }


def _rules(document: AuditDocument) -> list[dict[str, Any]]:
    """The rules that were applied, and those of findings that are not among them."""
    rules = [_rule(rule) for rule in document.rules]
    known = {rule.id for rule in document.rules}
    for row in document.findings:
        if row.rule not in known:
            known.add(row.rule)
            text = {"text": f"A finding of the rule {row.rule}."}
            rules.append({"id": row.rule, "shortDescription": text, "fullDescription": text})
            rules[-1]["help"] = text
    return rules


def _rule(rule: RuleRecord) -> dict[str, Any]:
    summary = one_line(rule.summary)[:_DESCRIPTION]
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", rule.name)),
        "shortDescription": {"text": summary},
        "fullDescription": {"text": summary},
        "help": {"text": rule.page, "markdown": rule.page},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"problem.severity": _severity(rule.severity), "precision": "high"},
    }


def _severity(severity: str) -> str:
    """What GitHub calls the lowest of three."""
    return "recommendation" if severity == "note" else severity


def _result(row: FindingRecord, model: AuditedModel | None) -> dict[str, Any]:
    line = row.location.line or 1
    where: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": uri(model, row.location.file)},
            # A whole file is named by its first line; GitHub wants all four numbers.
            "region": {"startLine": line, "startColumn": 1, "endLine": line, "endColumn": 2},
        },
        "logicalLocations": [{"name": one_line(row.model), "kind": "module"}],
    }
    if row.location.tensor is not None:
        tensor = {"name": one_line(row.location.tensor), "kind": "variable"}
        where["logicalLocations"].append(tensor)
    said = [f"{row.model}: {row.message}", *row.evidence]
    result: dict[str, Any] = {
        "ruleId": row.rule,
        "level": row.severity,
        "message": {"text": message(". ".join(said))},
        "locations": [where],
        "partialFingerprints": {
            "primaryLocationLineHash": f"{row.id}:1",
            "ckptforensicsFinding/v1": row.id,
        },
    }
    if row.suppressed is not None:
        reason = one_line(row.suppressed)
        result["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": reason}
        ]
    return result


def message(text: str) -> str:
    """A text of a message: brackets would make links, braces places for arguments."""
    doubled = one_line(text).replace("{", "{{").replace("}", "}}")
    return re.sub(r"(\\*)([\[\]])", r"\1\1\\\2", doubled)


def uri(model: AuditedModel | None, file: str) -> str:
    """Where a file is, as a URI: relative to the repository where the model's place is.

    GitHub takes paths only, so an address such as `s3://bucket/x` becomes `s3/bucket/x`.
    """
    path = "" if model is None else one_line(model.path.replace("\\", "/"))
    name = one_line(file.replace("\\", "/"))
    whole = path if not name or PurePosixPath(path).name == name else f"{path}/{name}"
    remote = _REMOTE.match(whole)
    if remote:
        whole = f"{remote[1]}/{whole[remote.end() :]}"
    parts = [part for part in PurePosixPath(whole).parts if part != "/"]
    quoted = "/".join(quote(part, safe="") for part in parts)
    return f"file:///{quoted}" if whole.startswith("/") else quoted or "."


def _invocation(document: AuditDocument) -> dict[str, Any]:
    told = [
        {"level": "warning", "message": {"text": message(text)}}
        for text in _capped(list(_not_told(document)))
    ]
    run = document.runs[0] if document.runs else None
    invocation: dict[str, Any] = {
        "executionSuccessful": run is None or run.ended is not None,
        "toolExecutionNotifications": told,
    }
    if run is not None:
        invocation["startTimeUtc"] = words.utc(run.started)
        if run.ended is not None:
            invocation["endTimeUtc"] = words.utc(run.ended)
    return invocation


def _not_told(document: AuditDocument) -> Iterator[str]:
    """What the results do not say: first the sum of it, then one by one."""
    over = len(document.findings) - MOST_RESULTS
    if over > 0:
        yield f"{counted(over, 'finding')} left out: GitHub takes {MOST_RESULTS:,} results"
    yield f"read: {words.read(document.coverage)}"
    yield f"not read: {words.gaps(document.coverage)}"
    for what, reason in words.missing(document):
        yield f"not read: {what}: {reason}"


def _capped(texts: list[str]) -> list[str]:
    told = list(islice(texts, _MOST_TOLD))
    rest = len(texts) - len(told)
    return [*told, f"and {counted(rest, 'more notification')}"] if rest else told
