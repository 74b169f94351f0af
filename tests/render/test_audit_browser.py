"""The page of an audit in a browser: quick, silent, without network, by keyboard, on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest

from ckptforensics.errors import one_line
from ckptforensics.render import render
from ckptforensics.results import load_document
from tests.support import browser as browsing
from tests.support.audits import HOSTILE_NAMES, audit
from tests.support.comparisons import ODD_NAMES, several, two

SAVED = Path(__file__).parents[1] / "results" / "old"
# Measured: 1.3 s for 10,000 models on two cores. A machine that is busy takes longer.
SLOWEST = 20_000


class Tab(browsing.Tab):
    """A page in a context of its own, and what it did that it should not."""

    def __init__(self, browser, folder: Path, **context) -> None:
        super().__init__(browser, **{"viewport": {"width": 1280, "height": 900}, **context})
        self.folder = folder

    def open(self, text: str) -> Tab:
        file = self.folder / "page.html"
        file.write_text(text, encoding="utf-8")
        self.page.goto(file.as_uri())
        return self

    def audit(self, count: int) -> Tab:
        self.open(html(count))
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)
        return self

    def at(self, kind: str, value: object) -> Tab:
        """Go to a part of the page, and wait until it is there."""
        self.page.evaluate(
            "hash => { location.hash = hash }", f"{kind}={quote(str(value), safe='')}"
        )
        self.page.wait_for_selector("main > p > a[href='#']")
        return self

    def rows(self, grid: str) -> list[str]:
        """What is drawn of a table, row by row."""
        return self.page.locator(f".grid[aria-label={grid}] tr.row").all_inner_texts()

    def shown(self, grid: str) -> str:
        return self.page.locator(f"div:has(> .grid[aria-label={grid}]) > .count").inner_text()

    def focus(self) -> str:
        return self.page.evaluate(
            "document.activeElement.getAttribute('aria-label') || document.activeElement.tagName"
        )

    def silent(self) -> bool:
        assert self.told == []
        assert {url.partition("#")[0] for url in self.requests} == {
            (self.folder / "page.html").as_uri()
        }
        return True


@cache
def html(count: int) -> str:
    return render(audit(count), "html")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with browsing.chromium() as started:
        yield started


@pytest.fixture
def tab(browser, tmp_path) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, and closes them."""
    made: list[Tab] = []

    def make(**context) -> Tab:
        made.append(Tab(browser, tmp_path, **context))
        return made[-1]

    yield make
    for one in made:
        one.context.close()


@pytest.mark.parametrize("count", [10, 1_000, 10_000])
def test_the_page_is_soon_there_and_draws_what_is_in_sight(count, tab, record_property):
    seen = tab().audit(count)
    ready = int(seen.page.evaluate("document.documentElement.dataset.ready"))
    record_property("ready_ms", ready)
    assert ready < SLOWEST
    assert f"{count:,} shown" in seen.shown("Models")
    assert seen.page.locator("tr.row").count() < 200
    assert seen.page.locator("*").count() < 3_000
    # The last model is there when it is asked for, and the table stays as small.
    seen.page.locator(".grid[aria-label=Models]").focus()
    seen.page.keyboard.press("End")
    last = audit(count).models[-1].name
    assert seen.page.locator("tr.active").inner_text().startswith(one_line(last))
    assert seen.page.locator("tr.row").count() < 200
    assert seen.silent()


def test_what_was_not_read_stands_first(tab):
    seen = tab().audit(10)
    text = seen.page.locator("header").inner_text()
    assert text.splitlines()[0] == "Audit of 10 models"
    assert "Not read: 2 models could not be read at all" in text
    assert seen.page.locator("h2").first.inner_text() == "Findings"


