"""`ckpt report` and the drawings and pages of the other commands, on the planted model."""

from __future__ import annotations

from ckptforensics.results import load_document
from ckptforensics.results.report import ReportDocument
from tests.render.test_comparison_html import Page
from tests.support.containers import assert_one_error, run


def test_a_report_of_the_weights_alone(planted, tmp_path, capsys):
    saved = tmp_path / "x.json"
    ran = run(capsys, "report", planted, "--no-run", "-q", "--format", "html", "-o", saved)
    assert ran.code == 0
    page = Page(ran.out)
    assert "running model left out by --no-run" in page.text
    assert "Explosion and decay layers" in page.text
    assert [tag for tag, _ in page.elements].count("svg") == 2
    document = load_document(saved)
    assert isinstance(document, ReportDocument)
    assert document.layers.explosion == document.signature.explosion == (3,)
    assert document.trace is None
    again = run(capsys, "show", saved, "--format", "html")
    assert again.out == ran.out


def test_a_report_of_the_running_model(planted, tmp_path, capsys):
    file = tmp_path / "x.html"
    ran = run(capsys, "report", planted, "--token-ids", "3,5,9,5,3,7", "-q", "-o", file)
    assert ran.code == 0
    page = Page(file.read_text(encoding="utf-8"))
    assert "LlamaForCausalLM in float32 on cpu" in page.text
    assert "Norm of every token after every layer" in page.text
    assert "# trace" in ran.out


def test_a_model_that_does_not_run_is_told(planted, capsys):
    """It has no tokenizer: the weights are told all the same."""
    ran = run(capsys, "report", planted, "-q", "--format", "html")
    assert ran.code == 0
    assert "running model" in Page(ran.out).text
    assert "tokenizer" in Page(ran.out).text


def test_strict_minds_what_was_not_asked_to_be_left_out(planted, capsys):
    assert run(capsys, "report", planted, "-q", "--strict", "--no-run").code == 0
    ran = run(capsys, "report", planted, "-q", "--strict")
    assert ran.code == 2
    assert "--strict: running model skipped" in ran.err


def test_what_cannot_be_meant_is_told_at_once(planted, tmp_path, capsys):
    ran = run(capsys, "report", planted, "--token-ids", "x", "-q")
    assert_one_error(ran, 4, "token ids")
    assert_one_error(run(capsys, "report", planted, "-o", tmp_path / "x.csv"), 4, ".html")


def test_layers_are_drawn_and_made_a_page(planted, tmp_path, capsys):
    plot = tmp_path / "x.png"
    ran = run(capsys, "layers", planted, "-q", "--plot", plot, "--format", "html")
    assert ran.code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "explosion layers: 3" in Page(ran.out).text
    assert_one_error(run(capsys, "layers", planted, "--plot", tmp_path / "x.gif"), 4, ".png")
