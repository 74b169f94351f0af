"""An audit as one HTML page that loads nothing: its script shows what a block of data holds.

A server shows the same page, and parts of it as pages of their own.

The templates are in `html/templates`: audit.html, and its style and script in a folder. All text
of a document is one line and goes into the data, which is JSON that cannot end its element; the
script puts it into the page as text. A policy allows the one script and the one style by their
hashes.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted
from ckptforensics.render.audit import words
from ckptforensics.render.audit.families import Family, families
from ckptforensics.render.html.page import environment
from ckptforensics.render.view import View
from ckptforensics.results import Skipped
from ckptforensics.results.audit import (
    AuditDocument,
    AuditedFile,
    AuditedModel,
    FindingRecord,
    RelativeRecord,
)

# All that could end a script's element or begin another, and its spelling in JSON.
_ESCAPES = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"))
_STYLES = ("style.css", "audit/audit.css")
# One script, in the order in which its parts need one another.
_SCRIPTS = ("elements", "data", "grid", "lineage", "overview", "pages", "ways")


@dataclass(frozen=True)
class Served:
    """How a page is served, beside others.

    Attributes
    ----------
    nav : addresses and labels of the pages that every page leads to; `here` is this one's label
    json : address of what the page shows as JSON
    query : what addresses of the same audit end with
    numbers : of the models of the data, by which their pages are addressed
    start : the part of the page that is shown, as its script's `route` takes it
    """

    nav: tuple[tuple[str, str], ...]
    here: str
    json: str
    query: str = ""
    numbers: tuple[int, ...] = ()
    start: tuple[str, str] | None = None


def audit_html(document: AuditDocument, view: View) -> str:
    """The whole audit as a page in one file; the view changes nothing."""
    title = _title(document)
    return _page(document, (title, title), _data(document), style(), None)


def served_audit(document: AuditDocument, served: Served) -> str:
    """The whole audit as a page of a server."""
    title = _title(document)
    return _page(document, (title, title), _data(document), served_style(), served)


def served_part(
    document: AuditDocument,
    titles: tuple[str, str],
    around: AuditDocument,
    whole: str | None,
    served: Served,
) -> str:
    """A part of an audit as a page of a server.

    Parameters
    ----------
    document : the part, of which the head of the page tells
    titles : of the page, and in its head
    around : what the page names besides, such as the family of a model
    whole : the model of which all is shown; of the others only what tables show
    """
    return _page(document, titles, _data(around, whole=whole or ""), served_style(), served)


@cache
def script() -> str:
    """The one script of all pages of audits."""
    return _source(f"audit/{name}.js" for name in _SCRIPTS)


@cache
def style() -> str:
    """The one style of audits in files."""
    return _source(_STYLES)


@cache
def served_style() -> str:
    """The one style of all pages of the server."""
    return _source((*_STYLES, "served/served.css"))


def source_hash(text: str) -> str:
    """What a policy names an inline script or style by."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _title(document: AuditDocument) -> str:
    return f"Audit of {counted(document.coverage.models, 'model')}"


def _page(
    document: AuditDocument,
    titles: tuple[str, str],
    data: dict[str, Any],
    style: str,
    served: Served | None,
) -> str:
    if served is not None:
        told = {"query": served.query, "numbers": served.numbers, "start": served.start}
        data = {**data, "served": told}
    return (
        environment()
        .get_template("audit.html")
        .render(
            document=document,
            missing=words.gaps(document.coverage),
            whole=words.whole(document.coverage),
            read=words.read(document.coverage),
            found=words.counts(document.findings),
            took=words.took(document),
            by_rule=words.by_rule(document),
            title=titles[0],
            heading=titles[1],
            served=served,
            home="#" if served is None else f"/{served.query}",
            script=Markup(script()),  # noqa: S704 - files of this package
            style=Markup(style),  # noqa: S704
            script_hash=source_hash(script()),
            style_hash=source_hash(style),
            data=Markup(_json(data)),  # noqa: S704 - escaped below
        )
    )


def _source(names: Iterable[str]) -> str:
    made = environment()
    assert made.loader is not None
    return "".join(made.loader.get_source(made, name)[0] for name in names)


