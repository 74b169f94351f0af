"""URLs that fsspec reads: by ranges, into sparse mirrors, with every failure in one line."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError, FormatError, MissingDependency, UsageError
from ckptforensics.findings import sign
from ckptforensics.registry.audit import audit
from ckptforensics.registry.options import AuditOptions
from ckptforensics.sources import RemoteFiles, is_url
from tests.support.containers import assert_one_error, run
from tests.support.models import save, tiny_llama, write_gguf

PLANTED = Path(__file__).resolve().parents[2] / "fixtures" / "planted"
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("ckptforensics.sources.retry._FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("ckptforensics.sources.retry._LONGEST_WAIT_SECONDS", 0.002)


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of `memory://`, empty."""
    import fsspec

    found = fsspec.filesystem("memory")
    found.store.clear()
    found.put(f"{PLANTED}/", "/bucket/models/x", recursive=True)
    yield found
    found.store.clear()


def test_what_is_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_url("s3://bucket/x")
    assert not any(is_url(text) for text in ("s3:/bucket", "org/name", "C:\\x", "x", Path("a://b")))


def test_a_model_in_memory_is_read_by_ranges(memory):
    url = "memory://bucket/models/x"
    checkpoint = open_checkpoint(url)
    assert str(checkpoint.source.path) == url
    remote = checkpoint.source.remote
    assert isinstance(remote, RemoteFiles)
    assert remote.transfer.fetched < 10_000
    local = open_checkpoint(PLANTED)
    assert np.array_equal(checkpoint.store.read(NAME), local.store.read(NAME))
    assert remote.transfer.fetched < 100_000 < remote.transfer.total


def test_the_signature_is_that_of_the_local_files(memory):
    found = sign("memory://bucket/models/x").document
    assert found.fingerprint == sign(PLANTED).document.fingerprint
    assert found.model.path == "memory://bucket/models/x"


def test_what_was_read_is_kept_and_a_changed_file_is_read_anew(memory):
    url = "memory://bucket/models/x"
    before = open_checkpoint(url).store.read(NAME)
    again = open_checkpoint(url)
    assert np.array_equal(again.store.read(NAME), before)
    assert again.source.remote.transfer.fetched == 0
    content = bytearray(memory.cat("/bucket/models/x/model.safetensors"))
    at = again.store.info(NAME).offset
    content[at : at + 4] = b"\0\0\0\0"
    memory.pipe("/bucket/models/x/model.safetensors", bytes(content))
    changed = open_checkpoint(url).store.read(NAME)
    assert changed[0, 0] == 0 != before[0, 0]


def test_a_file_that_changes_while_it_is_read(memory):
    checkpoint = open_checkpoint("memory://bucket/models/x")
    content = memory.cat("/bucket/models/x/model.safetensors")
    memory.pipe("/bucket/models/x/model.safetensors", content)
    with pytest.raises(FormatError, match="changed on the server while it was read"):
        checkpoint.store.read(NAME)


def test_a_file_that_vanishes_while_it_is_read(memory):
    checkpoint = open_checkpoint("memory://bucket/models/x")
    memory.rm("/bucket/models/x/model.safetensors")
    with pytest.raises(CkptError, match="no such file"):
        checkpoint.store.read(NAME)


def test_files_of_any_kind(memory, tmp_path):
    whole = save(tiny_llama(), tmp_path / "whole")
    sharded = save(tiny_llama(), tmp_path / "shards", shards=3)
    write_gguf(tiny_llama(), tmp_path / "a.gguf")
    memory.put(f"{sharded}/", "/b/shards", recursive=True)
    memory.put(str(tmp_path / "a.gguf"), "/b/q/a.gguf")
    memory.put(str(tmp_path / "a.gguf"), "/b/q/sha256-00")
    memory.put(f"{whole}/", "/b/whole", recursive=True)
    expected = open_checkpoint(whole).store.read("model.norm.weight")
    index = "memory://b/shards/model.safetensors.index.json"
    for url in ("memory://b/shards", index, "memory://b/whole/model.safetensors"):
        assert np.array_equal(open_checkpoint(url).store.read("model.norm.weight"), expected)
    for url in ("memory://b/q/a.gguf", "memory://b/q/sha256-00"):
        assert np.array_equal(open_checkpoint(url).store.read("output_norm.weight"), expected)


def test_several_models_are_named(memory):
    for name in ("a.gguf", "b.gguf"):
        memory.pipe(f"/b/q/{name}", b"GGUF")
    with pytest.raises(UsageError, match="several models") as caught:
        open_checkpoint("memory://b/q")
    assert "name one of these files, as memory://b/q/a.gguf" in str(caught.value)


