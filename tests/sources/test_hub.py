"""Repositories on the Hub, by a loopback server: ranges, failures, resuming, caches, access."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

import ckptforensics
from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import (
    CkptError,
    FormatError,
    NothingAnalysable,
    OutputError,
    UsageError,
    exit_code,
)
from ckptforensics.findings.measure import ROLLOUT_TOKENS
from ckptforensics.layers import load_block
from ckptforensics.sources import Transfer, is_hub_id, mirror, retry
from tests.support.containers import LLAMA_CONFIG, Model, llama_arrays, run, write_llama_gguf
from tests.support.hub import COMMIT, REPO, Hub

OTHER = "2" * 40
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model(tmp_path: Path, hub: Hub) -> Model:
    """A small LLaMA, on the Hub too."""
    made = wide_llama(tmp_path / "model", vocabulary=1000)
    hub.add(made.path)
    return made


def wide_llama(path: Path, *, vocabulary: int = 3000) -> Model:
    """Most bytes are embeddings, as in small models, and no tensor but a norm is below the gap."""
    arrays = llama_arrays(d=64, ffn=160, layers=3, vocabulary=vocabulary)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][::-1].copy()
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 160}
    return Model(path, arrays, {**LLAMA_CONFIG, **sizes, "vocab_size": vocabulary})


def mirror_of(tmp_path: Path, commit: str = COMMIT) -> Path:
    return tmp_path / "cache" / "xdg" / "ckptforensics" / "hub" / "org--tiny" / commit


def equal_signatures(a: Any, b: Any) -> bool:
    names = ("u", "v", "sigma", "residual")
    same = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)
    return same and a.document.fingerprint == b.document.fingerprint


def read(checkpoint: Checkpoint, name: str = DOWN) -> np.ndarray:
    return checkpoint.store.read(name)


def needed_bytes(path: Path) -> int:
    """Headers, the tensors of all blocks, and the rows of the tokens that are rolled out."""
    checkpoint = open_checkpoint(path)
    names = {
        name
        for plan in checkpoint.architecture.layers
        for ref in plan.refs.values()
        for name in (ref.weight, ref.bias)
        if name is not None
    }
    stored = sum(checkpoint.store.info(name).nbytes for name in names)
    headers = sum(
        8 + int.from_bytes(file.read_bytes()[:8], "little") for file in checkpoint.source.files
    )
    row = checkpoint.store.info("model.embed_tokens.weight")
    return stored + headers + (ROLLOUT_TOKENS + 1) * row.nbytes // row.shape[0]


# What is transferred


@pytest.mark.parametrize("shards", [1, 3])
def test_sign_transfers_what_it_needs(hub, tmp_path, shards):
    local = wide_llama(tmp_path / "model")
    if shards > 1:
        local.shard(shards)
    hub.add(local.path)
    remote = ckptforensics.sign(REPO)
    needed = needed_bytes(local.path)
    whole = sum(f.stat().st_size for f in local.path.glob("*.safetensors"))
    assert needed < whole / 2
    assert needed * 0.99 <= hub.sent() <= 1.02 * needed
    assert all(r.status == 206 for r in hub.requests("cdn"))
    assert equal_signatures(remote, ckptforensics.sign(local.path))
    assert remote.document.model.commit == COMMIT
    assert remote.document.model.path == REPO

    moved = hub.sent()
    hub.forget()
    again = open_checkpoint(REPO)
    assert equal_signatures(ckptforensics.sign(again), remote)
    assert hub.sent() == 0
    assert not hub.requests("resolve")
    assert again.source.remote.transfer == Transfer(0, whole)
    assert moved < whole / 2


def test_opening_transfers_headers_only(hub, model):
    checkpoint = open_checkpoint(REPO)
    length = int.from_bytes(model.weights.read_bytes()[:8], "little")
    assert hub.sent() == 8 + length == checkpoint.source.remote.transfer.fetched
    assert dict(checkpoint.source.config) == json.loads((model.path / "config.json").read_text())


def test_files_that_are_no_mirrors_are_left_alone(hub, model):
    """Such as the adapter's, of an adapter on a remote base."""
    remote = open_checkpoint(REPO).source.remote
    hub.forget()
    remote.fetch({model.weights: [(0, 100)]})
    assert not hub.log


