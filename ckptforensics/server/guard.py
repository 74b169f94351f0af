"""Who is answered: requests of this machine, or with the token; and what every answer forbids.

A page of another site can make a browser ask this server. It cannot read the answer, unless its
name is made to mean this machine (so the host's name is checked), and it can make the browser
upload something (so the origin is checked). Without the token nobody from elsewhere is answered.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckptforensics.render.audit.page import script, served_style, source_hash
from ckptforensics.server.answers import Refused, refusal
from ckptforensics.server.options import ServeOptions

# A name or an IP address, and a port: what else a URL may hold before its path is no host.
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_POSTED = ("/find", "/find.json")


class Guard:
    """Refuses what is not to be answered, and says with every answer what a browser may do.

    Parameters
    ----------
    app : what is guarded
    options : of the server
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._token = app, options.token
        self._names = _names(options.host)
        self._headers = _headers(guarded=options.token is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers, path = Headers(scope=scope), str(scope["path"])

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    made.setdefault(name, value)
            await send(message)

        answer: ASGIApp = self._app
        try:
            self._check(scope["method"], path, headers)
            if self._token is not None:
                again = self._identified(scope, headers)
                answer = self._app if again is None else again
        except Refused as refused:
            answer = refusal(path, refused)
        await answer(scope, receive, sending)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = _name_of(host)
        if name is None or not (name in self._names or (self._token is not None and _is_ip(name))):
            raise Refused(421, "the host's name in the address is not this server's")
        if method not in ("GET", "HEAD", "POST"):
            raise Refused(405, "pages can only be read", {"Allow": "GET, HEAD"})
        if method != "POST":
            return
        if path not in _POSTED:
            raise Refused(405, "this page can only be read", {"Allow": "GET, HEAD"})
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and urlsplit(origin).netloc != host
        if foreign or site not in (None, "same-origin", "none"):
            raise Refused(403, "the request comes from a page of another site")

    def _identified(self, scope: Scope, headers: Headers) -> Response | None:
        """None if the request shows the token; the way without it if it is in the address."""
        assert self._token is not None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and scope["method"] in ("GET", "HEAD"):
            self._compare(given, self._token)
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            # A path with two slashes in front would name another host.
            where = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
            again = RedirectResponse(where, status_code=303)
            again.set_cookie(
                _cookie_name(scope), _cookie_of(self._token), httponly=True, samesite="strict"
            )
            return again
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            self._compare(shown.strip(), self._token)
        else:
            self._compare(_cookie(scope, headers), _cookie_of(self._token))
        return None

    @staticmethod
    def _compare(shown: str, wanted: str) -> None:
        if not hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), wanted.encode()):
            raise Refused(
                401,
                "show the token that the server was started with: as ?token=... once, or as "
                "'Authorization: Bearer ...'",
                {"WWW-Authenticate": "Bearer"},
            )


def policy() -> str:
    """The policy of content: nothing is loaded, and one script and one style are known by hash."""
    return (
        f"default-src 'none'; script-src '{source_hash(script())}'; "
        f"style-src '{source_hash(served_style())}'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def _headers(*, guarded: bool) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store" if guarded else "no-cache",
    }


def _names(host: str) -> frozenset[str]:
    """The names by which a browser may call this server."""
    own = {"localhost", "127.0.0.1", "::1", host.lower()}
    return frozenset(own | {socket.gethostname().lower(), socket.getfqdn().lower()})


def _name_of(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is none."""
    found = _HOST.fullmatch(host)
    return None if found is None else found["name"].strip("[]").lower()


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie_name(scope: Scope) -> str:
    """A browser has one set of cookies for all ports of a host."""
    return f"ckpt_token_{scope['server'][1]}"


def _cookie_of(token: str) -> str:
    """What a browser keeps: it shows that the token was known, and does not say it."""
    return hmac.new(token.encode(), b"cookie of ckpt serve", "sha256").hexdigest()


def _cookie(scope: Scope, headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_cookie_name(scope))
    except CookieError:
        return ""
    return "" if found is None else found.value
