"""What every command prints and saves, in which forms, and what help says of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from ckptforensics.cli.commands import compare, sign
from ckptforensics.cli.commands.sign import sign_job
from ckptforensics.cli.main import cli
from ckptforensics.render import formats_of
from ckptforensics.results import load_result
from tests.support.containers import assert_one_error, run

WORDS = {
    "layers": ("layers", "{planted}"),
    "norms": ("norms", "{planted}", "--tokens", "3,4"),
    "inspect": ("inspect", "{planted}"),
    "comparison": ("compare", "{signature}", "{signature}", "--fast"),
}


@pytest.fixture(scope="module")
def signature(tmp_path_factory, planted) -> Path:
    file = tmp_path_factory.mktemp("signed") / "signature.safetensors"
    import ckptforensics

    ckptforensics.sign(planted).save(file)
    return file


@pytest.mark.parametrize("kind", WORDS)
def test_a_file_holds_what_its_name_says(kind, planted, signature, tmp_path, capsys):
    """Forms that are printed are saved too, and show makes them of the JSON again."""
    words = [word.format(planted=planted, signature=signature) for word in WORDS[kind]]
    assert run(capsys, *words, "-q", "-o", tmp_path / "x.json").code == 0
    for form in ("csv", "html"):
        ran = run(capsys, *words, "-q", "-o", tmp_path / f"x.{form}")
        printed = run(capsys, *words, "-q", "--format", form)
        shown = run(capsys, "show", tmp_path / "x.json", "--format", form)
        if form in formats_of(kind):
            assert (ran.code, printed.code, shown.code) == (0, 0, 0)
            saved = (tmp_path / f"x.{form}").read_bytes().decode()
            assert len(saved.splitlines()) == len(shown.out.splitlines())
            assert shown.out.splitlines()[0] == saved.splitlines()[0]
            assert printed.out.splitlines()[0] == saved.splitlines()[0]
        else:
            assert (ran.code, printed.code, shown.code) == (4, 4, 4)
            assert "this result is saved as .json" in ran.err
            assert not (tmp_path / f"x.{form}").exists()
            assert f"a {kind} document has no format '{form}'" in shown.err


@pytest.mark.parametrize("name", ["x.csv", "x.html", "x"])
def test_signatures_are_saved_in_two_forms(name, planted, tmp_path, capsys):
    ran = run(capsys, "sign", planted, "-q", "-o", tmp_path / name)
    assert_one_error(ran, 4, "a signature is saved as .safetensors or .json", "change -o")


@pytest.mark.parametrize(
    ("command", "kind"),
    [("layers", "layers"), ("norms", "norms"), ("inspect", "inspect"), ("compare", "comparison")],
)
def test_help_names_the_forms(command, kind, capsys):
    said = " ".join(run(capsys, command, "--help").out.split())
    assert f"--format [{'|'.join(formats_of(kind))}]" in said
    saves = said.partition("-o, --output")[2].partition("-q, --quiet")[0].lower()
    for form in ("json", "csv", "html"):
        assert (form in saves) == (form in formats_of(kind)), form


def test_help_of_show_names_the_forms(capsys):
    said = " ".join(run(capsys, "show", "--help").out.split())
    assert "table and json, of all but signature, inspect, families and cache also html" in said
    for kind in ("signature", "inspect", "families", "cache"):
        assert formats_of(kind) == ("table", "json")
    assert "and but for a report csv" in said
    assert formats_of("report") == ("table", "json", "html")


def test_help_of_fail_on_explains_its_choices():
    (option,) = (o for o in compare.command.params if o.name == "fail_on")
    assert isinstance(option, click.Option)
    assert isinstance(option.type, click.Choice)
    assert option.help is not None
    for choice in option.type.choices:
        assert choice in option.help


def test_a_signature_from_a_pipe(signature, capsys, monkeypatch):
    for data in (
        signature.read_bytes(),
        load_result(signature).document.model_dump_json().encode(),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        shown = run(capsys, "show", "-")
        assert shown.code == 0
        assert shown.out == run(capsys, "show", signature).out


def test_other_tensors_from_a_pipe(planted, capsys, monkeypatch):
    data = (planted / "model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert_one_error(run(capsys, "show", "-"), 2, "-: the file holds tensors and no signature")


@pytest.mark.parametrize("tokens", ["", "  "])
def test_no_tokens(tokens, planted, capsys):
    ran = run(capsys, "norms", planted, "--tokens", tokens)
    assert_one_error(ran, 4, "no tokens are named; use bos, all, random:N or ids")


def test_one_signature_into_a_folder(planted, tmp_path, capsys):
    ran = run(capsys, "sign", planted, "-o", tmp_path)
    assert ran.code == 0
    file = tmp_path / "planted.safetensors"
    assert f"saved to {file}" in ran.err
    assert load_result(file).document.model.path == str(planted)


def test_the_job_of_a_comparison_is_signs_own_command(tmp_path):
    """Parsed by sign itself: what was given comes back, all else is its default."""
    given = {"config": tmp_path, "base": None, "offline": True, "no_cache": True, "quiet": True}
    job = sign_job("model", given, 1000, tmp_path / "s.safetensors")
    (tmp_path / "c.json").write_text(json.dumps({}))
    words = [word.replace(f"--config={tmp_path}", f"--config={tmp_path / 'c.json'}")
             for word in job.arguments]  # fmt: skip
    context = sign.command.make_context("sign", list(words[1:]), parent=click.Context(cli))
    plain = sign.command.make_context("sign", ["model"], parent=click.Context(cli)).params
    changed = {name for name, value in context.params.items() if value != plain[name]}
    assert changed == {
        *("config", "offline", "no_cache", "quiet", "memory", "output", "form", "no_progress"),
    }
    assert job.memory == context.params["memory"] == 1000