def test_tensors_side_by_side_are_asked_for_together(hub, model):
    checkpoint = open_checkpoint(REPO)
    hub.forget()
    load_block(checkpoint, 2)
    assert len(hub.requests("cdn")) <= 4
    # Where the Hub redirects to is known by now.
    assert not hub.requests("resolve")


def test_mirror_takes_the_room_of_what_was_read(hub, model, tmp_path):
    read(open_checkpoint(REPO))
    mirror = mirror_of(tmp_path) / "model.safetensors"
    assert mirror.stat().st_size == model.weights.stat().st_size
    assert mirror.stat().st_blocks * 512 < mirror.stat().st_size / 4


def test_gguf(hub, tmp_path):
    file = write_llama_gguf(tmp_path / "tiny.gguf")
    hub.add({"tiny.gguf": file.read_bytes()})
    expected = ckptforensics.sign(file)
    assert equal_signatures(ckptforensics.sign(REPO), expected)
    assert equal_signatures(ckptforensics.sign(f"{REPO}/tiny.gguf"), expected)


def test_gguf_header_is_read_on_until_it_is_whole(hub, tmp_path, monkeypatch):
    """Zeros in place of what is not there yet parse at some lengths of what is there."""
    file = write_llama_gguf(tmp_path / "tiny.gguf")
    hub.add({"tiny.gguf": file.read_bytes()})
    expected = ckptforensics.open_checkpoint(file).store
    first = min(info.offset for info in expected.tensors.values())
    for step in [24, 100, *range(first - 60, first, 3)]:
        monkeypatch.setattr("ckptforensics.tensors.files._GGUF_SHORTEST_STEP", step)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"step-{step}"))
        hub.forget()
        found = ckptforensics.open_checkpoint(REPO).store
        assert hub.sent() < 2 * first + 2
        assert {n: (t.offset, t.shape) for n, t in found.tensors.items()} == {
            n: (t.offset, t.shape) for n, t in expected.tensors.items()
        }
        assert found.containers[0].header_sha256 == expected.containers[0].header_sha256


def test_one_gguf_of_several(hub, tmp_path):
    data = write_llama_gguf(tmp_path / "a.gguf").read_bytes()
    hub.add({"a.gguf": data, "b.gguf": data})
    with pytest.raises(UsageError, match=r"several models: a\.gguf, b\.gguf") as caught:
        open_checkpoint(REPO)
    assert caught.value.path == Path(REPO)
    found = open_checkpoint(f"{REPO}@main/b.gguf")
    assert [f.name for f in found.source.files] == ["b.gguf"]
    with pytest.raises(UsageError, match=r"has no file 'c\.gguf'"):
        open_checkpoint(f"{REPO}/c.gguf")


def test_digest_is_what_the_hub_states(hub, model, tmp_path):
    from ckptforensics.sources import sha256_of_file

    found = ckptforensics.inspect(REPO, digest=True).model.files[0].sha256
    assert found == sha256_of_file(model.weights)
    assert hub.sent() < model.weights.stat().st_size / 4


def test_digest_of_a_file_the_hub_states_none_of(hub, model, monkeypatch):
    from ckptforensics.sources import sha256_of_file

    monkeypatch.setattr("tests.support.hub._large", lambda name: False)
    found = ckptforensics.inspect(REPO, digest=True).model.files[0].sha256
    assert found == sha256_of_file(model.weights)


# The commit


def test_commit_is_resolved_once(hub, model, tmp_path):
    """The branch moves as soon as it was asked for."""
    moved = dict.fromkeys(hub.commits[COMMIT], b"{}")
    hub.add(moved, OTHER, "later")
    hub.moves["main"] = OTHER
    checkpoint = open_checkpoint(REPO)
    assert hub.branches["main"] == OTHER
    assert np.array_equal(read(checkpoint), read(open_checkpoint(model.path)))
    assert checkpoint.source.commit == COMMIT
    assert len(hub.requests("api")) == 1
    assert all(COMMIT in r.path for r in hub.requests("resolve"))


def test_revision(hub, model, tmp_path):
    other = Model.llama(tmp_path / "other")
    hub.add(other.path, OTHER, "refs/pr/1")
    assert open_checkpoint(f"{REPO}@refs/pr/1").architecture.sizes.hidden_size == 8
    assert open_checkpoint(f"{REPO}@{OTHER}").source.commit == OTHER
    assert open_checkpoint(f"{REPO}@{COMMIT}").architecture.sizes.hidden_size == 64
    assert open_checkpoint(REPO).source.commit == COMMIT


