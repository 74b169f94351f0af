"""Pages of the server that are no page of an audit: models, pairs, find, the catalog, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ckptforensics.quantities import counted, size
from ckptforensics.render.audit import words
from ckptforensics.render.audit.page import Served, served_style
from ckptforensics.render.html.page import angle_figure, environment, model_lines
from ckptforensics.render.renderers import table_parts
from ckptforensics.results.audit import SEVERITIES, AuditDocument, AuditedModel, FindingRecord
from ckptforensics.results.catalog import CatalogDocument
from ckptforensics.results.comparison import ComparisonDocument
from ckptforensics.results.find import FindDocument
from ckptforensics.version import __version__


class Paged(NamedTuple):
    """Which models a page shows: of how many, asked for how, and where those before and after are.

    Attributes
    ----------
    total, all : models that are asked for, and those of the audit
    wanted : what the page was asked for, by the names of its form's fields
    page, pages : from 1
    before, after : addresses, "" where there is no such page
    """

    total: int
    all: int
    wanted: Mapping[str, str]
    page: int
    pages: int
    before: str
    after: str


class Looked(NamedTuple):
    """One of what was audited or added: its address, sources, what was done and when it ended."""

    address: str
    sources: str
    what: str
    ended: str


def models_page(
    document: AuditDocument, numbers: Sequence[int], of: str, paged: Paged, served: Served
) -> str:
    """A page of the models of an audit.

    Parameters
    ----------
    document : the audit of the models of this page
    numbers : of these models, by which their pages are addressed
    of : what was audited, in words
    """
    findings = words.by_model(document)
    return _page(
        "models",
        served,
        rows=[
            _row(model, number, findings[model.name])
            for model, number in zip(document.models, numbers, strict=True)
        ],
        of=of,
        states=list(words.STATES.items()),
        severities=SEVERITIES,
        **paged._asdict(),
    )


def find_page(found: FindDocument | None, sketches: int, *, hub: bool, served: Served) -> str:
    """What was found, if something was looked for, and the forms to look for more.

    Parameters
    ----------
    sketches : that are searched
    hub : whether models of the Hub may be named
    """
    parts = [] if found is None else table_parts(found)
    return _page("find", served, parts=parts, sketches=sketches, hub=hub)


def catalog_page(document: CatalogDocument, audits: Sequence[Looked], served: Served) -> str:
    """What the catalog holds, and what was looked at."""
    return _page("catalog", served, parts=table_parts(document), audits=audits)


def error_page(title: str, line: str, served: Served) -> str:
    """What is wrong, in one line."""
    return _page("error", served, title=title, line=line)


def pair_page(document: ComparisonDocument, addresses: Sequence[str], served: Served) -> str:
    """What a comparison says of two models, whose own pages have these addresses, "" for none."""
    (pair,) = document.pairs
    return _page(
        "pair",
        served,
        document=document,
        pair=pair,
        models=list(zip(addresses, model_lines(document), strict=True)),
        figure=angle_figure(document, pair),
    )


def _page(name: str, served: Served, **values: Any) -> str:
    style = Markup(served_style())  # noqa: S704 - files of this package
    page = environment().get_template(f"served/{name}.html")
    return page.render(served=served, style=style, version=__version__, **values)


def _row(model: AuditedModel, number: int, findings: Sequence[FindingRecord]) -> dict[str, str]:
    counting = [row.severity for row in findings if row.counts]
    said = [counted(counting.count(s), s) for s in SEVERITIES if s in counting]
    return {
        "address": f"/models/{number}",
        "name": model.name,
        "findings": ", ".join(said) or "none",
        "worst": next((s for s in SEVERITIES if s in counting), ""),
        "state": words.STATES[model.state],
        "family": model.family or "-",
        "licence": model.licence or "-",
        "size": size(model.bytes),
    }
