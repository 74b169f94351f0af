"""An audit as comma-separated values: a row a finding, a model without one, or a gap."""

from __future__ import annotations

from collections.abc import Iterator

from ckptforensics.render.audit import words
from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.audit import AuditDocument, AuditedModel, FindingRecord

COLUMNS = (
    *("row", "model", "source", "path", "commit", "state", "family", "licence", "bytes"),
    *("severity", "rule", "name", "id", "file", "line", "tensor", "message", "evidence"),
    *("suppressed", "known", "what", "reason"),
)
_OF_MODEL = COLUMNS.index("severity") - 1
_OF_FINDING = COLUMNS.index("what") - COLUMNS.index("severity")


def audit_csv(document: AuditDocument, view: View) -> str:
    """The rows: `row` says which are a `finding`, a `model` without one, or `not read`.

    A finding's row repeats its model. `what` and `reason` are of what was not read.
    """
    return csv_text(COLUMNS, _rows(document))


def _rows(document: AuditDocument) -> Iterator[tuple[object, ...]]:
    names = {rule.id: rule.name for rule in document.rules}
    findings = words.by_model(document)
    none: tuple[object, ...] = (None,) * _OF_FINDING
    for gap in document.coverage.not_read:
        yield ("not read", *(None,) * _OF_MODEL, *none, gap.what, gap.reason)
    for model in document.models:
        about, rows = _about(model), findings.pop(model.name)
        for row in rows:
            yield ("finding", *about, *_finding(row, names.get(row.rule)), None, None)
        if not rows:
            yield ("model", *about, *none, None, None)
        for gap in model.not_read:
            yield ("not read", *about, *none, gap.what, gap.reason)
    for name, rows in findings.items():
        about = (name, *(None,) * (_OF_MODEL - 1))
        for row in rows:
            yield ("finding", *about, *_finding(row, names.get(row.rule)), None, None)


def _about(model: AuditedModel) -> tuple[object, ...]:
    return (
        *(model.name, model.source, model.path, model.commit, model.state),
        *(model.family, model.licence, model.bytes),
    )


def _finding(row: FindingRecord, name: str | None) -> tuple[object, ...]:
    place = row.location
    return (
        *(row.severity, row.rule, name, row.id, place.file, place.line, place.tensor),
        *(row.message, "; ".join(row.evidence), row.suppressed, row.known),
    )