# Failures of the server


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}},
        {"status": 500},
        {"status": 503},
    ],
    ids=["429", "429-date", "500", "503"],
)
@pytest.mark.parametrize("route", ["api", "resolve", "cdn"])
def test_a_busy_server_is_asked_again(hub, model, route, fault):
    hub.fail(route, times=3, **fault)
    assert np.array_equal(read(open_checkpoint(REPO)), read(open_checkpoint(model.path)))
    assert not [f for f in hub.faults if f.times]


def test_retry_after_is_respected(hub, model, monkeypatch):
    waited = []
    monkeypatch.setattr(retry, "_pause", lambda stop, seconds: waited.append(seconds))
    for route in ("api", "cdn"):
        hub.fail(route, status=429, headers={"Retry-After": "7"})
        hub.fail(route, status=429, headers={"Retry-After": "86400"})
    open_checkpoint(REPO)
    assert waited == [7, 300, 7, 300]


@pytest.mark.parametrize("route", ["api", "resolve", "cdn"])
def test_endless_failure_is_given_up(hub, model, route):
    hub.fail(route, times=1000, status=503)
    with pytest.raises(CkptError, match="503") as caught:
        open_checkpoint(REPO)
    assert exit_code(caught.value) in (2, 4)
    assert len([r for r in hub.requests(route) if r.status == 503]) == retry.ATTEMPTS


def test_cut_connection_is_resumed_where_it_broke(hub, model):
    checkpoint = open_checkpoint(REPO)
    hub.forget()
    hub.fail("cdn", times=2, cut=1000)
    assert np.array_equal(read(checkpoint), read(open_checkpoint(model.path)))
    nbytes = checkpoint.store.info(DOWN).nbytes
    assert hub.sent() == nbytes
    assert [r.sent for r in hub.requests("cdn")] == [1000, 1000, nbytes - 2000]


def test_progress_restores_patience(hub, model):
    """More cuts than attempts, each after some bytes."""
    checkpoint = open_checkpoint(REPO)
    hub.fail("cdn", times=3 * retry.ATTEMPTS, cut=500)
    assert np.array_equal(read(checkpoint), read(open_checkpoint(model.path)))


def test_connections_cut_without_a_byte_are_given_up(hub, model):
    checkpoint = open_checkpoint(REPO)
    hub.fail("cdn", times=1000, cut=0)
    with pytest.raises(FormatError, match="could not be read in 6 attempts"):
        read(checkpoint)


def test_interrupted_run_is_resumed(hub, model, tmp_path):
    reference = ckptforensics.sign(model.path)
    checkpoint = open_checkpoint(REPO)
    load_block(checkpoint, 1)
    before = hub.sent()
    hub.fail("cdn", cut=3000)
    hub.fail("cdn", times=1000, status=503)
    with pytest.raises(FormatError, match="what was read is kept"):
        ckptforensics.sign(checkpoint)
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join()
    hub.faults.clear()
    assert hub.sent() - before >= 250
    before = hub.sent()
    fresh = open_checkpoint(REPO)
    assert equal_signatures(ckptforensics.sign(fresh), reference)
    assert fresh.source.remote.transfer.fetched == hub.sent() - before
    # Both runs together transfer what one needs; the answers 503 have a body of two bytes.
    assert hub.sent() <= 1.02 * needed_bytes(model.path)


def test_file_that_changes_between_ranges(hub, model, tmp_path):
    checkpoint = open_checkpoint(REPO)
    hub.fail("cdn", headers={"ETag": '"other"'})
    with pytest.raises(FormatError, match="changed on the server"):
        read(checkpoint)
    # Nothing of the old file is used again.
    hub.forget()
    assert np.array_equal(read(open_checkpoint(REPO)), read(open_checkpoint(model.path)))
    assert hub.sent() > checkpoint.store.info(DOWN).nbytes


def test_file_that_changes_between_runs(hub, model):
    open_checkpoint(REPO)
    hub.fail("cdn", times=1000, headers={"ETag": '"other"'})
    checkpoint = open_checkpoint(REPO)
    with pytest.raises(FormatError, match="changed on the server"):
        read(checkpoint)


