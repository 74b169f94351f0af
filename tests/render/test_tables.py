"""Documents as tables for people: what stands in them, at every width."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ckptforensics.quantities import number
from ckptforensics.render import render, render_several
from ckptforensics.results import (
    DOCUMENTS,
    Document,
    ExpertRecord,
    InspectDocument,
    LayersDocument,
    SignatureDocument,
    Skipped,
    load_document,
)

SAVED = Path(__file__).parents[1] / "results" / "old"
KINDS = [kind for kind in DOCUMENTS if kind != "comparison"]


def saved(kind: str) -> Document:
    return load_document(SAVED / f"{kind}-{DOCUMENTS[kind].current_version()}.json")


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verbose", [False, True])
def test_a_narrow_terminal_loses_no_word(kind, verbose):
    """No word is broken, columns that are left out are named, and colour changes nothing else."""
    document = saved(kind)
    wide = render(document, verbose=verbose, width=400)
    narrow = render(document, verbose=verbose, width=40)
    told = re.compile(r"\(too narrow for: (.+); JSON has all\)")
    left_out = [name for names in told.findall(narrow) for name in names.split("; ")]
    assert not told.search(wide)
    assert all(name in wide for name in left_out)
    words, found = (Counter(re.sub("─+", "", told.sub("", t)).split()) for t in (wide, narrow))
    assert found <= words
    assert left_out or found == words
    coloured = render(document, verbose=verbose, width=400, color=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).split() == wide.split()
    assert "\x1b" not in wide


@pytest.mark.parametrize("kind", ["signature", "layers", "inspect", "norms"])
def test_sentences_and_tables_fit_the_screen(kind):
    """But for words that are longer, and the line that says what is left out."""
    text = render(saved(kind), verbose=True, width=60)
    for line in text.splitlines():
        told = line.startswith("(too narrow for")
        assert len(line) <= 60 or told or max(map(len, line.split())) > 45, line


def test_super_weights_keep_their_values():
    """The tensor, which the layer nearly says, is what a narrow screen has no room for."""
    document = saved("layers")
    assert isinstance(document, LayersDocument)
    weight = document.super_weights[0]
    narrow = render(document, width=50)
    assert "(too narrow for: tensor; JSON has all)" in narrow
    wanted = [str(weight.layer), str(weight.row), str(weight.column)]
    (row,) = (row for row in rows(narrow) if row[:3] == wanted)
    assert row[3:] == [f"{weight.value:.4g}", f"{weight.amplitude:,.0f}"]
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow


def test_several_signatures_fit_the_screen():
    document = saved("signature")
    assert isinstance(document, SignatureDocument)
    wide = render_several([document, document])
    assert "explosion" in wide.splitlines()[0]
    narrow = render_several([document, document], width=50)
    assert rows(narrow)[2] == [document.fingerprint, document.model.path]
    assert "(too narrow for: explosion; decay; JSON has all)" in narrow


@pytest.mark.parametrize(
    ("value", "text"),
    [(999.96, "1000"), (-1234.5, "-1,234"), (999_999_999, "999,999,999"), (1e9, "1e+09"),
     (-3.4e38, "-3.4e+38"), (-0.0, "0"), (1e-20, "1e-20")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_signature_has_a_row_a_layer():
    document = saved("signature")
    text = render(document)
    assert "fingerprint   cf1-d7e6be601f1ff8aad815c97aad037345" in text
    assert "direction     17: +0.945  52: -0.084 (tokens after layer 5)" in text
    assert "explosion     3\ndecay         none found\n" in text
    (row,) = (row for row in rows(text) if row[0] == "3")
    assert row[:6] == ["3", "model.layers.2", "58.67", "1.622", "36.18", "5e-07"]
    assert "skipped       layer 9: not asked for" in text


@pytest.mark.parametrize("kind", ["signature", "layers"])
def test_nothing_found_without_a_rollout_is_said_to_be_little(kind):
    skipped = (Skipped(what="single-token rollout", reason="no embeddings"),)
    document = saved(kind).model_copy(update={"skipped": skipped, "decay": ()})
    assert "decay         none found (rollout skipped or incomplete)\n" in render(document)


def test_layers_show_their_evidence_and_their_strongest_experts():
    document = saved("layers")
    text = render(document)
    assert "layer 3 (model.layers.2): explosion, strength 1.00" in text
    assert "  - s1 of L stands out (gap 36.2)" in text
    assert "layer 6" not in text
    assert "layer 6 (model.layers.5): no label" in render(document, verbose=True)
    experts = tuple(
        ExpertRecord(name=f"expert {i}", weight=0.2, sigma=1.0, trigger_norm=norm)
        for i, norm in enumerate((3.0, 9.0, 1.0, 7.0))
    )
    layers = tuple(row.model_copy(update={"experts": experts}) for row in document.layers)
    with_experts = document.model_copy(update={"layers": layers})
    assert re.findall(r"expert \d", render(with_experts)) == ["expert 1", "expert 3", "expert 0"]
    assert "expert 2" in render(with_experts, verbose=True)


def test_norms_show_median_and_range():
    document = saved("norms")
    found = rows(render(document, verbose=True))
    assert ["layer", "token 0", "random vector", "median", "minimum", "maximum"] in found
    first = [row for row in found if row[0] in ("embedding", "3")]
    for row, stage in zip(first, (document.stages[0], document.stages[3]), strict=True):
        shown = [f"{n:.4g}" for n in (*stage.norms, stage.median, stage.minimum, stage.maximum)]
        assert row[1:] == shown


def test_tensors_are_shown_by_use_or_one_by_one():
    document = saved("inspect")
    assert isinstance(document, InspectDocument)
    first = document.tensors[0].model_copy(update={"role": None, "skipped": "scores only"})
    document = document.model_copy(update={"tensors": (first, *document.tensors[1:])})
    found = rows(render(document))
    assert ["down", "1", "BF16", "64 x 160", "20,480"] in found
    assert found[-1] == ["not read: scores only", "1", "BF16", "64", "128"]
    assert ["model.safetensors", "730,840", "3", "53a64df2ca65ef71"] in found
    verbose = rows(render(document, verbose=True, width=200))
    assert ["model.layers.0.mlp.down_proj.weight", "BF16", "64 x 160", "down"] in verbose
    part = document.tensors[1].model_copy(update={"part_of": "w"})
    document = document.model_copy(update={"tensors": (*document.tensors, part)})
    assert rows(render(document, verbose=True, width=200))[-1][-1] == "stored part"


def test_several_signatures_are_a_row_each():
    one = saved("signature")
    assert isinstance(one, SignatureDocument)
    other = one.model_copy(update={"fingerprint": None, "explosion": ()})
    found = rows(render_several([one, other]))
    assert [row[0] for row in found[-2:]] == [one.fingerprint, "none"]
    assert [row[1] for row in found[-2:]] == ["3", "none found"]


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_no_text_of_a_document_reaches_the_terminal_raw(kind):
    """Names come from whoever made the files: no escape sequence, no line of their own."""
    hostile = saved(kind).model_dump(mode="json")
    count = _spoil(hostile, DOCUMENTS[kind])
    text = render(DOCUMENTS[kind].model_validate(hostile), "table")
    assert count
    assert "\nforged" not in text
    assert all(line.isprintable() for line in text.split("\n"))


def _spoil(document: dict[str, Any], kind: type[Document]) -> int:
    """Put what a terminal obeys behind each text that may be any; returns how many there are."""
    count = 0

    def visit(part: Any) -> None:
        nonlocal count
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, (dict, list)):
                visit(value)
            elif isinstance(value, str) and key not in ("kind", "schema_version"):
                part[key] = value + _HOSTILE
                try:
                    kind.model_validate(document)
                    count += 1
                except ValidationError:
                    part[key] = value

    visit(document)
    return count


_HOSTILE = "\x1b[31m\x1b]8;;http://x\x07\u202e\nforged"
