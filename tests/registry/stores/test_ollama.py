"""Ollama's store: manifests, blobs, and what neither should be trusted with."""

from __future__ import annotations

import json
import os

import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.findings import sign
from ckptforensics.registry.stores.digests import verify_digest
from tests.support.containers import run
from tests.support.stores import (
    POINTER,
    listed,
    listing,
    ollama_model,
    problems,
    sha256,
    tiny_gguf,
    write_manifest,
)

TEMPLATE = b"{{ .Prompt }}"
HOST = "registry.ollama.ai/library"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf")


def store(tmp_path):
    return f"ollama:{tmp_path}"


def test_a_model_with_every_layer(tmp_path, gguf):
    layers = {"model": gguf, "template": TEMPLATE, "params": b"{}", "system": b"Be kind."}
    ollama_model(tmp_path, {**layers, "license": b"MIT", "projector": b"x"})
    (model,) = listing(store(tmp_path)).models
    assert (model.name, model.store) == ("llama3:latest", "ollama")
    assert model.path == str(tmp_path / "manifests" / HOST / "llama3" / "latest")
    assert model.opens == str(tmp_path / "blobs" / f"sha256-{sha256(gguf)}")
    assert not model.problems
    assert {file.name: file.role for file in model.files} == {
        "manifest": "other",
        "config": "configuration",
        "model": "weights",
        "template": "tokenizer",
        "params": "configuration",
        "system": "other",
        "license": "other",
        "projector": "other",
    }
    stated = {file.name: file.stated for file in model.files}
    assert stated["template"] == f"sha256:{sha256(TEMPLATE)}"
    assert [verify_digest(file)[1] for file in model.files if file.stated] == [True] * 7
    assert open_checkpoint(model.opens).architecture.source == "gguf"


def test_a_blob_without_a_suffix_is_signed(tmp_path, gguf, capsys):
    """By its content; the same result as under a name that tells it."""
    ollama_model(tmp_path, {"model": gguf})
    (tmp_path / "x.gguf").write_bytes(gguf)
    blob = tmp_path / "blobs" / f"sha256-{sha256(gguf)}"
    assert sign(blob).document.fingerprint == sign(tmp_path / "x.gguf").document.fingerprint
    assert run(capsys, "sign", blob, "--no-cache").code == 0


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        (f"{HOST}/llama3/8b", "llama3:8b"),
        ("registry.ollama.ai/someone/model/latest", "someone/model:latest"),
        ("hf.co/org/name/Q4_K_M", "hf.co/org/name:Q4_K_M"),
        ("localhost:5000/library/m/latest", "localhost:5000/library/m:latest"),
    ],
)
def test_names_are_as_ollama_shows_them(tmp_path, gguf, manifest, name):
    ollama_model(tmp_path, {"model": gguf}, name=manifest)
    assert set(listed(store(tmp_path))) == {name}


def test_default_place(tmp_path, gguf, monkeypatch):
    ollama_model(tmp_path / "a", {"model": gguf})
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "a"))
    assert set(listed("ollama:")) == {"llama3:latest"}
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ollama_model(tmp_path / "home/.ollama/models", {"model": gguf}, name=f"{HOST}/other/latest")
    assert set(listed("ollama:")) == {"other:latest"}
    assert set(listed(tmp_path / "home")) == {"other:latest"}


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../etc/passwd",
        "sha256-" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "g" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha512:" + "0" * 64,
        "../" + "sha256:" + "0" * 64,
        "",
        None,
        7,
    ],
)
def test_a_digest_that_is_none(tmp_path, gguf, digest):
    manifest = ollama_model(tmp_path, {"model": gguf})
    (tmp_path / "blobs" / f"sha256-{sha256(gguf)}").unlink()
    manifest["layers"][0]["digest"] = digest
    write_manifest(tmp_path, f"{HOST}/llama3/latest", manifest)
    (model,) = listing(store(tmp_path)).models
    assert model.opens is None
    assert problems(model) == [("digest", "model")]
    assert model.problems[0].message.isprintable()


