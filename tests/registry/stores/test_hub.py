"""Repositories and organisations on the Hub, and what offline is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.stores.files import content_of
from tests.support.hub import COMMIT, REPO, Hub, loopback_hub
from tests.support.stores import (
    CARD,
    PLANTED,
    hf_repository,
    listed,
    listing,
    problems,
    sha256,
    tiny_gguf,
)
from tools.zoo import ZOO

FILES = {file.name: file.read_bytes() for file in PLANTED.iterdir()} | {"README.md": CARD.encode()}


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[None]:
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with loopback_hub(monkeypatch, tmp_path / "cache") as served:
        yield served


@pytest.mark.parametrize("source", [REPO, f"hub:{REPO}", f"hub:{REPO}@main"])
def test_a_repository(hub, source):
    hub.add(FILES)
    found = listing(source)
    (model,) = found.models
    assert (model.name, model.store, model.commit) == (REPO, "hub", COMMIT)
    assert model.opens == f"{REPO}@{COMMIT}"
    assert not model.problems
    files = {file.name: file for file in model.files}
    assert {name: file.role for name, file in files.items()} == {
        "README.md": "card",
        "config.json": "configuration",
        "model.safetensors": "weights",
    }
    weights = files["model.safetensors"]
    assert weights.stated == f"sha256:{sha256(FILES['model.safetensors'])}"
    assert weights.path is None
    assert weights.bytes == len(FILES["model.safetensors"])
    # Nothing but the listing was asked for.
    assert found.requests == len(hub.requests("api")) == 1
    assert not hub.requests("resolve")
    assert open_checkpoint(model.opens).architecture.family.name == "llama"


def test_another_revision(hub):
    hub.add(FILES)
    hub.add(FILES, "2" * 40, "v1")
    (model,) = listing(f"{REPO}@v1").models
    assert (model.name, model.opens) == (f"{REPO}@v1", f"{REPO}@{'2' * 40}")


def test_a_repository_of_ggufs(hub, tmp_path):
    gguf = tiny_gguf(tmp_path / "a.gguf")
    hub.add({"a-Q4.gguf": gguf, "Q8/a-Q8.gguf": gguf, "README.md": CARD.encode()})
    found = listed(REPO)
    assert {name: model.opens for name, model in found.items()} == {
        f"{REPO}/a-Q4.gguf": f"{REPO}@{COMMIT}/a-Q4.gguf",
        f"{REPO}/Q8/a-Q8.gguf": f"{REPO}@{COMMIT}/Q8/a-Q8.gguf",
    }
    for model in found.values():
        assert {file.role for file in model.files} == {"card", "weights"}
        assert open_checkpoint(model.opens).architecture.source == "gguf"
    assert set(listed(f"{REPO}/a-Q4.gguf")) == {f"{REPO}/a-Q4.gguf"}


def test_a_model_in_a_folder_of_a_repository(hub):
    hub.add({**FILES, **{f"original/{name}": content for name, content in FILES.items()}})
    found = listed(REPO)
    assert set(found) == {REPO, f"{REPO}/original"}
    assert open_checkpoint(found[f"{REPO}/original"].opens).architecture.family.name == "llama"


def test_names_that_the_server_should_not_send(hub):
    hub.add({**FILES, "../evil.safetensors": b"x", "a//b.gguf": b"x"})
    (model,) = listing(REPO).models
    assert {file.name for file in model.files} == set(FILES)


def test_a_repository_without_weights(hub):
    hub.add({"README.md": CARD.encode()})
    (model,) = listing(REPO).models
    assert (model.name, model.opens) == (REPO, None)
    assert [kind for kind, _ in problems(model)] == ["not-fetched"]


def test_an_organisation(hub):
    hub.add(FILES)
    hub.others = ["org/gone", "other/x"]
    found = listing("hub:org/*")
    assert [model.name for model in found.models] == [REPO]
    ((what, why),) = found.not_read
    assert what == "org/gone"
    assert "no such file, directory or repository" in why
    assert found.requests == len(hub.requests("api")) + len(hub.requests("list")) == 3


def test_an_organisation_without_models(hub):
    assert listing("hub:nobody/*").not_read == (("hub:nobody/*", "the Hub lists no models of it"),)


def test_a_busy_server_is_asked_again(hub):
    hub.add(FILES)
    hub.fail("list", status=503)
    hub.fail("api", status=429)
    assert [model.name for model in listing("hub:org/*").models] == [REPO]


def test_a_name_that_may_be_a_path_and_is_nothing(hub):
    with pytest.raises(UsageError, match="no such file, directory or repository"):
        listing("org/nothing")
    assert [what for what, _ in listing("hub:org/nothing").not_read] == ["org/nothing"]
    with pytest.raises(UsageError, match="no name of a repository"):
        listing("hub:../..")


def test_a_server_that_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ((_, why),) = listing(f"hub:{REPO}").not_read
    assert "the Hub cannot be asked" in why


def test_offline_is_the_cache(hub, tmp_path):
    for source in ("org/name", "hub:org/name", "hub:org/*"):
        assert len(listing(source, offline=True).not_read) == 1
    hf_repository(tmp_path / "cache" / "hf", FILES)
    hf_repository(tmp_path / "cache" / "hf", FILES, commit="b" * 40, ref="v1")
    assert set(listed("org/name", offline=True)) == {"org/name"}
    assert set(listed("hub:org/name@v1", offline=True)) == {"org/name@v1"}
    assert set(listed("hub:org/*", offline=True)) == {"org/name", "org/name@v1"}
    assert not hub.requests("api")


def test_content_of_a_card(hub):
    hub.add(FILES)
    (model,) = listing(REPO).models
    card = next(file for file in model.files if file.role == "card")
    assert content_of(card, 1000) == CARD.encode()


def test_a_sketch_takes_few_requests(hub):
    hub.add(ZOO / "seed0")
    here = sketch(open_checkpoint(ZOO / "seed0"))
    there = sketch(open_checkpoint(REPO))
    assert there.found == here.found
    answered = [r for r in hub.log if r.status == 206 and "config.json" not in r.path]
    assert there.requests == len(answered)
    # Header in two, tokenizer, tokens; norm, values and output of four layers.
    assert there.requests <= 4 + 3 * 4
    # What is in the cache is not asked for again.
    assert sketch(open_checkpoint(REPO), heads=False).requests == 0


def test_tokens_alone_are_one_range(hub):
    hub.add(ZOO / "seed0")
    found = sketch(open_checkpoint(REPO), heads=False)
    assert found.requests == 4
    assert hub.sent() < 0.5 * (ZOO / "seed0" / "model.safetensors").stat().st_size
