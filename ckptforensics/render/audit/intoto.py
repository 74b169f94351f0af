"""An audit as in-toto statements, to be signed: a line a model that has all its digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from ckptforensics.errors import one_line
from ckptforensics.render.audit import words
from ckptforensics.render.view import View
from ckptforensics.results.audit import (
    SEVERITIES,
    AuditDocument,
    AuditedFile,
    AuditedModel,
    FindingRecord,
)

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/svr/v0.2"
# What OpenSSF model signing leaves out of a model, by the first part of its path.
_IGNORED = ((".git",), (".gitattributes",), (".github",), (".gitignore",), ("model.sig",))


def audit_intoto(document: AuditDocument, view: View) -> str:
    """Statements as JSON Lines; the view changes nothing.

    A model without a SHA-256 of every file is left out, as a statement's subject must have one.
    Each statement counts those left out; where all are, the text is an empty line.
    """
    findings = words.by_model(document)
    chosen = [model for model in document.models if subject_digest(model.files) is not None]
    left = len(document.models) - len(chosen)
    lines = [
        json.dumps(_statement(document, model, findings[model.name], left), allow_nan=False)
        for model in chosen
    ]
    return "\n".join(lines) + "\n"


def subject_digest(files: Sequence[AuditedFile]) -> str | None:
    """The digest of a model in OpenSSF model signing 1.0, None where a file has no digest.

    It is the SHA-256 of the digests of all files, as bytes, in order of their paths, part by part.
    """
    signed = [(PurePosixPath(file.name), file.sha256) for file in files]
    signed = [(path, digest) for path, digest in signed if path.parts[:1] not in _IGNORED]
    total = hashlib.sha256()
    for _, digest in sorted(signed, key=lambda row: row[0].parts):
        if digest is None:
            return None
        total.update(bytes.fromhex(digest))
    return total.hexdigest() if signed else None


def _statement(
    document: AuditDocument, model: AuditedModel, findings: Sequence[FindingRecord], left: int
) -> dict[str, Any]:
    name = PurePosixPath(one_line(model.path).replace("\\", "/")).name or one_line(model.name)
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subject_digest(model.files)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "verifier": {"id": f"pkg:pypi/ckptforensics@{document.tool_version}", "policies": []},
            "timeCreated": words.made(document) or "1970-01-01T00:00:00Z",
            "properties": list(_properties(model, findings)),
            # What a consumer that knows ckptforensics may read; others ignore it.
            "ckptforensics_audit": {
                "model": one_line(model.name),
                "rules": [rule.id for rule in document.rules],
                "findings": [
                    {"id": row.id, "rule": row.rule, "severity": row.severity, "counts": row.counts}
                    for row in findings
                ],
                "models_left_out": left,
            },
        },
    }


def _properties(model: AuditedModel, findings: Sequence[FindingRecord]) -> Iterator[str]:
    """What holds of the model: only what passed is said, so that silence never allows anything."""
    if model.state != "signed" or model.not_read:
        return
    yield "CKPTFORENSICS_WEIGHTS_READ"
    gravest = words.gravest(findings)
    for place, severity in enumerate(SEVERITIES):
        if gravest > place:
            yield f"CKPTFORENSICS_NO_{severity.upper()}"
    claims = [claim.verdict for claim in model.claims]
    if claims and all(verdict == "confirmed" for verdict in claims):
        yield "CKPTFORENSICS_CLAIMS_CONFIRMED"
