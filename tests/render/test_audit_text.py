"""An audit as text, JSON Lines, CSV and Markdown: whole, in order, and nothing hostile in it."""

from __future__ import annotations

import csv
import io
import json

import pytest
from markdown_it import MarkdownIt

from ckptforensics.errors import one_line
from ckptforensics.render import formats_of, render
from ckptforensics.render.audit import words
from ckptforensics.render.audit.markdown import code, inline
from ckptforensics.results import save_document
from ckptforensics.results.audit import Coverage, RelativeRecord
from tests.support.audits import HOSTILE_NAMES, RULES, audit
from tests.support.containers import run

EMPTY = audit(1, hostile=False).model_copy(
    update={
        "coverage": Coverage(
            models=0,
            signed=0,
            headers=0,
            unread=0,
            vanished=0,
            reused=0,
            files=0,
            bytes=0,
            pairs=0,
            pairs_left=0,
        ),
        "models": (),
        "findings": (),
        "rules": (),
        "runs": (),
    }
)
FORMS = formats_of("audit")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_unprintable_and_no_surrogate_leaves_in_any_form(form):
    text = render(audit(30), form, verbose=True)
    assert text.endswith("\n")
    text.encode()
    if form == "json":  # the document itself; JSON spells controls as escapes, ESC and NUL too
        assert not set(text) & {"\x1b", "\0", "\x07", "\r"}
    elif form != "html":
        assert text.replace("\r\n", "\n").replace("\n", "").isprintable()
    else:
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("form", FORMS)
def test_an_audit_of_nothing_is_shown(form):
    text = render(EMPTY, form)
    assert text.endswith("\n")
    if form in ("table", "markdown", "sarif", "cyclonedx", "html"):
        assert "no model was found, so nothing was read" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_a_pure_function_of_the_document(form):
    assert render(audit(12, 3), form) == render(audit.__wrapped__(12, 3), form)


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_says_first_what_was_not_read_and_fits(width):
    text = render(audit(30, hostile=False), width=width)
    assert text.startswith("not read ")
    assert "4 models could not be read at all" in " ".join(text.split())
    for what, reason in words.missing(audit(30, hostile=False))[:10]:
        assert f"{what}: {reason}" in " ".join(text.split())
    wide = [line for line in text.splitlines() if len(line) > width and " " in line.strip()]
    assert wide == []
    order = [
        text.index(f"{rule.severity} {rule.id} ") for rule in RULES if rule.severity == "error"
    ]
    assert order == sorted(order)
    assert max(order) < text.index("warning CKPT002") < text.index("note CKPT005")
    assert text.index("note CKPT005") < text.index("\nmodel ")


def test_the_table_is_short_unless_all_is_asked_for():
    document = audit(1_000)
    short, whole = render(document), render(document, verbose=True)
    assert len(short.splitlines()) < 300
    assert "more (-v shows all)" in short
    assert "-v shows all" not in whole
    for row in document.findings:
        assert row.id in whole
    assert document.findings[0].evidence[0] in whole
    # What does not count is behind what does, and says why.
    suppressed = next(row for row in document.findings if row.suppressed)
    assert f"(suppressed: {suppressed.suppressed}) [{suppressed.id}]" in whole


def test_gaps_are_said_in_words():
    whole = EMPTY.coverage.model_copy(update={"models": 2, "signed": 2})
    assert words.gaps(whole) == "nothing: every model was read and every pair compared"
    assert words.gaps(EMPTY.coverage) == "no model was found, so nothing was read"
    one = whole.model_copy(update={"headers": 1, "vanished": 2, "pairs_left": 1})
    assert words.gaps(one) == (
        "1 model had its headers read only; 2 models are gone since the last run; "
        "1 pair was not compared"
    )


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("2026-11-28T02:10:00Z", "2026-11-28T02:10:00Z"),
        ("2026-11-28T02:10:00.5+00:00", "2026-11-28T02:10:00Z"),
        ("2026-11-28T04:10:00+02:00", "2026-11-28T02:10:00Z"),
        ("2026-11-28T02:10:00", "2026-11-28T02:10:00Z"),
        ("yester\x1bday", "yester\\x1bday"),
    ],
)
def test_times_are_utc(time, said):
    assert words.utc(time) == said