def _json(data: Mapping[str, Any]) -> str:
    """JSON in which nothing can be taken for markup, inside strings as well."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark, spelled in _ESCAPES:
        text = text.replace(mark, spelled)
    return text


def _data(document: AuditDocument, whole: str | None = None) -> dict[str, Any]:
    """What the script shows. Lists stand for records where there are many; it names their parts.

    Of the models all is in it, or only of the one that `whole` names.
    """
    names = {model.name: place for place, model in enumerate(document.models)}
    sentences = _Numbered()
    return {
        "tool": one_line(document.tool_version),
        "run": words.took(document),
        "rules": {
            rule.id: [one_line(rule.name), one_line(rule.summary), _lines(rule.page)]
            for rule in document.rules
        },
        "states": dict(words.STATES),
        "missing": _gaps(document.coverage.not_read),
        "models": [
            _model(model, names, sentences, whole=whole in (None, model.name))
            for model in document.models
        ],
        "findings": [_finding(row, names) for row in document.findings],
        "families": [_family(family, names) for family in families(document)],
        "sentences": sentences.rows,
    }


class _Numbered:
    """Rows by the number of their first mention."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, row: Any) -> int:
        """The number of a row, which is kept once."""
        if row not in self._places:
            self._places[row] = len(self.rows)
            self.rows.append(row)
        return self._places[row]


def _lines(page: str) -> str:
    """Text of several lines, each without anything unprintable."""
    return "\n".join(one_line(line) for line in page.splitlines())


def _reference(name: str, names: Mapping[str, int]) -> int | str:
    """A model by its place, another by what it is called."""
    place = names.get(name)
    return one_line(name) if place is None else place


def _model(
    model: AuditedModel, names: Mapping[str, int], sentences: _Numbered, *, whole: bool
) -> dict[str, Any]:
    """What tables show of a model; the rest of it is one text, which is read when it is opened."""
    shown = {
        "name": one_line(model.name),
        "source": one_line(model.source),
        "path": one_line(model.path),
        "state": model.state,
        "bytes": model.bytes,
        "licence": _said(model.licence),
        "family": _said(model.family),
        "kin": len(model.relatives),
    }
    if not whole:
        return shown
    more = {
        "commit": _said(model.commit),
        "familySource": model.family_source,
        "width": model.hidden_size,
        "depth": model.num_layers,
        "fingerprint": _said(model.fingerprint),
        "files": [[one_line(f.name), f.role, f.bytes, f.sha256, _stated(f)] for f in model.files],
        "layers": ";".join(
            f"{row.layer} {row.sigma[0]:.4g} {row.sigma[1]:.4g} {row.gap:.4g} {row.label or ''}"
            for row in model.layers
        ),
        "claims": [
            [
                one_line(row.parent),
                _said(row.relation),
                one_line(row.source) + ("" if row.line is None else f":{row.line}"),
                row.verdict,
                one_line(row.why),
                None if row.matched is None else _reference(row.matched, names),
            ]
            for row in model.claims
        ],
        "relatives": [_relative(row, names, sentences) for row in model.relatives],
        "missing": _gaps(model.not_read),
    }
    said = {key: value for key, value in more.items() if value not in (None, [], "")}
    return {**shown, "more": json.dumps(said, ensure_ascii=False, separators=(",", ":"))}


def _gaps(rows: Iterable[Skipped]) -> list[list[str]]:
    return [[one_line(row.what), one_line(row.reason)] for row in rows]


def _said(value: str | None) -> str | None:
    return None if value is None else one_line(value)


def _stated(file: AuditedFile) -> str | bool | None:
    """The digest that the store states; true where it is the one that was computed."""
    same = file.stated_sha256 is not None and file.stated_sha256 == file.sha256
    return True if same else file.stated_sha256


def _relative(row: RelativeRecord, names: Mapping[str, int], sentences: _Numbered) -> list[Any]:
    return [
        _reference(row.name, names),
        row.verdict,
        sentences.place(words.relation(row)),
        [one_line(line) for line in row.evidence],
    ]


def _finding(row: FindingRecord, names: Mapping[str, int]) -> list[Any]:
    return [
        *(row.id, row.rule, row.severity, _reference(row.model, names)),
        *(words.place(row.location), one_line(row.message)),
        [one_line(line) for line in row.evidence],
        words.standing(row),
    ]


def _family(family: Family, names: Mapping[str, int]) -> list[Any]:
    return [
        [_reference(name, names) for name in family.names],
        family.columns,
        family.parents,
        [
            [edge.older, edge.younger, int(edge.directed), edge.verdict, edge.relation]
            for edge in family.edges
        ],
    ]