def test_spellings_of_a_digest(tmp_path, gguf):
    manifest = ollama_model(tmp_path, {"model": gguf})
    manifest["layers"][0]["digest"] = f"sha256-{sha256(gguf).upper()}"
    write_manifest(tmp_path, f"{HOST}/llama3/latest", manifest)
    assert listed(store(tmp_path))["llama3:latest"].opens is not None
    blobs = tmp_path / "blobs"
    (blobs / f"sha256-{sha256(gguf)}").rename(blobs / f"sha256:{sha256(gguf)}")
    (model,) = listing(store(tmp_path)).models
    assert model.opens == str(blobs / f"sha256:{sha256(gguf)}")


def test_missing_and_partial_blobs(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf, "license": b"MIT"})
    blobs = tmp_path / "blobs"
    (blobs / f"sha256-{sha256(b'MIT')}").unlink()
    part = blobs / f"sha256-{sha256(gguf)}"
    part.rename(part.with_name(part.name + "-partial"))
    part.with_name(part.name + "-partial-0").write_text("{}")
    (blobs / ("sha256-" + "1" * 64 + "-partial")).write_bytes(b"x")
    found = listing(store(tmp_path))
    (model,) = found.models
    assert model.opens is None
    assert {(p.file, p.message) for p in model.problems} == {
        ("model", "only a part of its blob was downloaded"),
        ("license", "its blob is missing"),
    }
    assert [why for _, why in found.not_read] == ["a download that was not finished"]


def test_a_size_that_the_manifest_does_not_say(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf, "license": b"MIT"})
    blobs = tmp_path / "blobs"
    (blobs / f"sha256-{sha256(gguf)}").write_bytes(gguf[:-10])
    (blobs / f"sha256-{sha256(b'MIT')}").write_bytes(b"MIT and more")
    (model,) = listing(store(tmp_path)).models
    assert model.opens is None
    assert set(problems(model)) == {("not-fetched", "model"), ("digest", "license")}


def test_tensors_that_are_one_blob_each(tmp_path):
    manifest = ollama_model(tmp_path, {"tensor": b"\1" * 8, "json": b"{}"})
    manifest["layers"][0]["name"] = "model.layers.0.weight"
    manifest["layers"][1]["name"] = "tokenizer.json"
    write_manifest(tmp_path, f"{HOST}/llama3/latest", manifest)
    (model,) = listing(store(tmp_path)).models
    assert model.opens is None
    assert problems(model) == [("layout", "manifest")]
    assert "each of its 1 tensors is a blob of its own" in model.problems[0].message
    assert {file.name: file.role for file in model.files} == {
        "manifest": "other",
        "config": "configuration",
        "model.layers.0.weight": "weights",
        "tokenizer.json": "tokenizer",
    }


def test_models_that_are_served_elsewhere(tmp_path):
    about = {"remote_host": "https://ollama.com:443", "remote_model": "big"}
    ollama_model(tmp_path, {}, config=about)
    (model,) = listing(store(tmp_path)).models
    assert model.opens is None
    assert problems(model) == [("remote", "config")]
    assert "https://ollama.com:443" in model.problems[0].message


def test_an_adapter_is_not_what_is_read(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf, "adapter": b"GGUF"})
    (model,) = listing(store(tmp_path)).models
    assert model.opens is not None
    assert problems(model) == [("layout", "manifest")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"layers": 3}',
        '{"layers": [1]}',
        '{"layers": [], "layers": []}',
        '{"layers": null}',
        "[" * 100_000,
        '{"a": "\\ud800"}',
    ],
)
def test_manifests_that_are_none(tmp_path, text):
    path = write_manifest(tmp_path, f"{HOST}/llama3/latest", {})
    path.write_text(text)
    (tmp_path / "blobs").mkdir()
    (model,) = listing(store(tmp_path)).models
    assert (model.name, model.opens) == ("llama3:latest", None)
    assert problems(model) == [("layout", "manifest")]