def test_a_cut_connection_is_asked_again(memory, monkeypatch):
    checkpoint = open_checkpoint("memory://bucket/models/x")
    real = type(memory).cat_file
    calls = []

    def cut(self, path, start=None, end=None, **options):
        calls.append((start, end))
        if len(calls) == 1:
            raise ConnectionResetError("cut")
        data = real(self, path, start=start, end=end, **options)
        return data[: len(data) // 2] if len(calls) == 2 else data

    monkeypatch.setattr(type(memory), "cat_file", cut)
    found = checkpoint.store.read(NAME)
    assert np.array_equal(found, open_checkpoint(PLANTED).store.read(NAME))
    assert len(calls) == 3
    begin, end = calls[0]
    assert calls[1:] == [(begin, end), (begin + (end - begin) // 2, end)]


def test_a_server_that_never_answers(memory, monkeypatch):
    checkpoint = open_checkpoint("memory://bucket/models/x")

    def cut(*_arguments, **_options):
        raise ConnectionResetError("cut by the peer")

    monkeypatch.setattr(type(memory), "cat_file", cut)
    with pytest.raises(FormatError, match=r"in 6 attempts: .*cut by the peer"):
        checkpoint.store.read(NAME)


def test_a_server_that_ignores_ranges(memory, monkeypatch):
    checkpoint = open_checkpoint("memory://bucket/models/x")
    real = type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **_: real(self, path))
    with pytest.raises(FormatError, match="ignores byte ranges"):
        checkpoint.store.read(NAME)


def test_files_of_this_machine_are_not_copied(tmp_path, capsys):
    folder = tmp_path / "a b"
    shutil.copytree(PLANTED, folder)
    checkpoint = open_checkpoint(folder.as_uri())
    assert checkpoint.source.remote is None
    assert checkpoint.source.files == (folder / "model.safetensors",)
    with pytest.raises(UsageError, match="no such file"):
        open_checkpoint(f"file://{tmp_path}/nowhere")
    assert run(capsys, "inspect", folder.as_uri()).code == 0
    assert run(capsys, "sign", folder.as_uri(), PLANTED, "-q").code == 0


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("memory://nowhere/x", 4, ["memory://nowhere/x: there is no such file, folder or bucket"]),
        ("nosuch://bucket/x", 4, ["no such kind of URL is known"]),
        ("memory://bucket/models", 3, ["memory://bucket/models", "holds no .safetensors"]),
    ],
)
def test_failures_are_one_line(memory, capsys, url, code, words):
    assert_one_error(run(capsys, "inspect", url), code, *words)


def test_a_missing_package_is_named(monkeypatch):

    def missing(*_arguments, **_options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingDependency, match="Install s3fs") as caught:
        open_checkpoint("s3://bucket/x")
    assert str(caught.value).endswith("; pip install s3fs")


def test_offline(memory):
    with pytest.raises(UsageError, match="offline"):
        open_checkpoint("memory://bucket/models/x", offline=True)


# A server that speaks S3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of a server with the bucket `models` and one model."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch) -> Iterator[Any]:
    """The file system of `s3://` on that server."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    found = s3fs.S3FileSystem(use_listings_cache=False)
    if not found.exists("models"):
        found.mkdir("models")
    found.put(f"{PLANTED}/", "models/org/x", recursive=True)
    yield found
    found.rm("models/org/x", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_model_in_a_bucket(bucket):
    url = "s3://models/org/x"
    checkpoint = open_checkpoint(url)
    assert np.array_equal(checkpoint.store.read(NAME), open_checkpoint(PLANTED).store.read(NAME))
    assert checkpoint.source.remote.transfer.fetched < 100_000
    again = open_checkpoint(url)
    again.store.read(NAME)
    assert again.source.remote.transfer.fetched == 0


def test_a_bucket_is_audited(bucket, tmp_path, monkeypatch):
    """In processes of their own: cards and weights are read where they are, and once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    bucket.pipe("models/org/x/README.md", b"---\nbase_model: meta/base\nlicense: mit\n---\n")
    options = AuditOptions(catalog=tmp_path / "catalog.db", neighbours=0)
    document = audit(["s3://models"], options)
    (model,) = document.models
    assert (model.name, model.source, model.state) == ("org/x", "url", "signed")
    assert model.fingerprint == sign(PLANTED).document.fingerprint
    assert [(c.parent, c.verdict) for c in model.claims] == [("meta/base", "unverifiable")]
    assert model.licence == "mit"
    assert not document.findings
    assert audit(["s3://models"], options).coverage.reused == 1
    bucket.pipe("models/org/x/README.md", b"---\nbase_model: meta/other\n---\n")
    again = audit(["s3://models"], options)
    assert again.coverage.reused == 0
    assert again.models[0].claims[0].parent == "meta/other"


