"""A comparison as a page: well formed, escaped, complete, and nothing that loads or runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import pdist

from ckptforensics.render import render
from ckptforensics.render.dendrogram import lay_out
from ckptforensics.render.html.svg import angle_profile
from tests.support.comparisons import CHANGES, ODD_NAMES, TESTS, a_test, empty, several, two

VOID = {"meta", "link", "img", "br", "input", "base"}
DOCUMENTS = {
    "two": two(),
    "undecided": two("inconclusive"),
    "no angles": two("not comparable", angles_deg=(), tests=(), changes=(), distance_deg=None),
    "several": several(),
    "odd names": several(ODD_NAMES),
    "empty": empty(),
}


class Page(HTMLParser):
    """Elements with their attributes, and the text outside style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_the_page_is_well_formed_and_stands_alone(name):
    text = render(DOCUMENTS[name], "html")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert text.replace("\n", "").isprintable()
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in page.elements:
        allowed = {"http-equiv", "content"} if tag == "meta" else set()
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in {"src", "href", "xlink:href", "style", "action"}
            assert key in allowed or "url(" not in (value or "")
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    policy = dict(page.elements)["meta"]
    assert any(
        attributes.get("content", "").startswith("default-src 'none'")
        for tag, attributes in page.elements
        if tag == "meta"
    ), policy
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def test_names_are_text_and_nothing_else():
    page = Page(render(several(ODD_NAMES), "html"))
    for shown in (*ODD_NAMES[:3], "\\x1b[31mred\\n"):
        assert shown in page.text
    assert Page(render(several(), "html")).elements == page.elements  # the same markup


def test_a_name_is_no_template_and_no_markup_in_a_drawing():
    text = render(several(("{{ 7 * 7 }}", "{% if x %}", "<b>", "c")), "html")
    shown = Page(text)
    assert "{{ 7 * 7 }}" in shown.text
    assert "{% if x %}" in shown.text
    assert "b" not in {tag for tag, _ in shown.elements}
    assert "3  <b>" in [element.text for element in drawings(text)[0].findall("text")]


@pytest.mark.parametrize("verdict", ["derived", "independent", "inconclusive"])
def test_a_pair_is_told_whole(verdict):
    document = two(verdict)
    text = Page(render(document, "html")).text
    (pair,) = document.pairs
    for test in TESTS:
        assert test.name in text
    for change in CHANGES[1:]:
        assert change.tensor in text
    for words in (
        *pair.reasons,
        *pair.otherwise,
        *pair.compared,
        *pair.not_compared,
        *document.left_out,
        "<= 10^-4 (floor)",
        "10^-4229.6",
        "no token is shared by its string (embedding columns)",
        "512 neurons were sampled (neuron agreement)",
        "rotation of the residual basis (neuron agreement)",
        "exchangeable (direction max, direction sum, gate rows)",
        "layer 3: 0.31 degrees",
    ):
        assert words in text, words
    assert ("decides nothing here" in text) == (verdict == "inconclusive")


def test_all_pairs_of_several_models_are_told():
    text = Page(render(several(), "html")).text
    assert text.count("smallest angle between u1") == 5
    assert "none: no layers whose u1 could be compared" in text
    assert "A is 2, tuned; B is 4, other width" in text
    assert "1 -> 2 quantized, 0.31 degrees 3 -- 4" in text
    assert "(71.5)" in text
    assert "2 is a mixture: 0.70 of 1" in text


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]


