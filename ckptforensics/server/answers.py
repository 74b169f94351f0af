"""What a request is answered with: a page or JSON, of what was asked for or of what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ckptforensics.errors import CkptError, one_line
from ckptforensics.render.audit.page import Served
from ckptforensics.render.served import error_page

_TITLES: Mapping[int, str] = {
    400: "That cannot be read",
    401: "A token is needed",
    403: "Not from there",
    404: "There is no such page",
    405: "That cannot be asked for",
    408: "That took too long",
    413: "That is too large",
    421: "That is not the name of this server",
    500: "Something went wrong here",
    503: "Not now",
}


# An error of a record may quote all of it.
_LONGEST_LINE = 500


class Refused(Exception):
    """A request that is answered with a status and one line that says why."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers or {}


@dataclass(frozen=True)
class Page:
    """What a page shows: as HTML and as JSON, each made when it is asked for."""

    html: Callable[[], bytes]
    json: Callable[[], bytes]
    headers: Mapping[str, str] = field(default_factory=dict)


def nav(query: str) -> tuple[tuple[str, str], ...]:
    """Addresses and labels of the pages that every page leads to."""
    return (
        (f"/{query}", "Audit"),
        (f"/models{query}", "Models"),
        ("/find", "Find"),
        ("/catalog", "Catalog"),
    )


def wants_json(path: str) -> bool:
    """Whether an address is that of JSON."""
    return path.endswith(".json")


def answered(
    make: Callable[[Request], Awaitable[Page]],
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with the page that `make` makes, or with what is wrong."""

    async def endpoint(request: Request) -> Response:
        path = request.url.path
        try:
            page = await make(request)
            text, kind = page.html, "text/html"
            if wants_json(path):
                text, kind = page.json, "application/json"
            # Others are answered while a large page is made.
            body = await to_thread.run_sync(text)
            return Response(body, headers=page.headers, media_type=kind)
        except Refused as refused:
            return refusal(path, refused)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except HTTPException as problem:
            return refusal(path, Refused(problem.status_code, str(problem.detail)))
        except CkptError as problem:
            # Where the catalog is, is nobody's business but the user's who started the server.
            tell(f"{request.method} {path}: {problem}")
            return refusal(path, Refused(503, f"the catalog: {problem.message}"))
        except Exception as problem:
            tell(f"internal error: {request.method} {path}: {type(problem).__name__}: {problem}")
            return refusal(path, Refused(500, "an error of the server, which has told its user"))

    return endpoint


def refusal(path: str, refused: Refused) -> Response:
    """The page or the JSON that says why."""
    if wants_json(path):
        text, kind = json.dumps({"error": one_line(refused.line)}) + "\n", "application/json"
    else:
        title = _TITLES.get(refused.status, "That cannot be answered")
        text, kind = error_page(title, refused.line, Served(nav(""), "", "/.json")), "text/html"
    return Response(text, refused.status, refused.headers, kind)


def tell(line: str) -> None:
    """Tell the user who started the server, in one line."""
    sys.stderr.write(f"ckpt: {one_line(line[:_LONGEST_LINE])}\n")
    sys.stderr.flush()
