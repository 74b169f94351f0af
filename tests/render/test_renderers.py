"""The table of renderers: every kind has its formats, and no other pair is rendered at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ckptforensics.cli.main import cli
from ckptforensics.errors import UsageError
from ckptforensics.render import FORMATS, formats_of, render
from ckptforensics.results import DOCUMENTS, Document, load_document, save_document
from tests.support.comparisons import two
from tests.support.containers import assert_one_error, run

SAVED = Path(__file__).parents[1] / "results" / "old"
EXPECTED = {
    **dict.fromkeys(DOCUMENTS, ("table", "json")),
    **dict.fromkeys(("layers", "norms"), ("table", "json", "csv", "html")),
    "evolution": ("table", "json", "csv", "html"),
    "comparison": ("table", "json", "csv", "html"),
    **dict.fromkeys(
        ("trace", "empirical", "sinks", "ablation", "paths", "quantization"),
        ("table", "json", "csv", "html"),
    ),
    "replication": ("table", "json", "csv", "html"),
    "quantization-plan": ("table", "json", "csv"),
    "quantization-diff": ("table", "json", "csv"),
    "toy": ("table", "json", "csv"),
    "report": ("table", "json", "html"),
    "audit": (
        *("table", "json", "jsonl", "csv", "markdown", "sarif", "cyclonedx", "intoto", "html"),
    ),
}


class OtherDocument(Document):
    schema_version: str = "1.0"
    kind: str = "other"


def saved(kind: str) -> Document:
    return load_document(SAVED / f"{kind}-{DOCUMENTS[kind].current_version()}.json")


def test_every_kind_has_its_formats():
    assert {kind: formats_of(kind) for kind in DOCUMENTS} == EXPECTED
    assert set(FORMATS) == {form for forms in EXPECTED.values() for form in forms}
    assert FORMATS[:4] == EXPECTED["comparison"]
    assert formats_of("other") == ()


@pytest.mark.parametrize(("kind", "form"), [(k, f) for k in EXPECTED for f in FORMATS])
def test_a_pair_is_rendered_or_refused_with_the_formats_there_are(kind, form):
    document = saved(kind)
    if form in EXPECTED[kind]:
        text = render(document, form)
        assert text.endswith("\n")
        if form == "json":
            assert json.loads(text) == document.model_dump(mode="json")
    else:
        with pytest.raises(UsageError) as caught:
            render(document, form)
        assert str(caught.value) == (
            f"a {kind} document has no format '{form}'; it has: {', '.join(EXPECTED[kind])}"
        )


@pytest.mark.parametrize("form", ["table", "json", "html", "yaml"])
def test_a_kind_that_nothing_renders_is_no_comparison(form):
    with pytest.raises(UsageError, match=f"other document has no format '{form}'; it has: none"):
        render(OtherDocument(tool_version="1"), form)


def test_a_format_that_no_kind_has():
    with pytest.raises(UsageError, match=r"comparison document has no format 'yaml'; .* html"):
        render(two(), "yaml")


@pytest.mark.parametrize("form", ["csv", "html"])
def test_show_refuses_a_format_of_another_kind_as_a_usage_error(form, capsys, tmp_path):
    save_document(saved("signature"), tmp_path / "x.json")
    ran = run(capsys, "show", tmp_path / "x.json", "--format", form)
    assert_one_error(ran, 4)
    assert "it has: table, json" in ran.err


@pytest.mark.parametrize(
    ("command", "forms"),
    [
        ("sign", EXPECTED["signature"]),
        ("layers", EXPECTED["layers"]),
        ("norms", EXPECTED["norms"]),
        ("inspect", EXPECTED["inspect"]),
        ("families", EXPECTED["families"]),
        ("compare", EXPECTED["comparison"]),
        ("evolve", EXPECTED["evolution"]),
        ("audit", EXPECTED["audit"]),
        ("show", FORMATS),
    ],
)
def test_the_command_line_offers_the_formats_of_the_table(command, forms):
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    (choice,) = (p.type for p in found.params if p.name == "form")
    assert isinstance(choice, click.Choice)
    assert tuple(choice.choices) == forms


def test_jinja_is_imported_for_pages_only(tmp_path):
    save_document(two(), tmp_path / "x.json")
    code = (
        "import sys; from ckptforensics.render import render\n"
        "from ckptforensics.results import load_document\n"
        f"document = load_document({str(tmp_path / 'x.json')!r})\n"
        "for form in ('table', 'json', 'csv'): render(document, form)\n"
        "assert 'jinja2' not in sys.modules\n"
        "render(document, 'html')\n"
        "assert 'jinja2' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
