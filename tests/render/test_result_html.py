"""Results and reports as pages: whole, escaped, alone, and with or without their drawing."""

from __future__ import annotations

import sys

import pytest

from ckptforensics.render import render
from ckptforensics.results import load_document, save_document
from tests.render.test_comparison_html import Page
from tests.support import running

PAGES = {
    **running.DOCUMENTS,
    "report": running.report(),
    "weights": running.report(ran=False),
    "replication": running.replication(),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(document, "html") for name, document in PAGES.items()}


@pytest.mark.parametrize("name", list(PAGES))
def test_the_page_is_well_formed_and_stands_alone(name, pages):
    text = pages[name]
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert text.replace("\n", "").isprintable()
    tags = [tag for tag, _ in page.elements]
    assert not set(tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not set(tags) & {"a", "i", "b", "u"}
    assert tags.count("style") == 1
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,"))
                assert value.startswith("data:") or value[1:] in ids
    assert text.count("url(") == text.count("url(#")


@pytest.mark.parametrize("name", list(running.DOCUMENTS))
def test_the_page_has_model_drawing_caption_and_tables(name, pages):
    page = Page(pages[name])
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 1
    assert tags.count("figcaption") == 1
    assert "table" in tags
    assert "a/<i>model" in page.text
    if name not in ("layers", "norms", "evolution", "paths"):
        assert "LlamaForCausalLM in float32 on cpu" in page.text
        assert "<b>a text</b>" in page.text


def test_the_text_twin_has_what_the_table_says(pages):
    for name, document in running.DOCUMENTS.items():
        words = set(Page(pages[name]).text.split())
        for line in render(document, verbose=True).splitlines():
            if set(line.strip()) <= {"─"} or line.startswith("  - "):
                continue
            for word in line.strip("#: ").split():
                assert word in words or word.rstrip(":") in words, (name, word)


def test_odd_names_are_text(pages):
    page = Page(pages["trace"])
    assert "'<script>alert(1)</script>'" in page.text
    assert "a\\nb\\x1b[31m" in page.text
    assert "x" * 300 in page.text
    assert '" id="x' in page.text


def test_a_report_has_all_its_parts(pages):
    page = Page(pages["report"])
    for title in (
        "Signature",
        "Explosion and decay layers",
        "Tokens that trigger",
        "Norms of single tokens",
        "Norm of every token after every layer",
        "Tokens of high norm in running text",
    ):
        assert title in page.text
    assert [tag for tag, _ in page.elements].count("svg") == 4
    assert page.text.count("family llama") == 1  # the model is told once
    assert "running model no <torch>" in Page(pages["weights"]).text


def test_without_matplotlib_the_page_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(render(running.trace(), "html"))
    assert "svg" not in {tag for tag, _ in page.elements}
    assert "a plot needs matplotlib; pip install matplotlib" in page.text
    assert "'<script>alert(1)</script>'" in page.text


def test_a_saved_result_gives_the_page_again(tmp_path, pages):
    for name in ("trace", "report"):
        save_document(PAGES[name], tmp_path / "x.json")
        again = load_document(tmp_path / "x.json")
        assert again == PAGES[name]
    assert render(again, "html") == pages["report"]


def test_a_report_has_all_its_tables():
    text = render(running.report(), "table")
    for kind in ("signature", "layers", "norms", "trace", "empirical"):
        assert f"# {kind}\n" in text
    assert "skipped: running model: no <torch>" in render(running.report(ran=False), "table")
