"""An audit as JSON Lines: a line a model with its findings, then one of what was read."""

from __future__ import annotations

import json
from typing import Any

from ckptforensics.render.audit import words
from ckptforensics.render.view import View
from ckptforensics.results.audit import AuditDocument


def audit_jsonl(document: AuditDocument, view: View) -> str:
    """One JSON object a line; the view changes nothing.

    A model's line has the fields of the document and its `findings`; findings about no audited
    model are in the last line, with the `coverage` and the `runs`.
    """
    findings = words.by_model(document)
    lines = [
        {**model.model_dump(mode="json"), "findings": _dumped(findings.pop(model.name, []))}
        for model in document.models
    ]
    lines.append(
        {
            "kind": "audit-coverage",
            "schema_version": document.schema_version,
            "tool_version": document.tool_version,
            "coverage": document.coverage.model_dump(mode="json"),
            "findings": _dumped([row for rows in findings.values() for row in rows]),
            "runs": [run.model_dump(mode="json") for run in document.runs],
        }
    )
    # Everything beyond ASCII is an escape: no program takes a character inside for a line's end.
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def _dumped(findings: list[Any]) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in findings]
