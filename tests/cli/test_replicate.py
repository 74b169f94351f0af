"""`ckpt replicate` as a user runs it: names, what the Hub's cache holds, and the pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import ckpt

IDS = ("--token-ids", ",".join(str(7 * i % 60) for i in range(24)), "--window", "12", "-q")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The Hub's cache, empty."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, name: str, model: Path) -> None:
    """A model as the Hub's client keeps one that was downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, repository / "snapshots" / COMMIT)


def test_whatever_is_available_gets_its_page(planted, cache, tmp_path):
    put(cache, "meta-llama/Llama-2-13b-hf", planted)
    pages = tmp_path / "new" / "pages"
    done = ckpt("replicate", "--all-available", "--offline", *IDS, "--pages", pages)
    assert done.returncode == 0, done.stderr
    assert "of LLaMA2-13B, published" in done.stdout
    assert sorted(file.name for file in pages.iterdir()) == ["LLaMA2-13B.html", "LLaMA2-13B.json"]
    assert json.loads((pages / "LLaMA2-13B.json").read_text())["paths"]["kind"] == "paths"
    assert (pages / "LLaMA2-13B.html").read_text().count("<svg") == 6


def test_a_published_name_is_a_model_of_the_hub(planted, cache):
    put(cache, "meta-llama/Llama-2-13b-hf", planted)
    done = ckpt("replicate", "llama2-13b", "--offline", "--numbers-only", *IDS)
    assert done.returncode == 0, done.stderr
    assert "of LLaMA2-13B, published" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 4, "name a model, or give --all-available"),
        (("fixtures/planted", "--all-available"), 4, "name a model, or give --all-available"),
        (("--all-available", "-o", "x.json"), 4, "--pages, not with -o"),
        (("--all-available", "--offline"), 3, "no model with published figures is in the cache"),
        (("fixtures/planted",), 4, "name one with --as"),
        (("fixtures/planted", "--as", "x"), 4, "nothing is published of 'x'"),
    ],
)
def test_what_cannot_be_meant(words, code, said, cache):
    done = ckpt("replicate", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
