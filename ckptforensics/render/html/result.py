"""The result of a command on one model as one HTML page: its drawing, and its tables.

A report is the same of several results. What a page says is what the tables for people say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from markupsafe import Markup

from ckptforensics.errors import MissingDependency, UsageError
from ckptforensics.render.html.page import Figure, environment
from ckptforensics.render.plots.documents import picture
from ckptforensics.render.renderers import table_parts
from ckptforensics.render.tables.running import token_name
from ckptforensics.render.view import Fact, Part, Rows, View
from ckptforensics.results import Document, LayersDocument, ModelRecord
from ckptforensics.results.replication import ReplicationDocument
from ckptforensics.results.report import ReportDocument

_TITLES = MappingProxyType(
    {
        "signature": "Signature",
        "layers": "Explosion and decay layers",
        "norms": "Norms of single tokens",
        "evolution": "Norms and directions along checkpoints",
        "trace": "Norm of every token after every layer",
        "empirical": "Tokens of high norm in running text",
        "sinks": "Attention sinks",
        "ablation": "One thing taken away at a time",
        "paths": "Paths of single tokens and random vectors",
        "replication": "Published beside measured",
        "quantization": "Linear modules rounded in several ways",
    }
)
_NO_DRAWINGS = ("signature", "replication")


class Section(NamedTuple):
    """One result: what is known of its model and run, its drawing or why there is none, the rest.

    `facts` stand above the drawing, `parts` below it.
    """

    title: str
    facts: tuple[Fact, ...]
    figure: Figure | None
    without: str
    parts: tuple[Part, ...]


def result_html(document: Document, view: View) -> str:
    """A result as a page in one file."""
    section = _section(document)
    return _page(section.title, document, [section])


def report_html(document: ReportDocument, view: View) -> str:
    """A report as a page in one file."""
    return _page("Report on a checkpoint", document, _sections(document, []))


def replication_html(document: ReplicationDocument, view: View) -> str:
    """Published figures beside measured ones, and all pictures, as a page in one file."""
    own = _section(document)
    return _page(f"Figures of {document.name}", document, _sections(document, [own]))


def _sections(
    document: ReportDocument | ReplicationDocument, sections: list[Section]
) -> list[Section]:
    """The results that the document holds behind the first sections, what several say said once."""
    said = {fact for section in sections for fact in section.facts}
    for part in document.parts:
        section = _section(part)
        facts = tuple(fact for fact in section.facts if fact not in said)
        said.update(facts)
        sections.append(section._replace(facts=facts))
        if isinstance(part, LayersDocument):
            sections.extend(_triggers(part))
    if document.skipped:
        rows = tuple(Fact(row.what, row.reason) for row in document.skipped)
        sections.append(Section("What was left out", rows, None, "", ()))
    return sections


def _page(title: str, document: Document, sections: Iterable[Section]) -> str:
    model: ModelRecord = document.model  # type: ignore[attr-defined]
    page = environment().get_template("result.html")
    return page.render(
        title=title,
        name=Path(model.path).name or model.path,
        sections=list(sections),
        version=document.tool_version,
    )


def _section(document: Document) -> Section:
    parts = table_parts(document)
    facts = []
    for part in parts:
        if not isinstance(part, Fact):
            break
        facts.append(part)
    figure, without = _figure(document)
    return Section(
        _TITLES[document.kind],
        tuple(facts),
        figure,
        without,
        tuple(parts[len(facts) :]),
    )


def _figure(document: Document) -> tuple[Figure | None, str]:
    """The drawing, or why there is none."""
    if document.kind in _NO_DRAWINGS:
        return None, ""
    try:
        drawing, caption = picture(document)
    except (MissingDependency, UsageError) as problem:
        return None, f"There is no figure here: {problem}."
    return Figure(Markup(drawing), caption), ""  # noqa: S704 - matplotlib escapes its words


def _triggers(document: LayersDocument) -> list[Section]:
    """Which tokens come nearest to the triggers of the layers that have a label."""
    rows = tuple(
        (str(row.layer), row.label, str(t.token), token_name(t.token, t.text), f"{t.cosine:+.3f}")
        for row in document.layers
        if row.label is not None
        for t in row.trigger_tokens
    )
    if not rows:
        return []
    headers = ("layer", "label", "token", "text", "cosine of its embedding with the trigger")
    table = Rows(headers, (True, False, True, False, True), rows)
    return [Section("Tokens that trigger", (), None, "", (table,))]
