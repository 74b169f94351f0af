"""LM Studio's folder."""

from __future__ import annotations

import json

import pytest

from ckptforensics.errors import UsageError
from tests.support.stores import listed, listing, tiny_gguf


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def model(folder):
    folder.mkdir(parents=True)
    tiny_gguf(folder / "name-Q4.gguf")
    return folder


@pytest.mark.parametrize("place", [".lmstudio", ".cache/lm-studio"])
def test_default_places(home, place):
    model(home / place / "models" / "publisher" / "name")
    (found,) = listing("lmstudio:").models
    assert found.name == "publisher/name/name-Q4.gguf"
    assert found.store == "lmstudio"
    assert found.opens is not None


def test_places_that_its_files_name(home):
    model(home / "elsewhere" / "publisher" / "name")
    (home / "studio").mkdir()
    (home / ".lmstudio-home-pointer").write_text(str(home / "studio"))
    settings = {"downloadsFolder": str(home / "elsewhere")}
    (home / "studio" / "settings.json").write_text(json.dumps(settings))
    assert set(listed("lmstudio:")) == {"publisher/name/name-Q4.gguf"}


def test_no_store(home):
    with pytest.raises(UsageError, match="lmstudio:DIR"):
        listing("lmstudio:")
