"""The page of an audit as text: its data, its policy, and the layout of families."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from ckptforensics.errors import one_line
from ckptforensics.render import render
from ckptforensics.render.audit.families import Edge, families
from ckptforensics.results.audit import AuditedModel, RelativeRecord
from tests.render.test_audit_text import EMPTY
from tests.support.audits import HOSTILE_NAMES, audit

ELEMENT = re.compile(r"<(script|style)([^>]*)>(.*?)</\1>", re.S)


@pytest.fixture(scope="module")
def page() -> str:
    return render(audit(30), "html")


def data(page: str) -> dict:
    (found,) = [text for _, what, text in ELEMENT.findall(page) if 'id="data"' in what]
    return json.loads(found)


def test_nothing_of_a_document_is_markup_or_ends_the_data(page):
    assert [kind for kind, _, _ in ELEMENT.findall(page)] == ["style", "script", "script"]
    assert page.count("<script") == 2
    assert "<!--" not in page
    assert "<img" not in page
    names = [model["name"] for model in data(page)["models"]]
    for name in HOSTILE_NAMES:
        assert one_line(name) in names


def test_the_policy_names_the_one_script_and_the_one_style(page):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(part.strip().split(" ", 1) for part in policy.replace("&#39;", "'").split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for kind, what, text in ELEMENT.findall(page):
        if "id=" not in what:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_the_page_asks_for_nothing(page):
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "url(" not in outside
    assert "@import" not in outside
    assert not re.findall(r'(?:src|href)="(?!#)', outside)
    script = ELEMENT.findall(page)[2][2]
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch("):
        assert word not in script
    assert re.findall(r"https?://[^\"]*", script) == ["http://www.w3.org/2000/svg"]


def test_without_its_script_the_page_says_what_was_found(page):
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    for rule in {row.rule for row in audit(30).findings}:
        assert rule in plain
    assert "<strong>Not read:</strong> 4 models could not be read at all" in page


def test_the_data_has_all_of_the_document(page):
    document, found = audit(30), data(page)
    assert len(found["models"]) == 30
    assert [row[0] for row in found["findings"]] == [row.id for row in document.findings]
    for model, row in zip(document.models, found["models"], strict=True):
        shown = row | json.loads(row["more"])
        assert [row[3] for row in shown.get("files", ())] == [f.sha256 for f in model.files]
        assert len(shown.get("layers", "").split(";")) == max(1, len(model.layers))
        assert len(shown.get("claims", ())) == len(model.claims)
        assert len(shown.get("relatives", ())) == len(model.relatives)


def document(*relations: tuple[str, str, str, str], names: str = "abcdefgh"):
    """An audit of models of one letter: (model, its relative, verdict, arrow)."""
    models = []
    for name in names:
        relatives = tuple(
            RelativeRecord(name=other, verdict=verdict, relation=None, arrow=arrow, evidence=())
            for of, other, verdict, arrow in relations
            if of == name
        )
        models.append(
            AuditedModel(
                name=name, source="directory", path=name, state="signed", relatives=relatives
            )
        )
    return EMPTY.model_copy(update={"models": tuple(models)})


def test_a_family_is_what_hangs_together_and_a_line_follows_what_it_came_from():
    found = families(
        document(
            ("b", "a", "derived", "a->b"),
            ("c", "b", "derived", "a->b"),
            ("d", "a", "related", "unknown"),
            ("f", "e", "derived", "a->b"),
            ("g", "h", "independent", "unknown"),
        )
    )
    assert [family.names for family in found] == [("a", "b", "c", "d"), ("e", "f")]
    assert found[0].columns == (0, 1, 2, 1)
    assert found[0].parents == (None, 0, 1, 0)
    assert Edge(0, 1, True, "derived", None) in found[0].edges
    assert Edge(0, 3, False, "related", None) in found[0].edges


def test_a_pair_that_is_told_twice_is_one_line_with_its_direction():
    (family,) = families(
        document(("a", "b", "derived", "b->a"), ("b", "a", "same weights", "unknown"))
    )
    assert family.names == ("a", "b")
    assert family.edges == (Edge(0, 1, True, "derived", None),)


def test_a_relative_that_is_not_among_the_models_is_a_member():
    (family,) = families(document(("a", "root", "derived", "a->b")))
    assert family.names == ("root", "a")


def test_a_merge_has_two_roots_and_a_circle_one():
    (merge,) = families(document(("c", "a", "derived", "a->b"), ("c", "b", "derived", "a->b")))
    assert merge.names == ("a", "c", "b")
    assert merge.columns == (0, 1, 0)
    assert len(merge.edges) == 2
    (circle,) = families(
        document(
            ("b", "a", "derived", "a->b"),
            ("c", "b", "derived", "a->b"),
            ("a", "c", "derived", "a->b"),
        )
    )
    assert sorted(circle.names) == ["a", "b", "c"]
    assert circle.columns == (0, 1, 1)
    assert families(document(("a", "a", "derived", "a->b"))) == []


def test_every_member_of_many_families_has_a_line_below_its_parent():
    for family in families(audit(1_000)):
        assert len(set(family.names)) == len(family.names) >= 2
        for line, (column, parent) in enumerate(zip(family.columns, family.parents, strict=True)):
            if parent is None:
                assert column == 0
            else:
                assert parent < line
                assert family.columns[parent] == column - 1
