"""Buckets, and what else fsspec lists, by the rules of a directory."""

from __future__ import annotations

import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.registry.stores.files import content_of
from tests.support.stores import (
    CARD,
    PLANTED,
    POINTER,
    listed,
    listing,
    planted,
    problems,
    tiny_gguf,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def memory(tmp_path):
    import fsspec

    found = fsspec.filesystem("memory")
    found.store.clear()
    found.put(f"{planted(tmp_path / 'x')}/", "/bucket/models/org/x", recursive=True)
    yield found
    found.store.clear()


def test_the_same_models_as_in_a_directory(memory, tmp_path):
    gguf = tiny_gguf(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").unlink()
    (tmp_path / "tree").mkdir()
    (tmp_path / "x").rename(tmp_path / "tree" / "x")
    for name, content in {
        "q/a-Q4.gguf": gguf,
        "q/a-Q8.gguf": gguf,
        "q/README.md": CARD.encode(),
        "pointer/config.json": (PLANTED / "config.json").read_bytes(),
        "pointer/model.safetensors": POINTER,
        "odd/sha256-00": gguf,
        "conf/config.json": (PLANTED / "config.json").read_bytes(),
        "notes/notes.txt": b"hello",
    }.items():
        memory.pipe(f"/bucket/tree/{name}", content)
        file = tmp_path / "tree" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    memory.put(f"{tmp_path}/tree/x/", "/bucket/tree/x", recursive=True)
    here, there = listed(tmp_path / "tree"), listed("memory://bucket/tree")
    assert set(here) == set(there)
    for name, model in here.items():
        other = there[name]
        assert problems(other) == problems(model)
        assert (other.opens is None) == (model.opens is None)
        said = [[(f.name, f.role, f.bytes) for f in m.files] for m in (model, other)]
        assert said[0] == said[1]
        if other.opens is not None:
            assert str(other.opens).startswith("memory://bucket/tree/")
            sizes = [open_checkpoint(m.opens).architecture.sizes for m in (model, other)]
            assert sizes[0] == sizes[1]


def test_files_are_read_where_they_are(memory):
    found = listing("memory://bucket/models")
    (model,) = found.models
    assert (model.name, model.store) == ("org/x", "url")
    assert model.path == model.opens == "memory://bucket/models/org/x"
    card = next(file for file in model.files if file.role == "card")
    assert card.path is None
    assert card.url == "memory://bucket/models/org/x/README.md"
    assert content_of(card, 1000) == CARD.encode()
    assert card.changed != ""
    # The place, three folders, the beginnings of the configuration and of the weights.
    assert 0 < found.requests <= 8


def test_one_file(memory, tmp_path):
    memory.pipe("/bucket/a.gguf", tiny_gguf(tmp_path / "a.gguf"))
    (model,) = listing("memory://bucket/a.gguf").models
    assert (model.name, model.opens) == ("a.gguf", "memory://bucket/a.gguf")


def test_what_is_not_there(memory):
    with pytest.raises(UsageError, match="no such file, folder or bucket"):
        listing("memory://nowhere")
    assert listing("memory://bucket/models", offline=True).not_read == (
        ("memory://bucket/models", "a URL is not listed in offline mode"),
    )


def test_file_urls_are_directories(tmp_path):
    planted(tmp_path / "a b" / "m")
    (model,) = listing((tmp_path / "a b").as_uri()).models
    assert (model.name, model.store) == ("m", "directory")
