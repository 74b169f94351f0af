"""The served pages in a browser, over a hostile catalog: silent, alone, usable on a phone.

With CKPT_SHOTS=FOLDER each is kept as a picture, as wide screens and phones show it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import one_line
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.results import save_document
from ckptforensics.results.audit import AuditDocument
from tests.support import browser as browsing
from tests.support.audits import HOSTILE_NAMES
from tests.support.catalogs import LONG_NAME, made_up, policy
from tests.support.served import ROOT, Server, serving

COUNT = 130
PHONE = {"viewport": {"width": 400, "height": 800}, "is_mobile": True, "has_touch": True}


class Tab(browsing.Tab):
    """A page, and what it did that it should not."""

    def __init__(self, browser, server: Server, **context) -> None:
        super().__init__(browser, **{"viewport": {"width": 1200, "height": 900}, **context})
        self.server = server
        self.page.add_init_script(
            "window.broken = []; document.addEventListener('securitypolicyviolation', "
            "(event) => window.broken.push(event.violatedDirective + event.blockedURI))"
        )

    def open(self, path: str) -> Tab:
        self.page.goto(self.server.url + path)
        if self.page.locator("#data").count():
            self.page.wait_for_selector("html[data-ready]")
        return self

    @property
    def path(self) -> str:
        found = urlsplit(self.page.url)
        return found.path + (f"?{found.query}" if found.query else "")

    def silent(self) -> bool:
        assert self.told == []
        assert self.page.evaluate("window.broken") == []
        assert {urlsplit(url).netloc for url in self.requests} == {urlsplit(self.server.url).netloc}
        return True


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with browsing.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, AuditDocument]:
    path = tmp_path_factory.mktemp("made") / "models.db"
    return path, made_up(path, COUNT, hostile=True, policy=policy())


@pytest.fixture(scope="module")
def numbers(made) -> dict[str, int]:
    with sqlite3.connect(f"file:{made[0]}?immutable=1", uri=True) as db:
        return dict(db.execute("SELECT name, id FROM models").fetchall())


@pytest.fixture(scope="module")
def server(made) -> Iterator[Server]:
    with serving(made[0]) as running:
        yield running


@pytest.fixture
def tab(browser, server):
    opened: list[Tab] = []

    def make(**context) -> Tab:
        opened.append(Tab(browser, server, **context))
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()


@pytest.fixture(scope="module")
def pages(made, numbers) -> dict[str, str]:
    """An address of each kind, those with hostile content where there is a choice."""
    document = made[1]
    number = numbers[HOSTILE_NAMES[0]]
    finding = next(f for f in document.findings if f.model == LONG_NAME)
    return {
        "audit": "/",
        "models": "/models",
        "model": f"/models/{number}",
        "long": f"/models/{numbers[LONG_NAME]}",
        "family": f"/families/{number}",
        "pair": f"/pairs/{number}/{numbers['org0/model-0']}",
        "finding": f"/findings/{finding.id}",
        "rule": "/rules/CKPT009",
        "catalog": "/catalog",
        "find": "/find",
        "nothing": "/nothing",
    }


@pytest.mark.parametrize("screen", [{}, PHONE], ids=["wide", "phone"])
def test_every_page_is_silent_and_fits(screen, tab, pages):
    seen = tab(**screen)
    for name, path in pages.items():
        seen.open(path)
        assert seen.overflow <= 0, name
        # The way to the other pages, in its own style.
        nav = seen.page.locator("nav")
        assert nav.locator("a").all_inner_texts()[:4] == ["Audit", "Models", "Find", "Catalog"]
        assert nav.evaluate("node => getComputedStyle(node).display") == "flex", name
        shot = os.environ.get("CKPT_SHOTS")
        if shot:
            width = seen.page.viewport_size["width"]
            seen.page.screenshot(path=f"{shot}/{name}-{width}.png")
        told = [line for line in seen.told if "404" not in line or name != "nothing"]
        assert told == [], name
        assert seen.page.evaluate("window.broken") == [], name
    assert {urlsplit(url).netloc for url in seen.requests} == {urlsplit(seen.server.url).netloc}


def test_hostile_names_are_words(tab, numbers):
    seen = tab().open("/")
    tags = "script, img, iframe, link, object, style"
    assert seen.page.locator(tags).count() == 3
    for name in (*HOSTILE_NAMES, LONG_NAME):
        seen.open(f"/models/{numbers[name]}")
        assert seen.page.locator("main h2").inner_text() == one_line(name)
        assert seen.page.title() == " ".join(one_line(name).split())
        assert seen.page.locator(tags).count() == 3, name
        assert seen.page.locator("a[href^=http], a[href^=java]").count() == 0
    shown: set[str] = set()
    for path in ("/models", "/models?page=2"):
        shown |= set(seen.open(path).page.locator("table.models bdi").all_inner_texts())
        assert seen.page.locator(tags).count() == 1
    assert {one_line(name) for name in HOSTILE_NAMES} <= shown
    assert seen.silent()


def test_no_other_script_runs_and_nothing_is_loaded(tab, pages):
    for path in ("/", "/models", "/find"):
        seen = tab().open(path)
        seen.page.evaluate(
            """() => { const s = document.createElement("script"); s.textContent = "window.ran = 1";
            document.body.append(s); const i = document.createElement("img");
            i.src = "http://127.0.0.1:9/x.png"; document.body.append(i) }"""
        )
        assert seen.page.evaluate("window.ran") is None
        while (refused := seen.page.evaluate("window.broken")) == []:
            seen.page.wait_for_timeout(50)
        assert all(one.startswith(("script-src", "img-src")) for one in refused)


def test_the_way_from_page_to_page(tab, made, numbers):
    document = made[1]
    model = next(
        m for m in document.models if len(m.relatives) > 1 and m.name.startswith("org") and m.claims
    )
    seen = tab().open("/")
    page = seen.page
    # By keyboard to a model.
    page.keyboard.press("/")
    page.keyboard.type(model.name)
    page.locator(".grid[aria-label=Models]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/models/{numbers[model.name]}")
    page.wait_for_selector("main h2 bdi")
    text = page.locator("main").inner_text()
    for row in model.relatives:
        for line in row.evidence:
            assert one_line(line) in text
    assert all(file.sha256 in text for file in model.files)
    assert page.locator(".tree text.here").count() == 1
    # To a relative, drawn in its family, and to the family.
    page.get_by_role("link", name="all that was measured").first.click()
    page.wait_for_url("**/pairs/*/*")
    assert "gate rows agree: 18,432 of 18,432" in page.locator("main").inner_text()
    page.locator("tbody a").first.click()
    page.wait_for_selector("blockquote a")
    page.locator("blockquote a").first.click()
    page.wait_for_selector("main h2 bdi")
    assert seen.path.startswith("/models/")
    page.get_by_role("link", name="alone").click()
    page.wait_for_selector("main h2 bdi")
    assert seen.path.startswith("/families/")
    page.locator(".tree a").first.click()
    page.wait_for_url("**/models/*")
    # To a finding, its rule, and back.
    page.wait_for_selector("main article a[href^='/findings/']")
    page.locator("main article a[href^='/findings/']").first.click()
    page.wait_for_selector("main pre")
    assert seen.path.startswith("/findings/")
    page.locator("main article a[href^='/rules/']").click()
    page.wait_for_url("**/rules/*")
    page.wait_for_selector("main pre")
    page.keyboard.press("Escape")
    page.wait_for_url(f"{seen.server.url}/")
    assert seen.silent()


def test_models_are_searched_and_paged_without_a_script(tab, made):
    seen = tab(java_script_enabled=False)
    seen.page.goto(f"{seen.server.url}/models")
    assert seen.page.locator("table.models tbody tr").count() == 100
    seen.page.get_by_role("link", name="after").click()
    assert seen.page.locator("table.models tbody tr").count() == COUNT - 100
    seen.page.get_by_label("Search models").fill("model-99")
    seen.page.get_by_label("State").select_option("unread")
    seen.page.get_by_role("button", name="show").click()
    wanted = [m for m in made[1].models if "model-99" in m.name and m.state == "unread"]
    assert seen.page.locator("table.models tbody tr").count() == len(wanted) == 1
    assert seen.page.get_by_label("Search models").input_value() == "model-99"


def test_json_is_beside_every_page(tab, pages):
    seen = tab()
    for name, path in pages.items():
        if name == "nothing":
            continue
        seen.open(path)
        address = seen.page.locator("nav .beside").get_attribute("href")
        assert address == ("/.json" if path == "/" else f"{path}.json")
        assert seen.server.ask(address).json["schema_version"]


def test_a_sketch_is_uploaded_from_the_page(browser, tmp_path):
    from ckptforensics.registry.audit import add_models
    from ckptforensics.registry.options import AuditOptions

    zoo = ROOT / "fixtures" / "zoo"
    add_models([str(zoo / "seed0")], AuditOptions(tmp_path / "models.db", weights=False))
    made = sketch(open_checkpoint(zoo / "finetune"))
    hostile = made.model.model_copy(update={"path": "<img src=x onerror=alert(1)>\u202e\x1b[31m"})
    save_document(made.model_copy(update={"model": hostile}), tmp_path / "sketch.json")
    (tmp_path / "wrong.json").write_text('{"kind": "<b>"}')
    with serving(tmp_path / "models.db") as server:
        seen = Tab(browser, server).open("/find")
        seen.page.locator("input[type=file]").set_input_files(tmp_path / "sketch.json")
        seen.page.get_by_role("button", name="find").click()
        seen.page.wait_for_selector("section table")
        text = seen.page.locator("section").inner_text()
        assert "seed0" in text
        assert "<img src=x onerror=alert(1)>\\u202e\\x1b[31m" in text
        assert seen.silent()
        seen.page.locator("input[type=file]").set_input_files(tmp_path / "wrong.json")
        seen.page.get_by_role("button", name="find").click()
        seen.page.wait_for_selector(".problem")
        assert "its kind is '<b>'" in seen.page.locator(".problem").inner_text()
        assert seen.page.locator("b").count() == 0
        assert seen.page.evaluate("window.broken") == []
        seen.context.close()


def test_the_token_in_the_address_is_a_cookie_from_then_on(browser, made):
    with serving(made[0], "--host", "0.0.0.0") as server:
        seen = Tab(browser, server)
        assert seen.page.goto(server.url).status == 401
        seen.open(f"/?token={server.token}")
        assert seen.path == "/"
        assert "Audit of" in seen.page.locator("h1").inner_text()
        seen.open("/models")
        assert seen.page.locator("table.models").count() == 1
        assert seen.page.evaluate("document.cookie") == ""
        seen.context.close()
