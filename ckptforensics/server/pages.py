"""The pages: which address shows what.

Whatever a request names is looked up in the catalog; nothing of it becomes the name of a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ckptforensics.quantities import counted
from ckptforensics.registry.catalog.contents import catalog_document
from ckptforensics.render.audit import words
from ckptforensics.render.audit.page import Served, served_audit, served_part
from ckptforensics.render.served import (
    Looked,
    Paged,
    catalog_page,
    find_page,
    models_page,
    pair_page,
)
from ckptforensics.results import Document
from ckptforensics.results.audit import SEVERITIES, AuditedModel
from ckptforensics.results.catalog import CatalogDocument
from ckptforensics.results.find import FindDocument
from ckptforensics.server.answers import Page, Refused, answered, nav, refusal
from ckptforensics.server.current import Current, Shown
from ckptforensics.server.finds import Finds
from ckptforensics.server.guard import Guard
from ckptforensics.server.options import ServeOptions

MODELS_A_PAGE = 100
_NUMBER = re.compile(r"[0-9]{1,15}")
_FINDING = re.compile(r"[0-9a-f]{16}")
_RULE = re.compile(r"CKPT[0-9]{3}")
_LONGEST_SEARCH = 200
# A form of the page itself is told apart by where it comes from, which no-referrer would hide.
_FORMS = {"Referrer-Policy": "same-origin"}

Make = Callable[[Request], Page]


def make_app(options: ServeOptions) -> ASGIApp:
    """The server's application, guarded."""
    pages = _Pages(options)
    routes: list[Route] = []
    shown: tuple[tuple[str, Make], ...] = (
        ("/", pages.overview),
        ("/models", pages.models),
        ("/models/{number}", pages.model),
        ("/pairs/{one}/{other}", pages.pair),
        ("/findings/{identifier}", pages.finding),
        ("/families/{number}", pages.family),
        ("/rules/{rule}", pages.rule),
        ("/catalog", pages.catalog),
        ("/find", pages.find),
    )
    for path, make in shown:
        endpoint = answered(partial(_in_thread, make))
        # The address of JSON first: a number may be followed by anything.
        routes += [Route(f"{path}.json", endpoint), Route(path, endpoint)]
    searching = answered(pages.search)
    routes += [Route(p, searching, methods=["POST"]) for p in ("/find.json", "/find")]
    routes.append(Route("/{path:path}", answered(_nowhere)))
    app = Starlette(routes=routes, exception_handlers={404: _lost})
    app.router.redirect_slashes = False
    return Guard(app, options)


async def _in_thread(make: Make, request: Request) -> Page:
    return await to_thread.run_sync(make, request)


_NOWHERE = Refused(404, "the pages are /, /models, /find and /catalog, and what they lead to")


async def _nowhere(request: Request) -> Page:
    raise _NOWHERE


async def _lost(request: Request, problem: Exception) -> Response:
    """What no route is for, such as a target that is no path."""
    return refusal(request.url.path, _NOWHERE)