def test_pipes_and_links_in_the_store(tmp_path, gguf):
    manifest = ollama_model(tmp_path, {"model": gguf})
    secret = tmp_path.parent / "secret.json"
    secret.write_text("{}")
    os.mkfifo(tmp_path / "manifests" / HOST / "llama3" / "pipe")
    (tmp_path / "manifests" / HOST / "llama3" / "out").symlink_to(secret)
    blob = tmp_path / "blobs" / f"sha256-{sha256(gguf)}"
    blob.unlink()
    blob.symlink_to(secret)
    config = tmp_path / "blobs" / manifest["config"]["digest"].replace(":", "-")
    config.unlink()
    os.mkfifo(config)
    found = listed(store(tmp_path))
    assert {name: problems(model) for name, model in found.items()} == {
        "llama3:latest": [("special-file", "config"), ("link-out", "model")],
        "llama3:pipe": [("special-file", "manifest")],
        "llama3:out": [("link-out", "manifest")],
    }
    assert all(model.opens is None for model in found.values())


def test_blobs_that_no_manifest_names(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf})
    manifests = tmp_path / "manifests" / HOST / "llama3" / "latest"
    config = json.loads(manifests.read_text())["config"]["digest"]
    manifests.unlink()
    (tmp_path / "blobs" / f"sha256-{'2' * 64}").write_bytes(POINTER)
    (tmp_path / "blobs" / "x").write_bytes(gguf)
    found = listing(store(tmp_path))
    by_name = {model.name: model for model in found.models}
    assert set(by_name) == {f"sha256:{sha256(gguf)}", f"sha256:{'2' * 64}"}
    model = by_name[f"sha256:{sha256(gguf)}"]
    assert open_checkpoint(model.opens).architecture.source == "gguf"
    assert model.files[0].stated == f"sha256:{sha256(gguf)}"
    assert problems(by_name[f"sha256:{'2' * 64}"]) == [("not-fetched", f"sha256-{'2' * 64}")]
    assert dict(found.not_read) == {
        str(tmp_path / "blobs" / config.replace(":", "-")): (
            "no manifest names this blob, and it holds no weights"
        ),
        str(tmp_path / "blobs" / "x"): "this is no blob's name",
    }


def test_one_blob_may_be_of_several_models(tmp_path, gguf):
    for tag in ("a", "b"):
        ollama_model(tmp_path, {"model": gguf}, name=f"{HOST}/llama3/{tag}")
    found = listed(store(tmp_path))
    assert set(found) == {"llama3:a", "llama3:b"}
    assert len({model.opens for model in found.values()}) == 1


@pytest.mark.parametrize("name", ["manifests", "blobs"])
def test_folders_that_lead_out_of_the_store(tmp_path, gguf, name):
    ollama_model(tmp_path / "s", {"model": gguf})
    (tmp_path / "s" / name).rename(tmp_path / "outside")
    (tmp_path / "s" / name).symlink_to(tmp_path / "outside")
    found = listing(tmp_path / "s")
    assert not found.models
    assert found.not_read == ((str(tmp_path / "s" / name), "the link leads out of the store"),)


def test_wrong_content_under_a_right_name(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf})
    blob = tmp_path / "blobs" / f"sha256-{sha256(gguf)}"
    blob.write_bytes(gguf[:-1] + b"\x7f")
    (model,) = listing(store(tmp_path)).models
    assert not model.problems
    weights = next(file for file in model.files if file.role == "weights")
    assert verify_digest(weights) == (sha256(gguf[:-1] + b"\x7f"), False)


def test_the_digest_of_nothing_is_no_digest(tmp_path, gguf):
    ollama_model(tmp_path, {"model": gguf, "system": b""})
    (model,) = listing(store(tmp_path)).models
    assert {file.name: file.stated for file in model.files}["system"] is None