def test_the_profile_has_a_point_for_each_angle_and_gaps_for_the_others():
    (drawing,) = drawings(render(two(), "html"))
    points = drawing.findall("circle")
    assert [p.findtext("title") for p in points] == [
        "layer 1: 1.50 degrees",
        "layer 3: 0.31 degrees",
        "layer 4: 88.0 degrees",
    ]
    heights = [float(p.attrib["cy"]) for p in points]
    per_degree = (heights[1] - heights[2]) / (88.0 - 0.3125)
    assert heights[1] - heights[0] == pytest.approx(per_degree * (1.5 - 0.3125), abs=0.02)
    curves = [line for line in drawing.findall("line") if line.attrib["class"] == "curve"]
    assert len(curves) == 1  # from layer 3 to 4; layer 2 has no partner
    band = drawing.find("rect[@class='band']")
    assert band is not None
    top = float(band.attrib["y"])
    assert top == pytest.approx(heights[2] - per_degree * 2, abs=0.02)  # 90 degrees
    assert float(band.attrib["height"]) == pytest.approx(per_degree * (90 - 83.84), rel=0.01)
    bare = ElementTree.fromstring(angle_profile([1], [None], None))
    assert bare.find("circle") is None
    assert bare.find("rect") is None


def test_the_dendrogram_names_every_model():
    found = drawings(render(several(ODD_NAMES), "html"))[0]
    words = [element.text for element in found.findall("text")]
    for label, name in zip("1234", (*ODD_NAMES[:3], "\\x1b[31mred\\n"), strict=True):
        assert f"{label}  {name}" in words
    assert len([e for e in found.findall("line") if e.attrib["class"] == "curve"]) == 9


@pytest.mark.parametrize("seed", range(5))
def test_the_dendrogram_is_laid_out_as_scipy_does(seed):
    count = 3 + 4 * seed
    points = np.random.default_rng(seed).standard_normal((count, 3))
    made = linkage(pdist(points), "average")
    oracle = dendrogram(made, no_plot=True)
    tree = lay_out(made.tolist(), count)
    assert tree is not None
    assert list(tree.order) == oracle["leaves"]
    expected = sorted(
        (d[1], (i[0] - 5) / 10, d[0], (i[3] - 5) / 10, d[3])
        for i, d in zip(oracle["icoord"], oracle["dcoord"], strict=True)
    )
    assert np.allclose(sorted((b.height, *b.left, *b.right) for b in tree.brackets), expected)
    assert tree.height == made[-1, 2]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(0, 1, 1.0, 2)],
        [(0, 1, 1.0, 2), (0, 2, 2.0, 3)],
        [(0, 0, 1.0, 2), (2, 3, 2.0, 3)],
        [(0, 9, 1.0, 2), (2, 3, 2.0, 3)],
        [(0, 4, 1.0, 2), (2, 3, 2.0, 3)],
        [(-1, 1, 1.0, 2), (2, 3, 2.0, 3)],
        [(0, 1, 1.0, 2), (2, 3, 2.0, 3), (4, 4, 2.0, 3)],
        [(1e300, 1, 1.0, 2), (2, 3, 2.0, 3)],
    ],
)
def test_a_linkage_that_is_none_gives_no_dendrogram(rows):
    assert lay_out(rows, 3) is None
    document = several().model_copy(update={"linkage": tuple(map(tuple, rows))})
    assert "Dendrogram" not in render(document, "html")


def test_models_that_are_all_equal_have_a_flat_dendrogram():
    rows = ((0.0, 1.0, 0.0, 2.0), (2.0, 4.0, 0.0, 3.0), (3.0, 5.0, 0.0, 4.0))
    assert len(drawings(render(several().model_copy(update={"linkage": rows}), "html"))) == 7


def test_angles_after_the_map_stand_beside_those_of_the_stored_basis():
    profile = (0.5, None, 0.25, 2.0)
    aligned = a_test("aligned angles", "correspondence", profile=profile)
    text = render(two("re-parameterised", tests=(aligned,)), "html")
    (drawing,) = drawings(text)
    titles = [e.findtext("title") for e in drawing.findall("rect[@class='square']")]
    assert titles == [
        "layer 1, after the map: 0.50 degrees",
        "layer 3, after the map: 0.25 degrees",
        "layer 4, after the map: 2.00 degrees",
    ]
    assert "dots in the stored basis, squares after the recovered map" in Page(text).text
