"""The cache of huggingface_hub, made as it makes it and as it should not be."""

from __future__ import annotations

import os
import shutil

import pytest
from huggingface_hub import constants

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.registry.stores.digests import verify_digest
from tests.support.stores import (
    CARD,
    COMMIT,
    PLANTED,
    git_blob,
    hf_repository,
    listed,
    listing,
    planted,
    problems,
    sha256,
    tiny_gguf,
)

FILES = {file.name: file.read_bytes() for file in PLANTED.iterdir()} | {
    "README.md": CARD.encode(),
    "1_Pooling/config.json": b"{}",
}
OTHER = "b" * 40
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def source(cache):
    return f"huggingface:{cache}"


def test_a_snapshot_is_a_model_with_stated_digests(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    (model,) = listing(source(tmp_path)).models
    assert (model.name, model.store, model.commit) == ("org/name", "huggingface", COMMIT)
    assert model.opens == str(snapshot)
    assert not model.problems
    stated = {file.name: file.stated for file in model.files}
    assert stated == {
        name: f"sha256:{sha256(content)}" if "safetensors" in name else f"git:{git_blob(content)}"
        for name, content in FILES.items()
    }
    assert all(verify_digest(file)[1] for file in model.files)
    assert all(file.path.parent.name == "blobs" for file in model.files)
    assert open_checkpoint(model.opens).architecture.family.name == "llama"


def test_the_same_cache_is_recognised_wherever_it_is_met(tmp_path):
    hf_repository(tmp_path / "a" / "hub", FILES)
    expected = listed(source(tmp_path / "a" / "hub"))
    for place in (tmp_path, tmp_path / "a" / "hub", tmp_path / "a/hub/models--org--name"):
        assert listed(place) == expected


def test_the_default_place_is_the_library_s(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match="no store of huggingface") as caught:
        listing("huggingface:")
    assert "huggingface:DIR, or set HF_HUB_CACHE" in str(caught.value)
    hf_repository(tmp_path / "hub", FILES)
    assert set(listed("huggingface:")) == {"org/name"}


def test_names_of_other_commits(tmp_path):
    hf_repository(tmp_path, FILES)
    hf_repository(tmp_path, FILES, commit=OTHER, ref="v1.0")
    hf_repository(tmp_path, FILES, commit="c" * 40, ref=None)
    (tmp_path / "models--org--name" / "refs" / "pr").mkdir()
    (tmp_path / "models--org--name" / "refs" / "pr" / "1").write_text(OTHER)
    found = listed(source(tmp_path))
    assert {name: model.commit for name, model in found.items()} == {
        "org/name": COMMIT,
        "org/name@pr/1": OTHER,
        "org/name@cccccccccccc": "c" * 40,
    }


def test_a_repository_of_ggufs(tmp_path):
    gguf = tiny_gguf(tmp_path / "x.gguf")
    hf_repository(tmp_path / "c", {"Q4/a.gguf": gguf, "Q8/b.gguf": gguf, "README.md": b"# x"})
    found = listed(source(tmp_path / "c"))
    assert set(found) == {"org/name/Q4/a.gguf", "org/name/Q8/b.gguf"}
    assert {file.role for file in found["org/name/Q4/a.gguf"].files} == {"card", "weights"}


def test_the_layout_without_links(tmp_path):
    planted(tmp_path / "models--org--name" / "snapshots" / COMMIT)
    (model,) = listing(source(tmp_path)).models
    assert model.name == "org/name@aaaaaaaaaaaa"
    assert model.opens is not None
    assert {file.stated for file in model.files} == {None}


def test_what_was_not_fetched(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    blob = (snapshot / "model.safetensors").resolve()
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    (model,) = listing(source(tmp_path)).models
    assert model.opens is None
    assert problems(model) == [
        ("not-fetched", "model.safetensors"),
        ("not-fetched", f"blobs/{blob.name}.incomplete"),
    ]


@pytest.mark.parametrize("files", [{}, {"README.md": b"x"}, {"config.json": FILES["config.json"]}])
def test_snapshots_without_weights(tmp_path, files):
    hf_repository(tmp_path, files)
    (model,) = listing(source(tmp_path)).models
    assert (model.name, model.opens) == ("org/name", None)
    assert [problem.kind for problem in model.problems] == ["not-fetched"]


def test_a_repository_without_snapshots(tmp_path):
    (tmp_path / "models--org--name" / "blobs").mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs" / "x.incomplete").write_bytes(b"x")
    (model,) = listing(source(tmp_path)).models
    assert model.opens is None
    assert problems(model) == [("not-fetched", ""), ("not-fetched", "blobs/x.incomplete")]


def test_links_may_lead_to_the_own_blobs_only(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    shutil.copytree(tmp_path / "models--org--name", tmp_path / "models--org--b", symlinks=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    for name, target in (
        ("a.json", secret),
        ("b.json", tmp_path / "models--org--b" / "blobs" / git_blob(CARD.encode())),
        ("c.json", "/etc/passwd"),
        ("d.json", tmp_path / "models--org--name" / "refs" / "main"),
        ("e.json", "e.json"),
    ):
        (snapshot / name).symlink_to(target)
    model = listed(source(tmp_path))["org/name"]
    assert problems(model) == [("link-out", f"{letter}.json") for letter in "abcde"]
    assert model.opens is not None


def test_a_pipe_in_place_of_a_ref_or_a_blob(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    repository = tmp_path / "models--org--name"
    os.mkfifo(repository / "refs" / "v1")
    (repository / "refs" / "v2").write_text("../../etc/passwd")
    blob = (snapshot / "model.safetensors").resolve()
    blob.unlink()
    os.mkfifo(blob)
    found = listing(source(tmp_path))
    assert [problems(model) for model in found.models] == [[("special-file", "model.safetensors")]]
    assert [why for _, why in found.not_read] == ["this is no file", "this names no commit"]


def test_the_digest_of_nothing_is_no_digest(tmp_path):
    files = {**FILES, "training_args.bin": b"", "empty.json": b""}
    hf_repository(tmp_path, files)
    (model,) = listing(source(tmp_path)).models
    stated = {file.name: file.stated for file in model.files}
    assert stated["training_args.bin"] is None
    assert stated["empty.json"] is None
    assert sha256(b"") == EMPTY


def test_content_unlike_the_blob_s_name_is_found_by_reading(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    with (snapshot / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    (model,) = listing(source(tmp_path)).models
    matches = {file.name: verify_digest(file)[1] for file in model.files}
    assert [name for name, same in matches.items() if not same] == ["model.safetensors"]


def test_one_snapshot_or_a_file_of_it(tmp_path):
    snapshot = hf_repository(tmp_path, FILES)
    hf_repository(tmp_path, FILES, commit=OTHER, ref="v1.0")
    (model,) = listing(snapshot).models
    assert (model.name, model.commit) == ("org/name", COMMIT)
    (model,) = listing(snapshot / "model.safetensors").models
    assert not model.problems
    assert {"README.md", "config.json"} <= {file.name for file in model.files}


@pytest.mark.parametrize("name", ["snapshots", "blobs"])
def test_folders_that_lead_out_of_the_cache(tmp_path, name):
    hf_repository(tmp_path / "c", FILES)
    folder = tmp_path / "c" / "models--org--name" / name
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    found = listing(tmp_path / "c")
    assert all(model.opens is None for model in found.models)
    told = [problem.kind for model in found.models for problem in model.problems]
    assert "link-out" in told or [why for _, why in found.not_read] == [
        "the link leads out of the cache"
    ]


def test_what_the_library_notes_is_passed_over(tmp_path):
    hf_repository(tmp_path, FILES)
    missing = tmp_path / "models--org--name" / ".no_exist" / COMMIT
    missing.mkdir(parents=True)
    (missing / "adapter_config.json").touch()
    (tmp_path / ".locks" / "models--org--name").mkdir(parents=True)
    (tmp_path / "datasets--org--d" / "snapshots").mkdir(parents=True)
    found = listing(source(tmp_path))
    assert [model.name for model in found.models] == ["org/name"]
    assert not found.not_read