def test_findings_are_chosen_by_severity_rule_and_words(tab):
    seen = tab().audit(1_000)
    found = audit(1_000).findings
    counting = [row for row in found if row.counts]
    assert seen.shown("Findings") == f"{len(counting)} of {len(found)} shown"
    seen.page.get_by_label("suppressed and known").check()
    assert seen.shown("Findings") == f"{len(found)} shown"
    seen.page.get_by_label("suppressed and known").uncheck()
    seen.page.get_by_label("errors").uncheck()
    wanted = [row for row in counting if row.severity != "error"]
    assert seen.shown("Findings").startswith(f"{len(wanted)} of")
    assert not any(row.startswith("error") for row in seen.rows("Findings"))
    seen.page.get_by_label("Rule").select_option("CKPT006")
    wanted = [row for row in counting if row.rule == "CKPT006"]
    assert seen.shown("Findings").startswith(f"{len(wanted)} of")
    models = {row.model for row in wanted}
    assert seen.shown("Models") == f"{len(models)} of 1,000 shown"
    seen.page.get_by_label("errors").check()
    seen.page.get_by_label("Rule").select_option("")
    seen.page.get_by_label("Search models and findings").fill("MODEL-99")
    named = [model for model in audit(1_000).models if "model-99" in model.name]
    assert seen.shown("Models") == f"{len(named)} of 1,000 shown"
    assert seen.silent()


def test_a_column_sorts_up_and_down(tab):
    seen = tab().audit(1_000)
    heads = seen.page.locator(".grid[aria-label=Models] thead")
    sizes = sorted(audit(1_000).models, key=lambda model: model.bytes)
    heads.get_by_role("button", name="size").click()
    assert heads.locator("th[aria-sort=ascending]").inner_text().startswith("size")
    assert seen.rows("Models")[0].startswith(one_line(sizes[0].name))
    heads.get_by_role("button", name="size").click()
    assert heads.locator("th[aria-sort=descending]").count() == 1
    assert seen.rows("Models")[0].startswith(one_line(sizes[-1].name))


def test_the_path_by_keyboard(tab):
    seen = tab().audit(1_000)
    keys = seen.page.keyboard
    keys.press("/")
    seen.page.wait_for_selector("input[type=search]:focus")
    keys.type("model-")
    stops = []
    while seen.focus() != "Models":
        keys.press("Tab")
        stops.append(seen.focus())
        assert len(stops) < 25, stops
    for key in ("ArrowDown", "ArrowDown", "PageDown", "Home", "ArrowDown"):
        keys.press(key)
    chosen = seen.page.locator("tr.active").inner_text().split("\t")[0].strip()
    keys.press("Enter")
    seen.page.wait_for_selector("main h2 bdi")
    assert seen.page.locator("main h2").inner_text() == chosen
    keys.press("Escape")
    seen.page.wait_for_selector(".grid[aria-label=Models]")
    # Where it was left: the words, the table and its row.
    assert seen.focus() == "Models"
    assert seen.page.locator("tr.active").inner_text().startswith(chosen)
    # A table is as far down as it was, too.
    keys.press("End")
    last = seen.page.locator("tr.active").inner_text()
    keys.press("Enter")
    seen.page.wait_for_selector("main h2 bdi")
    keys.press("Escape")
    seen.page.wait_for_selector(".grid[aria-label=Models]")
    assert seen.page.locator("tr.active").inner_text() == last
    assert seen.page.locator("tr.active").is_visible()
    keys.press("/")
    seen.page.wait_for_selector("input[type=search]:focus")
    keys.press("Escape")
    assert seen.shown("Models") == "1,000 shown"
    assert seen.silent()


def test_hostile_names_are_words(tab):
    seen = tab().audit(30)
    shown = seen.rows("Models")
    tags = "script, img, iframe, link, object, style"
    before = seen.page.locator(tags).count()
    for name in HOSTILE_NAMES:
        assert any(row.startswith(one_line(name)) for row in shown), name
        seen.at("model", one_line(name))
        assert seen.page.locator("main h2").inner_text() == one_line(name)
    assert seen.page.locator(tags).count() == before == 3
    assert seen.page.locator("a[href^=http], a[href^=java]").count() == 0
    # A name that is no model, or no address, is the overview.
    for wrong in ("#model=nobody", "#model=%E0%A4%A", "#rule=__proto__", "#family=-1", "#x"):
        seen.page.evaluate("hash => { location.hash = hash }", wrong)
        seen.page.wait_for_selector(".grid[aria-label=Models]")
    assert seen.silent()


