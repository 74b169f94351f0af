"""An audit as a bill of materials of models: CycloneDX 1.7."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from ckptforensics.errors import one_line
from ckptforensics.render.audit import words
from ckptforensics.render.view import View
from ckptforensics.results.audit import (
    AuditDocument,
    AuditedFile,
    AuditedModel,
    FindingRecord,
    RelativeRecord,
)
from ckptforensics.results.comparison import RELATIVES

_MODEL = "machine-learning-model"
# Verdicts that say of an older model that this one was made from it.
_MADE_FROM = ("derived", "re-parameterised", "identical", "same weights")
# SPDX identifiers of licences as model cards spell them; others are named as they are.
_SPDX: Mapping[str, str] = MappingProxyType(
    {
        name.lower(): name
        for name in (
            *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "AFL-3.0", "ISC", "Unlicense"),
            *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"),
            *("CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "GPL-3.0", "AGPL-3.0", "LGPL-3.0", "MPL-2.0"),
        )
    }
)
_HUB_NAME = re.compile(r"^[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$", re.I)


def audit_cyclonedx(document: AuditDocument, view: View) -> str:
    """A component a model, with its files, pedigree and findings; the view changes nothing.

    The serial number is made of the document, so that the same audit gives the same text.
    """
    findings = words.by_model(document)
    places = {model.name: model for model in document.models}
    references = {model.name: f"model-{number}" for number, model in enumerate(document.models)}
    components = [
        _component(model, references[model.name], findings[model.name], places)
        for model in document.models
    ]
    seed = json.dumps([components, document.coverage.model_dump(mode="json"), words.made(document)])
    bom: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, seed)}",
        "version": 1,
        "metadata": _metadata(document),
        "components": components,
        "compositions": _compositions(document, references),
    }
    return json.dumps(bom, indent=1, allow_nan=False) + "\n"


def purl(model: AuditedModel) -> str | None:
    """The package URL of a model of the Hub at its commit; None for any other."""
    if model.source not in ("hub", "huggingface") or not _HUB_NAME.match(model.name):
        return None
    name = "/".join(quote(part, safe="") for part in model.name.split("/"))
    commit = model.commit if model.commit and _COMMIT.match(model.commit) else None
    return f"pkg:huggingface/{name}" + (f"@{commit.lower()}" if commit else "")


def _metadata(document: AuditDocument) -> dict[str, Any]:
    tool = {"type": "application", "name": "ckptforensics", "version": document.tool_version}
    coverage = document.coverage
    made: dict[str, Any] = {
        "tools": {"components": [tool]},
        "properties": [
            _property("not-read", words.gaps(coverage)),
            _property("read", words.read(coverage)),
            *(_property("not-read", f"{gap.what}: {gap.reason}") for gap in coverage.not_read),
        ],
    }
    when = words.made(document)
    return made if when is None else {"timestamp": when, **made}


def _component(
    model: AuditedModel,
    reference: str,
    findings: list[FindingRecord],
    places: Mapping[str, AuditedModel],
) -> dict[str, Any]:
    made: dict[str, Any] = {"bom-ref": reference, **_named(model)}
    if model.licence is not None:
        made["licenses"] = [{"license": _licence(model.licence)}]
    made["components"] = [_file(file) for file in model.files]
    pedigree = _pedigree(model, places)
    if pedigree:
        made["pedigree"] = pedigree
    if model.family is not None:
        made["modelCard"] = {"modelParameters": {"modelArchitecture": one_line(model.family)}}
    made["properties"] = _properties(model, findings)
    return {key: value for key, value in made.items() if value != []}


def _named(model: AuditedModel) -> dict[str, Any]:
    """What a component and its relatives call a model."""
    made: dict[str, Any] = {"type": _MODEL, "name": one_line(model.name)}
    if model.commit is not None:
        made["version"] = one_line(model.commit)
    package = purl(model)
    return made if package is None else {**made, "purl": package}


def _named_or_alone(name: str, places: Mapping[str, AuditedModel]) -> dict[str, Any]:
    model = places.get(name)
    return {"type": _MODEL, "name": one_line(name)} if model is None else _named(model)


def _licence(licence: str) -> dict[str, str]:
    known = _SPDX.get(licence.lower())
    named = {"name": one_line(licence)} if known is None else {"id": known}
    # The card says so; nobody concluded it.
    return {**named, "acknowledgement": "declared"}


def _file(file: AuditedFile) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "file", "name": one_line(file.name)}
    if file.sha256 is not None:
        made["hashes"] = [{"alg": "SHA-256", "content": file.sha256}]
    made["properties"] = [_property("role", file.role), _property("bytes", str(file.bytes))]
    if file.stated_sha256 is not None:
        made["properties"].append(_property("stated-sha256", file.stated_sha256))
    return made


def _pedigree(model: AuditedModel, places: Mapping[str, AuditedModel]) -> dict[str, Any]:
    """Ancestors and descendants where the weights show a direction, variants where they do not."""
    made: dict[str, Any] = {}
    for relative in model.relatives:
        if relative.verdict not in (*RELATIVES, "same weights"):
            continue
        named = _named_or_alone(relative.name, places)
        told = words.told(words.relation(relative), model.name, relative.name)
        named["properties"] = [
            _property("relation", told),
            *(_property("evidence", line) for line in relative.evidence),
        ]
        made.setdefault(_role(relative), []).append(named)
    if made:
        made["notes"] = "Found in the weights. " + (
            "Ancestors and descendants are where the weights are consistent with one order of "
            "time, which they cannot prove; variants where none is shown."
        )
    return made


def _role(relative: RelativeRecord) -> str:
    if relative.arrow == "unknown" or relative.verdict not in _MADE_FROM:
        return "variants"
    return "ancestors" if relative.arrow == "a->b" else "descendants"


def _properties(model: AuditedModel, findings: list[FindingRecord]) -> list[dict[str, str]]:
    facts = {
        "source": model.source,
        "path": model.path,
        "state": words.STATES[model.state],
        "family-source": model.family_source,
        "hidden-size": model.hidden_size,
        "layers": model.num_layers,
        "fingerprint": model.fingerprint,
    }
    rows = [_property(name, str(value)) for name, value in facts.items() if value is not None]
    for claim in model.claims:
        relation = claim.relation or "related in a way that is not said"
        said = f"{claim.source} names {claim.parent} ({relation}): {claim.verdict}, {claim.why}"
        rows.append(_property("claim", said))
    for row in findings:
        standing = words.standing(row)
        said = f"{row.rule} {row.severity} {words.place(row.location)}: {row.message} [{row.id}]"
        rows.append(_property("finding", f"{said} ({standing})" if standing else said))
    rows += [_property("not-read", f"{gap.what}: {gap.reason}") for gap in model.not_read]
    return rows


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"ckptforensics:{name}", "value": one_line(value)}


def _compositions(document: AuditDocument, references: Mapping[str, str]) -> list[dict[str, Any]]:
    """Which components are known in part only: what nobody read, nobody can vouch for."""
    whole: dict[bool, list[str]] = {True: [], False: []}
    for model in document.models:
        complete = model.state == "signed" and not model.not_read
        whole[complete].append(references[model.name])
    kinds = ((False, "incomplete"), (True, "unknown"))
    return [
        {"aggregate": kind, "assemblies": whole[complete]}
        for complete, kind in kinds
        if whole[complete]
    ]
