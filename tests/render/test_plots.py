"""Plots of a comparison: files that open, the same bytes every time, and what they show."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from ckptforensics.errors import MissingDependency, OutputError, UsageError
from ckptforensics.render import check_plot_path, plot_document
from tests.support.comparisons import ODD_NAMES, a_test, empty, several, two

DOCUMENTS = {
    "two": two(),
    "no angles": two("not comparable", angles_deg=(), distance_deg=None),
    "one layer": two(angles_deg=(3.0,), layer_map=((1, 1),)),
    "several": several(),
    "odd names": several(("$x$ $", *ODD_NAMES[1:])),
    "formula": two(a="$\\frac{$", b="漢" * 100),
    "no dendrogram": several().model_copy(update={"linkage": ()}),
    "one pair of three": several().model_copy(update={"pairs": several().pairs[:1]}),
}


def drawn(document, path: Path) -> bytes:
    plot_document(document, path)
    return path.read_bytes()


def texts(document, path: Path) -> list[str]:
    """The words of a plot, which matplotlib leaves as comments beside their outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.fromstring(drawn(document, path), parser)
    return [(e.text or "").strip() for e in root.iter() if e.tag is ElementTree.Comment]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, ".svg") for name in DOCUMENTS),
        *((name, suffix) for name in ("two", "several") for suffix in (".png", ".pdf", ".PNG")),
    ],
)
def test_plots_open_and_have_the_same_bytes_twice(name, suffix, tmp_path):
    data = drawn(DOCUMENTS[name], tmp_path / f"one{suffix}")
    assert data == drawn(DOCUMENTS[name], tmp_path / f"two{suffix}")
    if suffix == ".svg":
        assert ElementTree.fromstring(data).tag.endswith("svg")
    elif suffix == ".pdf":
        assert data.startswith(b"%PDF-")
        assert data.rstrip().endswith(b"%%EOF")
        assert b"CreationDate" not in data
    else:
        with Image.open(tmp_path / f"one{suffix}") as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert len(image.getcolors(image.size[0] * image.size[1])) > 3


def test_the_profile_shows_the_angles_and_where_random_directions_lie(tmp_path):
    words = texts(two(a="base", b="tuned"), tmp_path / "x.svg")
    assert "A: base   B: tuned" in words
    assert "99% of random directions in 576 dimensions" in words
    assert "layer of A" in words
    same = two(angles_deg=(1.5, None, 20.0, 88.0))
    assert drawn(two(), tmp_path / "a.svg") != drawn(same, tmp_path / "b.svg")
    assert "no layers whose u1 could be compared" in texts(
        DOCUMENTS["no angles"], tmp_path / "x.svg"
    )


ALIGNED = a_test("aligned angles", "correspondence", profile=(0.5, None, 0.25, 2.0))


def test_the_profile_shows_the_angles_after_the_map_and_the_verdict(tmp_path):
    words = texts(two("re-parameterised", tests=(ALIGNED,)), tmp_path / "x.svg")
    assert "A and B are re-parameterised: one function in other weights" in words
    assert {"u1 in the stored basis", "u1 after the map"} <= set(words)
    assert "u1 after the map" not in texts(two(), tmp_path / "x.svg")


def test_the_heat_map_tells_verdicts_apart_and_draws_relatives_after_the_map(tmp_path):
    document = several()
    words = texts(document, tmp_path / "x.svg")
    codes = (("deriv", 2), ("indep", 4), ("n/c", 2), ("?", 2), ("relat", 2))
    for code, times in codes:
        assert words.count(code) == times, code
    moved = document.pairs[0].model_copy(update={"distance_deg": 85.0, "tests": (ALIGNED,)})
    stranger = document.pairs[1].model_copy(update={"tests": (ALIGNED,)})
    pairs = (moved, stranger, *document.pairs[2:])
    assert [pair.drawn_deg for pair in pairs[:3]] == [0.25, 84.5, None]
    words = texts(document.model_copy(update={"pairs": pairs}), tmp_path / "x.svg")
    assert words.count("0.25*") == 2
    assert words.count("84.5") == 2


def test_the_heat_map_has_every_distance_and_its_order(tmp_path):
    words = texts(several(), tmp_path / "x.svg")
    for text, times in (("0.31", 2), ("84.5", 2), ("(71.5)", 2), ("40.0", 2), ("-", 2)):
        assert words.count(text) == times, text
    names = [w for w in words if "  " in w]
    assert names == ["1  base", "2  tuned", "3  stranger", "4  other width"]
    assert "average, degrees" in words
    assert "average, degrees" not in texts(DOCUMENTS["no dendrogram"], tmp_path / "x.svg")


def test_the_heat_map_is_ordered_by_the_dendrogram(tmp_path):
    linkage = ((0.0, 3.0, 1.0, 2.0), (1.0, 2.0, 2.0, 2.0), (4.0, 5.0, 3.0, 4.0))
    document = several().model_copy(update={"linkage": linkage})
    words = texts(document, tmp_path / "x.svg")
    assert [w for w in words if "  " in w] == [
        "1  base",
        "4  other width",
        "2  tuned",
        "3  stranger",
    ]


def test_names_are_no_formulas_and_no_control_sequences(tmp_path):
    words = texts(DOCUMENTS["odd names"], tmp_path / "x.svg")
    assert "1  $x$ $" in words
    assert "4  \\x1b[31mred\\n" in words


def test_settings_of_the_user_change_nothing(tmp_path, monkeypatch):
    import matplotlib

    before = drawn(two(), tmp_path / "a.svg")
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0, "svg.hashsalt": "x"}):
        assert drawn(two(), tmp_path / "b.svg") == before
        assert matplotlib.rcParams["font.size"] == 30.0  # and nothing of theirs is changed


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.png.txt", ".png", "x.ps"])
def test_other_endings_are_refused_before_anything_is_drawn(name, tmp_path):
    for refuse in (check_plot_path, lambda path: plot_document(two(), path)):
        with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
            refuse(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for refuse in (check_plot_path, lambda path: plot_document(two(), path)):
        with pytest.raises(MissingDependency) as caught:
            refuse(tmp_path / "x.png")
        assert str(caught.value) == ("a plot needs matplotlib; pip install matplotlib")


def test_nothing_to_plot_and_nowhere_to_write(tmp_path):
    with pytest.raises(UsageError, match="nothing to plot"):
        plot_document(empty(), tmp_path / "x.png")
    with pytest.raises(OutputError):
        plot_document(two(), tmp_path / "nowhere" / "x.png")
    assert list(tmp_path.iterdir()) == []