def relative(verdict: str, arrow: str = "unknown", relation: str | None = None) -> RelativeRecord:
    return RelativeRecord(name="R", verdict=verdict, relation=relation, arrow=arrow, evidence=())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            relative("derived", "a->b", "quantized"),
            "The weights of M are derived from those of R (quantized). The weights are consistent "
            "with R having come first; weights alone cannot prove an order of time.",
        ),
        (
            relative("derived", "b->a"),
            "The weights of R are derived from those of M. The weights are consistent "
            "with M having come first; weights alone cannot prove an order of time.",
        ),
        (
            relative("derived"),
            "The weights of one of M and R are derived from those of the other; "
            "which came first is not shown.",
        ),
        (
            relative("same weights"),
            "The weight files of M and R have the same SHA-256 digests.",
        ),
        (relative("related"), "The weights of M and R share a training run."),
        (relative("identical"), "The weights of M and R are identical."),
        (
            relative("independent"),
            "No evidence of a shared training run of M and R was found.",
        ),
        (
            relative("inconclusive"),
            "It was not decided whether M and R share a training run.",
        ),
        (relative("not comparable"), "No test could decide about M and R."),
    ],
)
def test_a_relation_is_a_sentence_to_quote(row, said):
    assert words.told(words.relation(row), "M", "R") == said


def test_lines_of_json_have_every_model_and_end_with_the_coverage():
    document = audit(30)
    lines = [json.loads(line) for line in render(document, "jsonl").split("\n")[:-1]]
    assert [line["name"] for line in lines[:-1]] == [model.name for model in document.models]
    assert lines[-1]["coverage"] == document.coverage.model_dump(mode="json")
    ids = [row["id"] for line in lines for row in line["findings"]]
    assert sorted(ids) == sorted(row.id for row in document.findings)


def test_a_finding_about_no_audited_model_is_in_no_form_lost():
    document = audit(4, hostile=False)
    stray = document.findings[0].model_copy(update={"model": "ckpt.toml", "id": "0" * 16})
    document = document.model_copy(update={"findings": (stray, *document.findings)})
    for form in ("table", "jsonl", "csv", "markdown", "sarif", "html"):
        assert "0" * 16 in render(document, form), form


def test_cells_of_csv_are_no_formulas():
    document = audit(30)
    rows = list(csv.DictReader(io.StringIO(render(document, "csv"), newline="")))
    findings = [row for row in rows if row["row"] == "finding"]
    assert {row["id"] for row in findings} == {row.id for row in document.findings}
    told = {row["model"].removeprefix("'") for row in rows}
    assert told == {one_line(model.name) for model in document.models} | {""}
    for row in rows:
        for cell in row.values():
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t")), cell
    gaps = [row for row in rows if row["row"] == "not read"]
    assert len(gaps) == len(words.missing(document))
    assert gaps[0]["what"] == "models/private"


def rendered(text: str) -> list:
    """All tokens of Markdown, with links that are written out as well."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [token for block in parser.parse(text) for token in (block, *(block.children or ()))]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("spell", [inline, code])
def test_no_name_is_markdown(name, spell):
    tokens = rendered(f"a {spell(f'x {name} y')} b\n")
    kinds = {token.type for token in tokens if token.type != "code_inline"}
    assert kinds <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}
    words_shown = "".join(token.content for token in tokens if token.type != "inline")
    if "|" not in name:  # which is escaped for tables
        assert one_line(name) in words_shown
    plain = "".join(token.content for token in tokens if token.type == "text")
    assert "://" not in plain
    assert "@" not in plain


def test_markdown_has_coverage_first_and_tables_that_hold():
    document = audit(30)
    text = render(document, "markdown")
    assert text.splitlines()[2].startswith("- **Not read**: 4 models could not be read")
    kinds = [token.type for token in rendered(text)]
    assert not {"link_open", "image", "html_inline", "html_block"} & set(kinds)
    counting = [row for row in document.findings if row.counts]
    rules = {row.rule for row in counting}
    assert kinds.count("table_open") == len(rules)
    assert kinds.count("tr_open") == len(counting) + len(rules)
    assert kinds.count("td_open") == 4 * len(counting)


def test_markdown_ends_before_a_summary_is_too_long():
    document = audit(1_000)
    long = [row.model_copy(update={"message": "word " * 700}) for row in document.findings]
    document = document.model_copy(update={"findings": tuple(long)})
    text = render(document, "markdown", verbose=True)
    assert len(text.encode()) < 1_000_000
    assert "left out: a summary holds 1 MiB" in text.splitlines()[-1]


def test_a_saved_audit_is_shown_in_every_form(capsys, tmp_path):
    document = audit(3, hostile=False)
    save_document(document, tmp_path / "x.json")
    for form in FORMS:
        ran = run(capsys, "show", tmp_path / "x.json", "--format", form)
        assert (ran.code, ran.err) == (0, "")
        expected = render(document, form)
        assert ran.out.replace("\r\n", "\n") == expected.replace("\r\n", "\n")
