"""Who is answered: this machine or the token, by the server's own name, from its own pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from tests.support.catalogs import made_up
from tests.support.served import Server, multipart, serving

TOKEN = "a-token-of-a-test-0123456789"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "models.db"
    made_up(path, 12)
    return path


@pytest.fixture(scope="module")
def server(catalog) -> Iterator[Server]:
    with serving(catalog) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(catalog) -> Iterator[Server]:
    file = catalog.parent / "token"
    file.write_text(f"{TOKEN}\n")
    with serving(catalog, "--host", "0.0.0.0", "--token-file", str(file)) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/.json", "/models", "/nowhere", "/find"])
def test_every_answer_says_what_a_browser_may_do(path, server):
    headers = server.ask(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for kind in ("script-src", "style-src"):
        assert policy[kind].startswith("'sha256-")
        assert " " not in policy[kind]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == ("same-origin" if path == "/find" else "no-referrer")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-cache"
    assert "server" not in headers


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", "", "[::1", "10.1.2.3"),
        *("evil.example@127.0.0.1", "127.0.0.1/x", "127.0.0.1?", "127.0.0.1:evil", "127.0.0.1#x"),
    ],
)
def test_another_name_is_not_answered(host, server):
    for path in ("/", "/.json", "/find"):
        answer = server.ask(path, Host=host)
        assert answer.status == (400 if answer.body == b"Invalid HTTP request received." else 421)
        assert "model-" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:80"])
def test_its_own_names_are_answered_at_whatever_port(host, server):
    assert server.ask("/.json", Host=host).status == 200


def test_nothing_of_a_request_is_the_name_of_a_file(catalog, tmp_path):
    """Python tells of every file that is opened and of every database, folder and process."""
    seen = tmp_path / "seen"
    watched = (
        "import sys\n"
        f"seen = open({str(seen)!r}, 'w', buffering=1)\n"
        "def hook(event, arguments):\n"
        "    if any('zzmark' in str(one) for one in arguments if isinstance(one, (str, bytes))):\n"
        "        seen.write(f'{event}\\n')\n"
        "sys.addaudithook(hook)\n"
        "sys.audit('open', 'zzmark')\n"
        "from ckptforensics.cli.main import main\n"
        "sys.exit(main())\n"
    )
    with serving(catalog, start=(sys.executable, "-c", watched)) as server:
        for path in ("/zzmark", "/../zzmark", "/%2e%2e/zzmark", "/models/zzmark", "/rules/zzmark"):
            for end in ("", ".json", "?audit=zzmark", "?q=zzmark&page=zzmark&state=zzmark"):
                server.ask(path + end)
        server.ask("/models?q=/tmp/zzmark")
        for fields in ({"sketch": b"zzmark"}, {"hub": b"zzmark/zzmark"}, {"zzmark": b"zzmark"}):
            body, kind = multipart(**fields)
            body = body.replace(b"passwd", b"zzmark")
            server.ask("/find?catalog=zzmark", "POST", body, Content_Type=kind)
        server.ask("/", Host="zzmark", Cookie="zzmark=zzmark")
        assert server.end() == (0, "")
    assert seen.read_text() == "open\n"  # its own


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_pages_can_only_be_read(method, server):
    for path in ("/", "/find"):
        answer = server.ask(path, method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_only_find_takes_anything(server):
    assert server.ask("/models", "POST", b"{}").status == 405
    assert server.ask("/models/1.json", "POST", b"{}").json == {
        "error": "this page can only be read"
    }
    assert server.ask("/find.json", "POST", b"{}").status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_cannot_make_it_look_for_anything(headers, server):
    assert server.ask("/find.json", "POST", b"{}", **headers).status == 403


def test_its_own_page_can(server):
    own = {"Origin": server.url, "Sec_Fetch_Site": "same-origin"}
    assert server.ask("/find.json", "POST", b"{}", **own).status == 400


def test_without_the_token_nothing_is_said(guarded):
    for path in ("/", "/.json", "/find", "/nowhere"):
        answer = guarded.ask(path)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "model-" not in answer.text
        assert TOKEN not in answer.text
    assert guarded.ask("/find.json", "POST", b"{}").status == 401
    wrong = (TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "", "\u00e9")
    for one in wrong:
        header = f"Bearer {one}".encode().decode("latin-1")
        assert guarded.ask("/", Authorization=header).status == 401
        assert (
            guarded.ask(
                "/", Cookie=f"ckpt_token_{guarded.port}={one}".encode().decode("latin-1")
            ).status
            == 401
        )
    assert guarded.ask("/?token=wrong").status == 401
    assert guarded.ask("/", Authorization=f"Basic {TOKEN}").status == 401


def test_the_token_is_taken_as_a_header_or_once_in_the_address(guarded):
    answer = guarded.ask("/.json", Authorization=f"Bearer {TOKEN}")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    moved = guarded.ask(f"/models?q=org1&token={TOKEN}")
    assert (moved.status, moved.headers["location"]) == (303, "/models?q=org1")
    cookie = SimpleCookie(moved.headers["set-cookie"])[f"ckpt_token_{guarded.port}"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"
    assert cookie["path"] == "/"
    assert TOKEN not in cookie.value
    assert guarded.ask("/", Cookie=f"{cookie.key}={TOKEN}").status == 401
    shown = guarded.ask("/models?q=org1", Cookie=f"other=1; {cookie.key}={cookie.value}")
    assert "model-1" in shown.text
    assert TOKEN not in shown.text


def test_the_way_on_from_the_token_stays_on_this_server(guarded):
    moved = guarded.ask(f"//evil.example/x?token={TOKEN}")
    assert moved.headers["location"] == "/evil.example/x"


def test_beside_a_token_addresses_of_the_network_are_names_too(guarded):
    asked = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.ask("/.json", Host="192.168.1.7:8000", **asked).status == 200
    assert guarded.ask("/.json", Host="evil.example", **asked).status == 421


def test_another_address_gets_a_token_which_is_told_once(catalog):
    with serving(catalog, "--host", "0.0.0.0") as server:
        assert server.token is not None
        assert len(server.token) >= 32
        assert server.ask("/.json").status == 401
        assert server.ask("/.json", Authorization=f"Bearer {server.token}").status == 200
        _, told = server.end()
        assert server.token not in told


def test_a_token_may_guard_this_machine_too(catalog, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with serving(catalog, "--token-file", str(tmp_path / "token")) as server:
        assert server.ask("/.json").status == 401
        assert server.ask("/.json", Authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize("path", ["http://127.0.0.1/models", "/.json/", "/models/"])
def test_what_no_page_is_for_is_told_as_ever(path, server):
    answer = server.ask(path)
    assert answer.status == 404
    assert "the pages are /, /models, /find and /catalog" in answer.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--token-file", "/dev/zero"), "cannot read the token: this is not a regular file"),
        (("--token-file", "/"), "is a directory"),
        (("--host", ""), "no address to listen at; give --host 127.0.0.1"),
    ],
)
def test_what_cannot_be_served_is_one_line(catalog, options, said):
    done = subprocess.run(
        [sys.executable, "-m", "ckptforensics", "serve", "--catalog", str(catalog), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_catalog_whose_name_is_no_unicode(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.db")
    made_up(path, 3)
    with serving(path) as server:
        assert json.loads(server.ask("/catalog.json").body)["path"] == "\\udcff.db"
        assert server.ask("/catalog").status == 200