def test_a_changed_object(bucket):
    checkpoint = open_checkpoint("s3://models/org/x/model.safetensors")
    content = bytearray((PLANTED / "model.safetensors").read_bytes())
    content[-1] ^= 1
    bucket.pipe("models/org/x/model.safetensors", bytes(content))
    with pytest.raises(FormatError, match="changed on the server while it was read"):
        checkpoint.store.read(NAME)


def test_buckets_that_are_not_there(bucket, capsys):
    told = "there is no such file, folder or bucket"
    assert_one_error(run(capsys, "inspect", "s3://no-such-bucket/x"), 4, "s3://no-such", told)
    assert_one_error(run(capsys, "inspect", "s3://models/nowhere"), 4, told)


def test_no_credentials(bucket, monkeypatch, capsys):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    type(bucket).clear_instance_cache()
    ran = run(capsys, "inspect", "s3://models/org/x")
    assert_one_error(ran, 4, "there are no credentials for it", "FSSPEC_S3_ANON=true")
    import fsspec.config

    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    monkeypatch.setattr(fsspec.config, "conf", {})
    fsspec.config.set_conf_env(fsspec.config.conf)
    monkeypatch.setattr("fsspec.spec.conf", fsspec.config.conf, raising=False)
    ran = run(capsys, "inspect", "s3://models/org/x")
    assert_one_error(ran, 4, "access is refused", "Forbidden")
    bucket.chmod("models", "public-read")
    bucket.chmod("models/org/x", "public-read", recursive=True)
    assert run(capsys, "inspect", "s3://models/org/x").code == 0


def test_a_server_that_is_not_there(bucket, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(type(bucket), "retries", 1)
    type(bucket).clear_instance_cache()
    assert_one_error(
        run(capsys, "inspect", "s3://models/org/x"), 4, "cannot be read", "127.0.0.1:9"
    )


def test_json_of_a_bucket_is_not_trusted(bucket):
    bucket.pipe("models/org/x/config.json", json.dumps({"model_type": 3}).encode())
    with pytest.raises(CkptError):
        open_checkpoint("s3://models/org/x")


def test_the_models_of_a_bucket_are_listed(bucket):
    from ckptforensics.registry.stores.listing import list_models

    (model,) = list_models(["s3://models/org"]).models
    assert (model.name, model.opens) == ("x", "s3://models/org/x")
    assert all(file.changed for file in model.files)


# A plain web server


class _Pages(SimpleHTTPRequestHandler):
    """A directory with byte ranges, unless it is told to ignore them, and ETags."""

    ranges = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file() or asked is None or not self.ranges:
            super().do_GET()
            return
        content = path.read_bytes()
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    top = tmp_path / "www"
    shutil.copytree(PLANTED, top / "models" / "x")
    (top / "secret").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, directory=str(top)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["models/x/", "models/x/model.safetensors"])
def test_a_model_behind_a_web_server(web, name):
    checkpoint = open_checkpoint(f"{web}/{name}")
    assert np.array_equal(checkpoint.store.read(NAME), open_checkpoint(PLANTED).store.read(NAME))
    assert checkpoint.source.remote.transfer.fetched < 100_000


def test_pages_are_listed_and_lead_nowhere_else(web, tmp_path):
    from ckptforensics.registry.stores.listing import list_models

    page = f'<a href="/secret/">up</a> <a href="../">up</a> <a href="{web}/secret/">x</a>'
    (tmp_path / "www" / "models" / "x" / "page.html").write_text(page)
    (model,) = list_models([f"{web}/models/"]).models
    assert model.name == "x"
    assert open_checkpoint(model.opens).architecture.family.name == "llama"


def test_a_web_server_without_ranges_and_files_that_are_not_there(web, monkeypatch, capsys):
    assert_one_error(run(capsys, "inspect", f"{web}/nowhere/x.gguf"), 4, "no such file")
    monkeypatch.setattr(_Pages, "ranges", False)
    ran = run(capsys, "inspect", f"{web}/models/x/model.safetensors")
    assert_one_error(ran, 2, "ignores byte ranges")