def test_size_that_changes(hub, model):
    checkpoint = open_checkpoint(REPO)
    info = checkpoint.store.info(DOWN)
    last = info.offset + info.nbytes - 1
    hub.fail("cdn", headers={"Content-Range": f"bytes {info.offset}-{last}/{last + 1}"})
    with pytest.raises(FormatError, match="changed on the server"):
        read(checkpoint)


@pytest.mark.parametrize(
    "value", ["bytes 0-99/1000", "bytes 0-", "", "bytes */1000", "bytes {begin}-{beyond}/{size}"]
)
def test_wrong_content_range(hub, model, value):
    checkpoint = open_checkpoint(REPO)
    info = checkpoint.store.info(DOWN)
    value = value.format(
        begin=info.offset, beyond=info.offset + info.nbytes, size=model.weights.stat().st_size
    )
    hub.fail("cdn", times=1000, headers={"Content-Range": value})
    with pytest.raises(FormatError, match="another range"):
        read(checkpoint)


def test_server_that_ignores_ranges(hub, model):
    hub.fail("cdn", times=1000, ignore_range=True)
    with pytest.raises(FormatError, match="ignores byte ranges") as caught:
        open_checkpoint(REPO)
    assert "hf download" in str(caught.value)
    assert len(hub.requests("cdn")) == 1


def test_small_files_may_come_whole(hub, model):
    hub.fail("resolve", ignore_range=True)
    assert open_checkpoint(REPO).architecture.family.name == "llama"


@pytest.mark.parametrize("status", [204, 304])
def test_neither_200_nor_206(hub, model, status):
    hub.fail("cdn", times=1000, status=status, headers={"Content-Length": "0"})
    with pytest.raises(FormatError, match=f"HTTP status {status}"):
        open_checkpoint(REPO)


def test_server_names_no_commit(hub, model):
    hub.add(hub.commits[COMMIT], "../../../etc", "evil")
    with pytest.raises(FormatError, match="no commit"):
        open_checkpoint(f"{REPO}@evil")


# Access


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("route", ["api", "resolve"])
def test_gated_repository(hub, model, capsys, route, status):
    hub.fail(route, times=1000, status=status, headers={"X-Error-Code": "GatedRepo"})
    ran = run(capsys, "inspect", REPO)
    assert ran.code == 4
    assert ran.err.count("\n") == 1
    for words in (REPO, "restricted", "accept its terms", "hf auth login"):
        assert words in ran.err


def test_missing_repository(hub, model, capsys):
    ran = run(capsys, "inspect", "org/nothing")
    assert ran.code == 4
    for words in ("org/nothing", "no such file, directory or repository", "hf auth login"):
        assert words in ran.err


def test_missing_revision(hub, model, capsys):
    ran = run(capsys, "inspect", f"{REPO}@nowhere")
    assert ran.code == 4
    assert "no such revision" in ran.err


def test_refused_by_the_file_server(hub, model):
    hub.fail("cdn", times=1000, status=403)
    with pytest.raises(CkptError, match="403"):
        open_checkpoint(REPO)
    assert len(hub.requests("cdn")) == 1


def test_nobody_answers(hub, model, monkeypatch):
    hub.close()
    with pytest.raises(UsageError, match="the Hub cannot be asked"):
        open_checkpoint(REPO)