class _Pages:
    """What each address shows, as the catalog is now."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._current = Current(options.catalog)
        self._finds = Finds(options)

    def overview(self, request: Request) -> Page:
        """The page of an audit, by default the last one."""
        shown = self._asked(request)
        served = Served(
            nav(shown.query),
            "Audit",
            f"/.json{shown.query}",
            shown.query,
            shown.live.numbers,
        )
        document = shown.live.document
        return Page(
            lambda: shown.text("html", lambda: served_audit(document, served)),
            lambda: shown.text("json", lambda: _json(document)),
        )

    def models(self, request: Request) -> Page:
        """The models of an audit, some at a time, as they are asked for."""
        shown = self._asked(request)
        asked = request.query_params
        wanted = {name: asked.get(name, "") for name in ("q", "state", "severity", "audit")}
        if len(wanted["q"]) > _LONGEST_SEARCH:
            raise Refused(400, f"q has at most {_LONGEST_SEARCH} characters")
        for name, known in (("state", tuple(words.STATES)), ("severity", SEVERITIES)):
            if wanted[name] and wanted[name] not in known:
                raise Refused(400, f"{name} is one of: {', '.join(known)}")
        found = _like(shown, wanted)
        pages = max(1, -(-len(found) // MODELS_A_PAGE))
        page = _number(asked.get("page", "1"), "page", 400)
        if not 1 <= page <= pages:
            raise Refused(404, f"there are {pages:,} pages of these models")
        numbers = found[(page - 1) * MODELS_A_PAGE : page * MODELS_A_PAGE]
        document = shown.live.part(numbers)
        kept = {name: value for name, value in wanted.items() if value}

        def at(other: int, path: str = "/models") -> str:
            if not 1 <= other <= pages:
                return ""
            query = urlencode(kept | ({"page": str(other)} if other > 1 else {}))
            return path + (f"?{query}" if query else "")

        paged = Paged(
            len(found), len(shown.models), wanted, page, pages, at(page - 1), at(page + 1)
        )
        served = Served(nav(shown.query), "Models", at(page, "/models.json"), shown.query)
        of = f"in {', '.join(shown.live.audited.sources)}"
        path = request.url.path
        ways = (("prev", at(page - 1, path)), ("next", at(page + 1, path)))
        links = ", ".join(f'<{where}>; rel="{which}"' for which, where in ways if where)
        return Page(
            lambda: models_page(document, numbers, of, paged, served).encode(),
            lambda: _json(document).encode(),
            {"Link": links} if links else {},
        )

    def model(self, request: Request) -> Page:
        """One model, with its family drawn around it."""
        number = _number(request.path_params["number"], "what names a model")
        shown = self._holding(number)
        heading = f"One of {counted(len(shown.models), 'model')}"
        return _part(
            shown,
            _Part(
                path=f"/models/{number}",
                title=shown.models[number].name,
                heading=heading,
                numbers=frozenset((number,)),
                around=shown.family_of(number),
                whole=number,
            ),
        )

    def family(self, request: Request) -> Page:
        """The models that a model hangs together with."""
        number = _number(request.path_params["number"], "what names a model")
        shown = self._holding(number)
        family = shown.family_of(number)
        if len(family) < 2 and not shown.models[number].relatives:
            raise Refused(404, "this model has no relatives in the catalog")
        title = f"Family of {counted(len(family), 'model')}"
        path, start = f"/families/{number}", ("family", "0")
        return _part(shown, _Part(path, title, title, family, family, start))

    def pair(self, request: Request) -> Page:
        """What was measured of two models that are related."""
        numbers = [_number(request.path_params[n], "what names a model") for n in ("one", "other")]
        shown = self._holding(numbers[0])
        document = shown.live.comparison(*numbers)
        if document is None:
            raise Refused(404, "no comparison found these two related")
        known = {shown.models[n].name: f"/models/{n}" for n in numbers if n in shown.models}
        addresses = [known.get(name, "") for name in document.names]
        path = f"/pairs/{numbers[0]}/{numbers[1]}.json"
        served = Served(nav(shown.query), "", path)
        return Page(
            lambda: pair_page(document, addresses, served).encode(),
            lambda: _json(document).encode(),
        )

    def finding(self, request: Request) -> Page:
        """One finding with all its evidence, and the page of its rule."""
        identifier = request.path_params["identifier"]
        if not _FINDING.fullmatch(identifier):
            raise Refused(404, "a finding has 16 hexadecimal digits")
        shown = self._current.shown(lambda catalog: catalog.audit_of_finding(identifier))
        found = None if shown is None else shown.finding(identifier)
        if shown is None or found is None:
            raise Refused(404, "no audit of this catalog has that finding now")
        numbers = shown.numbers((found.model,))
        path, title = f"/findings/{identifier}", f"{found.rule} in {found.model}"
        start, only = ("finding", "0"), frozenset((identifier,))
        return _part(shown, _Part(path, title, "One finding", numbers, numbers, start, only))

    def rule(self, request: Request) -> Page:
        """A rule, and what it found."""
        rule, shown = request.path_params["rule"], self._asked(request)
        if not _RULE.fullmatch(rule) or rule not in {r.id for r in shown.live.document.rules}:
            raise Refused(404, "no rule of that number was applied")
        found = [f for f in shown.live.document.findings if f.rule == rule]
        numbers = shown.numbers(f.model for f in found)
        path, heading = f"/rules/{rule}", f"What {rule} finds"
        start, only = ("rule", rule), frozenset(f.id for f in found)
        return _part(shown, _Part(path, rule, heading, numbers, numbers, start, only))

    def catalog(self, request: Request) -> Page:
        """What the catalog holds, and what was looked at."""
        document = self._catalog()
        audits = [
            Looked(
                f"/?audit={one.number}",
                ", ".join(one.sources),
                "added" if one.sources[:1] == ("catalog add",) else "audited",
                one.ended or "not yet",
            )
            for one in self._current.audits()
        ]
        served = Served(nav(""), "Catalog", "/catalog.json")
        return Page(
            lambda: catalog_page(document, audits, served).encode(),
            lambda: _json(document).encode(),
        )

    def find(self, request: Request) -> Page:
        """The forms to look for a model's relatives; as JSON what is searched."""
        document = self._catalog()
        return Page(
            lambda: self._found_page(None, document), lambda: _json(document).encode(), _FORMS
        )

    async def search(self, request: Request) -> Page:
        """The models whose sketches are near an uploaded one, or that of a model of the Hub."""
        found = await self._finds.answer(request)
        document = await to_thread.run_sync(self._catalog)
        return Page(
            lambda: self._found_page(found, document), lambda: _json(found).encode(), _FORMS
        )

    def _found_page(self, found: FindDocument | None, document: CatalogDocument) -> bytes:
        served = Served(nav(""), "Find", "/find.json")
        hub = self._options.allow_hub
        return find_page(found, document.sketches or 0, hub=hub, served=served).encode()

    def _catalog(self) -> CatalogDocument:
        """What the catalog holds; by its name, as nobody needs to know where it is."""
        document = catalog_document(self._options.catalog)
        return document.model_copy(update={"path": Path(document.path).name})

    def _asked(self, request: Request) -> Shown:
        """The audit that a request names, or the last one."""
        asked = request.query_params.get("audit")
        number = None if asked is None else _number(asked, "audit", 400)
        shown = self._current.shown(
            lambda catalog: catalog.last_audit() if number is None else number
        )
        if shown is not None:
            return shown
        if number is None:
            raise Refused(404, "the catalog has no models yet: 'ckpt audit' brings them")
        raise Refused(404, "the catalog has no audit of that number: /catalog lists them")

    def _holding(self, number: int) -> Shown:
        """The audit that has a model."""
        shown = self._current.shown(lambda catalog: catalog.audit_of_model(number))
        if shown is None or number not in shown.models:
            raise Refused(404, "no audit of this catalog has a model of that number")
        return shown


