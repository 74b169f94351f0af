"""`ckpt sign` with several models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

import ckptforensics
from ckptforensics.cli.commands.sign import command
from ckptforensics.cli.main import main
from ckptforensics.jobs import processes

PLANTED = Path(__file__).parents[2] / "fixtures" / "planted"
OPTIONS = [p for p in command.params if isinstance(p, click.Option)]
# What a child is told in place of what the user said.
REPLACED = {"jobs", "memory", "output", "form", "no_progress"}
# With several models these mean something else for each: refused.
REFUSED = {"config", "base"}


def test_one_document_a_line(capsys, tmp_path: Path):
    folder = tmp_path / "signatures"
    arguments = [str(PLANTED), str(PLANTED), "--jobs", "2", "--format", "json", "--no-cache"]
    assert main(["sign", *arguments, "--output", str(folder)]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [d["kind"] for d in documents] == ["signature"] * 2
    assert documents[0]["fingerprint"] == documents[1]["fingerprint"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "planted-2.safetensors",
        "planted.safetensors",
    ]
    # Again into the same folder.
    assert main(["sign", *arguments, "--output", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    # As if it had been signed alone.
    assert main(["sign", str(PLANTED), "--format", "json", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out) == documents[0]


def test_one_that_fails_keeps_no_other_from_it(capsys, tmp_path: Path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    models = [str(tmp_path / "missing"), str(PLANTED), str(broken)]
    code = main(["sign", *models, "--no-cache"])
    printed = capsys.readouterr()
    assert code == 4
    assert printed.out.count("cf1-") == 1
    errors = [line for line in printed.err.splitlines() if line.startswith("ckpt: error: ")]
    assert len(errors) == 2
    assert "missing" in errors[0]
    assert "broken.safetensors" in errors[1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--config", str(PLANTED / "config.json")], "--config is of one model"),
        (["--output", str(PLANTED / "config.json")], "need a folder"),
        (["--memory", "a lot"], "is no size"),
        (["--memory", "-1GB"], "is no size"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_what_cannot_be_meant(capsys, extra: list[str], said: str):
    assert main(["sign", str(PLANTED), str(PLANTED), *extra]) == 4
    assert said in capsys.readouterr().err


def value_of(option: click.Option, folder: Path) -> str:
    """Some value that is not the default."""
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    if isinstance(option.type, click.IntRange):
        return "3"
    if isinstance(option.type, click.Path):
        return str(folder if option.name == "output" else folder / "signature.safetensors")
    return {"layers": "1-2", "memory": "3GB"}[str(option.name)]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: str(option.name))
def test_every_option_reaches_each_model_or_is_refused(
    option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    ckptforensics.sign(PLANTED).save(tmp_path / "signature.safetensors")
    words = [option.opts[-1]]
    if not option.is_flag:
        words.append(value_of(option, tmp_path))
    started: list[list[str]] = []

    def run_none(jobs: list[processes.Job], **how: Any) -> list[processes.Job]:
        started.extend([*job.arguments] for job in jobs)
        return []

    monkeypatch.setattr(processes, "run_jobs", run_none)
    code = main(["sign", *words, "--", str(PLANTED), str(PLANTED)])
    if option.name in REFUSED:
        assert (code, started) == (4, [])
        assert f"--{option.name} is of one model" in capsys.readouterr().err
        return
    assert (code, len(started)) == (0, 2)
    given = command.make_context("sign", [*words, "--", str(PLANTED)]).params
    plain = command.make_context("sign", ["--", str(PLANTED)]).params
    for name, *arguments in started:
        assert name == "sign"
        passed = command.make_context("sign", arguments).params
        assert {n for n in passed if passed[n] != given[n]} <= REPLACED
        if option.name not in REPLACED:
            assert passed[option.name] == given[option.name] != plain[option.name]
        assert (passed["form"], passed["no_progress"], passed["jobs"]) == ("json", True, None)


def test_a_model_whose_name_looks_like_an_option(capsys):
    assert main(["sign", "--no-cache", "--", "--quiet", str(PLANTED)]) == 4
    printed = capsys.readouterr()
    assert printed.out.count("cf1-") == 1
    assert "ckpt: error: --quiet" in printed.err