def test_token_goes_to_the_hub_and_no_further(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    read(open_checkpoint(REPO))
    asked = [*hub.requests("api"), *hub.requests("resolve")]
    assert {r.headers.get("authorization") for r in asked} == {"Bearer hf_secret"}
    assert {r.headers.get("authorization") for r in hub.requests("cdn")} == {None}


def test_no_token_where_huggingface_hub_sends_none(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    read(open_checkpoint(REPO))
    assert {r.headers.get("authorization") for r in hub.log} == {None}


# Local caches


def test_cache_is_found_first(hub, model, tmp_path):
    for name in hub.commits[COMMIT]:
        huggingface_hub.hf_hub_download(REPO, name)
    hub.forget()
    for offline in (False, True):
        found = open_checkpoint(REPO, offline=offline)
        assert found.source.remote is None
        assert found.source.commit == COMMIT
        assert str(found.source.path) == REPO
        assert str(found.source.files[0]).startswith(str(tmp_path / "cache" / "hf"))
    assert open_checkpoint(f"{REPO}@{COMMIT}", offline=True).source.commit == COMMIT
    assert not hub.log
    with pytest.raises(NothingAnalysable, match="offline"):
        open_checkpoint(f"{REPO}@{OTHER}", offline=True)


def test_cached_gguf_without_configuration(hub, tmp_path):
    hub.add({"tiny.gguf": write_llama_gguf(tmp_path / "tiny.gguf").read_bytes()})
    huggingface_hub.hf_hub_download(REPO, "tiny.gguf")
    hub.forget()
    assert open_checkpoint(REPO).source.remote is None
    assert open_checkpoint(f"{REPO}/tiny.gguf", offline=True).source.remote is None
    assert not hub.log


def test_incomplete_cache_is_not_used(hub, tmp_path):
    local = wide_llama(tmp_path / "model")
    local.shard(2)
    hub.add(local.path)
    for name in ("config.json", "model.safetensors.index.json"):
        huggingface_hub.hf_hub_download(REPO, name)
    huggingface_hub.hf_hub_download(REPO, "model-00001-of-00002.safetensors")
    assert open_checkpoint(REPO).source.remote is not None
    with pytest.raises(FormatError, match=r"model-00002-of-00002\.safetensors.*is missing"):
        open_checkpoint(REPO, offline=True)


def test_cache_without_weights_is_not_used(hub, model):
    huggingface_hub.hf_hub_download(REPO, "config.json")
    assert open_checkpoint(REPO).source.remote is not None
    with pytest.raises(NothingAnalysable, match="not in the local"):
        open_checkpoint(REPO, offline=True)


def test_cached_file_whose_bytes_were_deleted(hub, model, tmp_path):
    for name in hub.commits[COMMIT]:
        huggingface_hub.hf_hub_download(REPO, name)
    for blob in (tmp_path / "cache" / "hf").rglob("blobs/*"):
        blob.unlink()
    assert np.array_equal(read(open_checkpoint(REPO)), read(open_checkpoint(model.path)))


def test_several_cached_models(hub, tmp_path):
    data = write_llama_gguf(tmp_path / "a.gguf").read_bytes()
    hub.add({"a.gguf": data, "b.gguf": data})
    for name in ("a.gguf", "b.gguf"):
        huggingface_hub.hf_hub_download(REPO, name)
    for offline in (False, True):
        with pytest.raises(UsageError, match="several models"):
            open_checkpoint(REPO, offline=offline)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_offline_asks_nobody(hub, model, capsys, monkeypatch, how):
    open_checkpoint(REPO)
    hub.forget()
    if how == "variable":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ran = run(capsys, "sign", REPO, *(["--offline"] if how == "option" else []))
    assert ran.code == 3
    for words in ("offline", f"hf download {REPO}"):
        assert words in ran.err
    assert not hub.log


def test_environment_of_huggingface_hub_is_followed(hub, model, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, which are read when the package is imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    home = str(tmp_path / "home")
    command = [sys.executable, "-m", "ckptforensics", "inspect", REPO, "--format", "json"]

    def inspect(**more: str) -> subprocess.CompletedProcess[str]:
        variables = {**clean, "HF_ENDPOINT": hub.endpoint, "HF_HOME": home, **more}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    done = inspect()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["commit"] == COMMIT
    total = model.weights.stat().st_size
    assert done.stderr == f"transferred {hub.sent():,} of {total:,} bytes\n"
    done = inspect(HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    assert "offline mode" in done.stderr


# Odd and hostile repositories


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.safetensors",
        "/tmp/escaped.safetensors",
        "..",
        "sub/model.safetensors",
        "..\\escaped.safetensors",
        "C:escaped.gguf",
        "nul\0escaped.gguf",
    ],
)
def test_names_that_leave_the_directory_are_ignored(hub, model, tmp_path, name):
    data = model.weights.read_bytes()
    hub.add({name: data, **hub.commits[COMMIT]})
    before = set(tmp_path.rglob("*"))
    checkpoint = open_checkpoint(REPO)
    mirror = mirror_of(tmp_path)
    assert [f.name for f in checkpoint.source.files] == ["model.safetensors"]
    added = set(tmp_path.rglob("*")) - before
    assert {p for p in added if p.is_file()} == {
        mirror / f
        for f in (
            "config.json",
            "config.json.ranges.json",
            "model.safetensors",
            "model.safetensors.ranges.json",
        )
    }


def test_index_that_names_other_directories(hub, model):
    index = json.dumps({"weight_map": {"x": "../../model.safetensors"}}).encode()
    hub.add({**hub.commits[COMMIT], "model.safetensors.index.json": index})
    with pytest.raises(FormatError, match="outside its directory") as caught:
        open_checkpoint(REPO)
    assert caught.value.path == Path(REPO, "model.safetensors.index.json")


def test_shard_missing_from_the_repository(hub, tmp_path):
    local = wide_llama(tmp_path / "model")
    local.shard(2)
    (local.path / "model-00002-of-00002.safetensors").unlink()
    hub.add(local.path)
    with pytest.raises(FormatError, match="is missing"):
        open_checkpoint(REPO)


@pytest.mark.parametrize("names", [(), ("tf_model.h5", "model.onnx")])
def test_nothing_to_read_in_place(hub, names):
    hub.add({"config.json": b"{}", **dict.fromkeys(names, b"x")})
    with pytest.raises(NothingAnalysable, match=r"holds no \.safetensors, \.bin"):
        open_checkpoint(REPO)
    assert not hub.requests("resolve")


def test_empty_and_broken_weights(hub, model):
    for data, words in ((b"", "empty"), (b"\xff" * 64, "100 MB"), (b"abc", "too short")):
        hub.add({**hub.commits[COMMIT], "model.safetensors": data}, f"{len(data):040x}")
        with pytest.raises(FormatError, match=words):
            open_checkpoint(REPO)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"size": 1}', '{"present": [[1]]}', "\0"])
def test_damaged_record_is_not_believed(hub, model, tmp_path, text):
    open_checkpoint(REPO)
    (mirror_of(tmp_path) / "model.safetensors.ranges.json").write_text(text)
    assert np.array_equal(read(open_checkpoint(REPO)), read(open_checkpoint(model.path)))


def test_record_without_its_mirror_is_not_believed(hub, model, tmp_path):
    read(open_checkpoint(REPO))
    (mirror_of(tmp_path) / "model.safetensors").unlink()
    assert np.array_equal(read(open_checkpoint(REPO)), read(open_checkpoint(model.path)))


def test_two_runs_at_once_share_a_mirror(hub, model, tmp_path):
    first, second = open_checkpoint(REPO), open_checkpoint(REPO)
    local = open_checkpoint(model.path)
    for name in local.store:
        for checkpoint in (first, second):
            assert np.array_equal(read(checkpoint, name), read(local, name))


def test_cache_that_cannot_be_written(hub, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write") as caught:
        open_checkpoint(REPO)
    assert "XDG_CACHE_HOME" in str(caught.value)


def test_full_disk_is_not_retried(hub, model, monkeypatch):
    checkpoint = open_checkpoint(REPO)
    hub.forget()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        read(checkpoint)
    assert len(hub.requests("cdn")) == 1


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("org/name", True),
        ("org/name@v1.0", True),
        ("org/name@refs/pr/3", True),
        ("org/name/model-Q4_K_M.gguf", True),
        ("org/name@main/model.gguf", True),
        ("Qwen/Qwen2.5-0.5B", True),
        ("name", False),
        ("./name", False),
        ("../name", False),
        ("/org/name", False),
        ("org/name/", False),
        ("org/", False),
        ("a/b/c", False),
        ("a/b/c.safetensors", True),
        ("a/b@main/c/d-00001-of-00002.gguf", True),
        ("a/b/../c.gguf", False),
        ("a/b/c.txt", False),
        ("models/llama.gguf", False),
        ("models/model.safetensors", False),
        ("models/model.safetensors.index.json", False),
        ("models/pytorch_model.bin", False),
        ("https://host/org/name", False),
        ("org/" + "x" * 5000, True),
        ("org/name\n", False),
    ],
)
def test_what_may_be_a_repository(name, may_be, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is may_be


def test_local_path_wins(hub, tmp_path, monkeypatch):
    Model.llama(tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint(REPO).source.commit is None
    assert not hub.log


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "a/" + "x" * 200])
def test_names_the_hub_does_not_allow(hub, name):
    with pytest.raises(UsageError, match="not a repository name"):
        open_checkpoint(name)