@dataclass(frozen=True)
class _Part:
    """A part of an audit that is a page.

    Attributes
    ----------
    path : of the page
    title, heading : of the page, and in its head
    numbers : of the models that it is of
    around : of these and of what is drawn around them
    start : what of it is shown, as the script's `route` takes it
    findings : their identifiers; None for all of these models
    whole : the model of which all is shown
    """

    path: str
    title: str
    heading: str
    numbers: frozenset[int]
    around: frozenset[int]
    start: tuple[str, str] = ("", "")
    findings: frozenset[str] | None = None
    whole: int | None = None


def _part(shown: Shown, part: _Part) -> Page:
    """The page of a part of an audit, and the document of it."""
    document = shown.live.part(part.numbers, part.findings)

    def html() -> bytes:
        around = document
        if part.around != part.numbers:
            around = shown.live.part(part.around, part.findings)
        numbers = tuple(n for n in shown.live.numbers if n in part.around)
        whole, start = None, part.start
        if part.whole is not None:
            whole, start = shown.models[part.whole].name, ("model", str(numbers.index(part.whole)))
        address = f"{part.path}.json{shown.query}"
        served = Served(nav(shown.query), "", address, shown.query, numbers, start)
        titles = (part.title, part.heading)
        return served_part(document, titles, around, whole, served).encode()

    return Page(html, lambda: _json(document).encode())


def _like(shown: Shown, wanted: dict[str, str]) -> list[int]:
    """Numbers of the models that are asked for, in their order."""
    severity, state, search = wanted["severity"], wanted["state"], wanted["q"].strip().lower()
    with_findings = {
        f.model for f in shown.live.document.findings if f.counts and f.severity == severity
    }
    return [
        number
        for number, model in shown.models.items()
        if (not state or model.state == state)
        and (not severity or model.name in with_findings)
        and (not search or search in _words(model))
    ]


def _words(model: AuditedModel) -> str:
    """What a model is searched by."""
    said = (model.name, model.path, model.family, model.licence)
    return "\n".join(one for one in said if one).lower()


def _number(text: str, what: str, status: int = 404) -> int:
    if not _NUMBER.fullmatch(text):
        raise Refused(status, f"{what} is a number")
    return int(text)


def _json(document: Document) -> str:
    return document.model_dump_json(indent=2) + "\n"