def test_two_models_that_are_shown_alike_have_a_page_each(tab):
    first, second = audit(2, hostile=False).models
    twins = (
        first.model_copy(update={"name": "a\x07", "path": "here"}),
        second.model_copy(update={"name": "a\\x07", "path": "there"}),
    )
    document = audit(2, hostile=False).model_copy(update={"models": twins, "findings": ()})
    seen = tab().open(render(document, "html"))
    for place, path in enumerate(("here", "there")):
        seen.page.evaluate("location.hash = ''")
        seen.page.locator(".grid[aria-label=Models] tr.row").nth(place).click()
        seen.page.wait_for_selector("main dl")
        assert path in seen.page.locator("main dl").inner_text()
        assert seen.page.locator("main h2").inner_text() == "a\\x07"
    assert seen.silent()


def test_no_other_script_runs_and_nothing_is_loaded(tab):
    seen = tab().audit(10)
    seen.page.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.ran = 1";
        document.body.append(s); const i = document.createElement("img");
        i.src = "http://127.0.0.1:9/x.png"; document.body.append(i) }"""
    )
    assert seen.page.evaluate("window.ran") is None
    assert len(seen.told) == 2
    assert all("Content Security Policy" in line for line in seen.told)


def test_a_model_is_told_whole(tab):
    document = audit(60)
    model = next(
        model for model in document.models if len(model.relatives) > 1 and model.layers[2].label
    )
    seen = tab().audit(60).at("model", one_line(model.name))
    text = seen.page.locator("main").inner_text()
    for row in model.relatives:
        for line in row.evidence:
            assert line in text
    for file in model.files:
        assert file.name in text
        assert file.sha256 in text
    for claim in model.claims:
        assert claim.why in text
    assert "layer 3: explosion; layer 23: decay" in text
    assert seen.page.locator("rect.bar").count() == 2 * len(model.layers)
    assert seen.page.locator("rect.explosion").count() == 2
    assert seen.page.locator(".tree text.here").inner_html().startswith(one_line(model.name)[:20])


def test_a_family_is_drawn_whole(tab):
    from ckptforensics.render.audit.families import families

    first = families(audit(1_000))[0]
    seen = tab().audit(1_000).at("family", 0)
    assert seen.page.locator(".tree circle").count() == len(first.names)
    assert seen.page.locator(".tree path.edge").count() == len(first.edges)
    assert seen.page.locator("tbody tr").count() == len(first.edges)
    directed = sum(edge.directed for edge in first.edges)
    assert seen.page.locator(".tree path.head").count() == directed


def test_on_a_phone_nothing_is_wider_than_the_screen(tab):
    seen = tab(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True).audit(1_000)
    assert seen.overflow <= 0
    for kind, value in (("model", "nul\\x00byte"), ("family", 0), ("rule", "CKPT001")):
        assert seen.at(kind, value).overflow <= 0, kind
    seen.page.evaluate("location.hash = ''")
    first = seen.page.locator(".grid[aria-label=Findings] tr.row").first
    assert "names a parent" in first.inner_text()
    first.tap()
    seen.page.wait_for_selector("main h2 bdi")
    assert seen.silent()


def luminance(colour: str) -> float:
    return sum(int(part) for part in colour[4:-1].split(",")[:3]) / 3


def test_dark_screens_get_a_dark_page_and_paper_a_white_one(tab):
    seen = tab(color_scheme="dark").audit(10)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert luminance(seen.page.evaluate(ground)) < 60
    seen.page.emulate_media(media="print")
    assert luminance(seen.page.evaluate(ground)) > 250
    assert not seen.page.locator(".tools").is_visible()


def test_paper_has_the_rows_that_were_out_of_sight(tab):
    seen = tab().audit(1_000)
    seen.page.emulate_media(media="print")
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    counting = sum(row.counts for row in audit(1_000).findings)
    assert len(seen.rows("Findings")) == min(counting, 500)
    assert len(seen.rows("Models")) == 500
    seen.page.emulate_media(media="screen")
    seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert len(seen.rows("Models")) < 100


PAGES = {
    "two": lambda: two(),
    "several": lambda: several(ODD_NAMES),
    "layers": lambda: load_document(SAVED / "layers-1.3.json"),
    "report": lambda: load_document(SAVED / "report-1.0.json"),
}


@pytest.mark.parametrize("name", list(PAGES))
def test_other_pages_are_silent_and_fit_a_phone(name, tab):
    text = render(PAGES[name](), "html")
    seen = tab(viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme="dark")
    seen.open(text)
    assert seen.overflow <= 0
    assert luminance(seen.page.evaluate("getComputedStyle(document.body).backgroundColor")) < 60
    assert seen.silent()
