"""Drawings of one model: they open, say what they show, and stand extremes."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from ckptforensics.errors import UsageError
from ckptforensics.render import plot_document
from ckptforensics.render.plots.documents import picture
from ckptforensics.render.plots.drawing import places_shown
from tests.render.test_plots import texts as words_of
from tests.support import running


def test_a_drawing_is_the_same_twice():
    assert picture(running.trace()) == picture(running.trace())


EXTREMES = {
    "one token": running.trace(tokens=1),
    "1,000 tokens, 80 layers": running.trace(tokens=1000, layers=80),
    "norms of zero": running.norms().model_copy(update={"embedding_norms": (0.0, 0.0, 0.0)}),
    "no labels": running.layers(labels=False),
    "80 layers": running.layers(80),
    "layers beside running text": running.layers(plateaus=2),
    "two checkpoints": running.evolution(2, labels=False),
    "many checkpoints": running.evolution(150, 40),
    "no plateaus": running.empirical(plateaus=()),
    "many plateaus": running.empirical(80, tuple((i, i + 2) for i in range(1, 78, 4))),
    "one text": running.sinks(80, other=False, values=False),
    "one row": running.ablation(names=()),
    "no plan": running.quantization(planned=False),
    "no trigger": running.paths(1, triggered=False),
}


@pytest.mark.parametrize("kind", list(running.DOCUMENTS))
def test_a_drawing_opens_and_nothing_is_cut_off(kind, tmp_path):
    file = tmp_path / "one.png"
    plot_document(running.DOCUMENTS[kind], file)
    with Image.open(file) as image:
        image.load()
        assert min(image.size) > 500
        pixels = image.convert("L")
        # The outermost pixels are paper.
        width, height = pixels.size
        for box in ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height)):
            assert pixels.crop(box).getextrema() == (255, 255)


@pytest.mark.parametrize("name", list(EXTREMES))
def test_extremes_are_drawn(name):
    element, caption = picture(EXTREMES[name])
    assert element.startswith("<svg ")
    assert caption.endswith(".")
    assert len(element) < 1_500_000


TITLES = {
    "layers": "explosion and decay layers and their evidence",
    "norms": "norms of single tokens",
    "evolution": "norms and directions along checkpoints",
    "trace": "norm of every token after every layer",
    "empirical": "tokens of high norm in running text",
    "sinks": "attention heads that attend to token 1",
    "ablation": "norm and perplexity with one thing taken away",
    "quantization": "perplexity with linear modules rounded",
    "paths": "paths of single tokens, and what triggers",
}


@pytest.mark.parametrize("kind", list(running.DOCUMENTS))
def test_title_caption_and_axes_are_said(kind, tmp_path):
    document = running.DOCUMENTS[kind]
    words = words_of(document, tmp_path / "x.svg")
    together = unescape(" ".join(words))
    assert f"<i>model: {TITLES[kind]}" in together
    _, caption = picture(document)
    for word in caption.split()[:12]:
        # matplotlib writes its words as comments, in which two hyphens cannot be.
        assert word.replace("--", "- -") in together
    assert any("layer" in word for word in words)


def test_the_path_of_the_first_token_and_its_prediction_are_drawn():
    element, caption = picture(running.trace())
    assert "its prediction by the weights alone" in element
    assert "largest difference 1e-06 of the norm" in caption
    assert "goes highest is '<script>ale...' at place 1, with 904 after layer 4" in caption


def test_odd_tokens_are_words_and_nothing_else():
    element, _ = picture(running.trace())
    assert "<script" not in element
    assert "'&lt;script&gt;al" in element
    assert "$\\frac{$" in element
    assert "a\\nb\\x1b[31m" in element
    assert "漢字" in element
    assert "x" * 20 not in element
    assert "http" not in element


def test_values_are_where_they_belong():
    """The bars of perplexity and the marked layers, by the numbers that stand beside them."""
    element, caption = picture(running.ablation())
    for shown in ("as it is", "trigger, 2", "control of trigger, 2", "1,000"):
        assert f">{shown}<" in element
    assert "suffers most from skip-block, 2: 1,000" in caption
    _, caption = picture(running.layers())
    assert "explosion layers: 2; decay layers: 4" in caption
    assert "Layer 2 multiplies the norm of single tokens most, in the median by 80" in caption


def test_of_a_long_text_the_first_tokens_and_the_highest_are_shown():
    highest = [1.0] * 100
    highest[70], highest[99] = 9.0, 8.0
    shown = places_shown(highest)
    assert len(shown) == 32
    assert shown[:16] == list(range(16))
    assert {70, 99} <= set(shown)
    assert places_shown([1.0]) == [0]


def test_a_kind_without_a_drawing_says_so(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no drawing.*ablation, comparison"):
        plot_document(running.signature(), tmp_path / "x.png")
