"""The cache of signatures: what hits, what must not, and what an interrupted run leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptforensics
from ckptforensics import Calibration, Fit, Signature, SignatureCache
from ckptforensics.errors import CkptError, TensorError, UnknownFamily
from ckptforensics.findings import cache_info
from ckptforensics.findings.cache import journal
from ckptforensics.findings.cache.key import signature_keys
from ckptforensics.tensors import FileReader
from tests.families.test_hybrids import jamba
from tests.findings.test_quantized_models import quantized_copy
from tests.support.adapters import base_tensors, low_rank, write_adapter
from tests.support.containers import LLAMA_CONFIG, Model, llama_arrays, run
from tests.support.families.harness import Case, build_model
from tests.support.hub import REPO, loopback_hub

LAYERS = 5
CONFIG = {**LLAMA_CONFIG, "num_hidden_layers": LAYERS}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "model", llama_arrays(layers=LAYERS), CONFIG)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignatureCache:
    """The command line's cache, empty; `said` keeps what it tells."""
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "signatures"))
    said: list[str] = []
    made = SignatureCache.of_user(said.append)
    assert made is not None
    made.said = said  # type: ignore[attr-defined]
    return made


def assert_same(one: Signature, other: Signature) -> None:
    """Bit for bit."""
    assert one.document == other.document
    for name in ("u", "v", "sigma", "residual"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def is_hit(sign: Callable[[], Signature]) -> bool:
    """Whether the signature comes without reading a weight; it is made in any case."""

    read_rows = FileReader.read_rows

    def refuse(self: FileReader, name: str, *rows: int) -> Any:
        if name not in ("u", "v", "sigma", "residual"):
            raise RuntimeError("a weight was read")
        return read_rows(self, name, *rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileReader, "read_rows", refuse)
        patch.setattr(FileReader, "stored_bytes", refuse)
        try:
            sign()
        except RuntimeError:
            hit = False
        else:
            return True
    sign()
    return hit


def entries(cache: SignatureCache, suffix: str = ".safetensors") -> list[Path]:
    return [file.path for file in cache.files() if file.path.suffix == suffix]


# What hits.


def test_second_sign_reads_no_weight_and_says_the_same(model, cache):
    fresh = ckptforensics.sign(model.path)
    first = ckptforensics.sign(model.path, cache=cache)
    assert cache.said == []
    kept: list[Signature] = []
    assert is_hit(lambda: kept.append(ckptforensics.sign(model.path, cache=cache)) or kept[0])
    assert_same(first, fresh)
    assert_same(kept[0], fresh)
    (entry,) = entries(cache)
    assert cache.said == [f"from the cache: {entry}; --no-cache measures again"]
    # An entry is what `-o` would have saved.
    saved = ckptforensics.load_result(entry)
    assert isinstance(saved, Signature)
    assert_same(saved, fresh)


def test_the_functions_keep_nothing_unless_asked(model, cache):
    ckptforensics.sign(model.path)
    assert not cache.folder.exists()


def test_a_moved_model_hits_and_is_described_where_it_is(model, cache, tmp_path):
    ckptforensics.sign(model.path, cache=cache)
    moved = model.path.rename(tmp_path / "elsewhere")
    assert is_hit(lambda: ckptforensics.sign(moved, cache=cache))
    found = ckptforensics.sign(moved, cache=cache)
    assert found.document.model.path == str(moved)
    assert_same(found, ckptforensics.sign(moved))


def test_shards_and_their_index_count(model, cache):
    model.shard(2)
    ckptforensics.sign(model.path, cache=cache)
    assert is_hit(lambda: ckptforensics.sign(model.path, cache=cache))
    poke_in_place(model.path / "model-00002-of-00002.safetensors")
    assert not is_hit(lambda: ckptforensics.sign(model.path, cache=cache))


def test_by_digest_a_copy_under_another_name_hits(model, cache, tmp_path):
    ckptforensics.sign(model.path, digest=True, cache=cache)
    copy = model.copy(tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert not is_hit(lambda: ckptforensics.sign(copy, cache=SignatureCache(tmp_path / "none")))
    found: list[Signature] = []
    assert is_hit(lambda: found.append(ckptforensics.sign(copy, digest=True, cache=cache)))
    content = (copy / "other.safetensors").read_bytes()
    (file,) = found[0].document.model.files
    assert (file.name, file.sha256) == ("other.safetensors", hashlib.sha256(content).hexdigest())
    assert_same(found[0], ckptforensics.sign(copy, digest=True))
    # Signed by its digest or not, the same files are measured once.
    assert is_hit(lambda: ckptforensics.sign(model.path, cache=cache))


def hugging_face_folder(model: Path, folder: Path) -> Path:
    """A snapshot whose weights are a link to a blob named by their SHA-256."""
    data = (model / "model.safetensors").read_bytes()
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    snapshot = folder / "snapshots" / "main"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(data)
    (snapshot / "model.safetensors").symlink_to(blob)
    shutil.copy(model / "config.json", snapshot)
    return snapshot


def test_a_blob_altered_behind_its_digest_name_is_measured(planted, cache, tmp_path):
    """One bit between the samples, times set back; and its name is not given out as its digest."""
    snapshot = hugging_face_folder(planted, tmp_path / "hub")
    blob = (snapshot / "model.safetensors").resolve()
    ckptforensics.sign(snapshot, cache=cache)
    assert is_hit(lambda: ckptforensics.sign(snapshot, cache=cache))
    flip_between_samples(blob)
    assert not is_hit(lambda: ckptforensics.sign(snapshot, cache=cache))
    (file,) = ckptforensics.sign(snapshot, cache=cache).document.model.files
    assert file.sha256 is None
    (file,) = ckptforensics.sign(snapshot, digest=True, cache=cache).document.model.files
    assert file.sha256 == hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name


@pytest.mark.parametrize("digest", [False, True])
def test_a_computed_digest_is_believed_by_the_name_of_no_blob(digest, planted, cache, tmp_path):
    """A signature kept by its digest is not that of a blob that only has it as its name."""
    ckptforensics.sign(planted, digest=True, cache=cache)
    snapshot = hugging_face_folder(planted, tmp_path / "hub")
    flip_between_samples((snapshot / "model.safetensors").resolve())
    assert not is_hit(lambda: ckptforensics.sign(snapshot, digest=digest, cache=cache))


def test_a_repository_on_the_hub(model, cache, tmp_path, monkeypatch, capsys):
    with loopback_hub(monkeypatch, tmp_path / "hub") as hub:
        hub.add(model.path)
        first = run(capsys, "sign", REPO)
        assert first.code == 0
        hub.forget()
        shutil.rmtree(tmp_path / "hub" / "xdg")
        second = run(capsys, "sign", REPO)
        assert (second.code, second.out) == (0, first.out)
        assert "from the cache: " in second.err
        assert hub.sent() < model.weights.stat().st_size / 2  # headers only


# What must not hit.


def poke_in_place(file: Path) -> None:
    """Change one weight; size, inode and modification time stay as they were."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    at = 8 + int.from_bytes(data[:8], "little")
    data[at : at + 4] = np.float32(np.frombuffer(data[at : at + 4], "<f4")[0] + 1).tobytes()
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    same = ("st_ino", "st_size", "st_mtime_ns")
    assert [getattr(before, n) for n in same] == [getattr(after, n) for n in same]


def swap(model: Model, how: str) -> None:
    """Other weights under the same path, of the same size and modification time."""
    before = model.weights.stat()
    other = model.weights.with_name("new")
    arrays = {name: 2 * array for name, array in load_file(model.weights).items()}
    save_file(arrays, other)
    if how == "in place":
        with model.weights.open("r+b") as file:
            file.write(other.read_bytes())
        other.unlink()
    else:
        other.replace(model.weights)
    os.utime(model.weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model.weights.stat().st_size == before.st_size
    assert model.weights.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_swapped_weights_under_the_same_path_are_noticed(model, cache, how):
    before = ckptforensics.sign(model.path, cache=cache)
    swap(model, how)
    after = ckptforensics.sign(model.path, cache=cache)
    assert_same(after, ckptforensics.sign(model.path))
    assert not np.array_equal(before.sigma, after.sigma)


def test_one_changed_weight_is_noticed(model, cache):
    ckptforensics.sign(model.path, cache=cache)
    poke_in_place(model.weights)
    assert not is_hit(lambda: ckptforensics.sign(model.path, cache=cache))


def flip_between_samples(file: Path) -> None:
    """Change a bit of a file of some MB where the key has no sample, and set its times back."""
    before, size = file.stat(), file.stat().st_size
    with file.open("r+b") as opened:
        at = (size - 4096) * 30 // 63 + 6000  # the samples begin at multiples of the first factors
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_change_between_the_samples_is_noticed(planted, cache, tmp_path):
    """By the time of the last change, which nobody can set back."""
    folder = Path(shutil.copytree(planted, tmp_path / "copy"))
    file = folder / "model.safetensors"
    ckptforensics.sign(folder, cache=cache)
    flip_between_samples(file)
    assert not is_hit(lambda: ckptforensics.sign(folder, cache=cache))


def test_samples_notice_where_the_disk_says_nothing(model, monkeypatch):
    """As on file systems with coarse times, or after a restored image."""
    stat = Path.stat
    status = stat(model.weights)
    monkeypatch.setattr(
        Path, "stat", lambda self, **how: status if self == model.weights else stat(self, **how)
    )
    before = keys(model.path)
    assert keys(model.path) == before
    data = bytearray(model.weights.read_bytes())
    data[-1] ^= 1
    model.weights.write_bytes(data)
    assert not set(keys(model.path)) & set(before)


def keys(path: Path, fit: Fit | None = None, **how: Any) -> tuple[str, ...]:
    return signature_keys(ckptforensics.open_checkpoint(path, **how), fit or Fit(), {})


def calibration(file: Path, seed: int) -> Calibration:
    vectors = np.random.default_rng(seed).standard_normal((50, 8)).astype(np.float32)
    save_file({"x": vectors}, file)
    return Calibration.read(file, 8)


def test_every_option_of_the_fit_counts(model, tmp_path):
    one, other = (calibration(tmp_path / f"{i}.safetensors", i) for i in (1, 2))
    fits = [
        Fit(), Fit("paper"), Fit("sampled"), Fit("sampled", samples=500), Fit("sampled", seed=1),
        Fit("sampled", calibration=one), Fit("sampled", calibration=other),
    ]  # fmt: skip
    assert len({keys(model.path, fit) for fit in fits}) == len(fits)
    # Not what is not used.
    assert keys(model.path, Fit(samples=7)) == keys(model.path)


def test_configuration_counts(model, tmp_path):
    for changes in ({"rms_norm_eps": 1e-3}, {"bos_token_id": 2}, {"hidden_act": "gelu"}):
        other = tmp_path / "config.json"
        other.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
        assert keys(model.path, config=other) != keys(model.path)


def test_quantization_counts_where_its_configuration_is_another_file(planted, cache, tmp_path):
    folder = quantized_copy(planted, tmp_path / "gptq", "gptq")
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def write(form: str) -> None:
        text = json.dumps({**quantization, "checkpoint_format": form})
        (folder / "quantize_config.json").write_text(text, encoding="utf-8")

    write("gptq")
    assert not is_hit(lambda: ckptforensics.sign(folder, cache=cache))
    assert is_hit(lambda: ckptforensics.sign(folder, cache=cache))
    assert_same(ckptforensics.sign(folder, cache=cache), ckptforensics.sign(folder))
    # The stored zeros mean other numbers, which the codes contradict: nothing is taken for it.
    write("gptq_v2")
    with pytest.raises(TensorError, match="zero points"):
        ckptforensics.sign(folder, cache=cache)
    write("gptq")
    assert is_hit(lambda: ckptforensics.sign(folder, cache=cache))


def test_adapter_counts_with_its_configuration(planted, cache, tmp_path):
    tensors = low_rank(base_tensors(planted), ["model.layers.2.mlp.down_proj"])
    adapter = tmp_path / "adapter"
    found = []
    for alpha in (5, 50):
        write_adapter(tmp_path / str(alpha), tensors, lora_alpha=alpha)
        adapter.mkdir(exist_ok=True)
        if not (adapter / "adapter_model.safetensors").exists():
            shutil.copy(tmp_path / str(alpha) / "adapter_model.safetensors", adapter)
        shutil.copy(tmp_path / str(alpha) / "adapter_config.json", adapter)
        checkpoint = ckptforensics.open_checkpoint(adapter, base=planted)
        assert not is_hit(lambda c=checkpoint: ckptforensics.sign(c, cache=cache))
        assert is_hit(lambda c=checkpoint: ckptforensics.sign(c, cache=cache))
        found.append(ckptforensics.sign(checkpoint, cache=cache))
        assert_same(found[-1], ckptforensics.sign(checkpoint))
    assert not np.array_equal(found[0].sigma, found[1].sigma)


def test_strict_is_as_strict_with_a_signature_in_the_cache(model, cache, capsys):
    model.write_config({k: v for k, v in CONFIG.items() if k != "model_type"})
    assert run(capsys, "sign", model.path, "-q").code == 0
    assert len(entries(cache)) == 1
    with pytest.raises(UnknownFamily):
        ckptforensics.open_checkpoint(model.path, strict=True)
    assert run(capsys, "sign", model.path, "--strict", "-q").code == 3
    model.write_config({k: v for k, v in CONFIG.items() if k != "bos_token_id"})
    codes = [run(capsys, "sign", model.path, "-q", *s).code for s in ((), ("--strict",), ())]
    assert codes == [0, 2, 0]


def test_files_that_change_while_they_are_read_are_not_kept(model, cache):
    class Touch(Steps):
        def step(self, note: str = "") -> None:
            os.utime(model.weights)

    ckptforensics.sign(model.path, cache=cache, progress=Touch())
    assert cache.files() == []


# Files that are not what they were, and disks that are full.


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "garbage", "foreign", "document"])
def test_a_damaged_entry_is_removed_and_measured_again(model, cache, how, planted):
    fresh = ckptforensics.sign(model.path, cache=cache)
    (entry,) = entries(cache)
    data = bytearray(entry.read_bytes())
    if how == "flipped":
        data[-40] ^= 1  # a finite number all the same
    content = {
        "cut": data[:-8],
        "empty": b"",
        "flipped": data,
        "garbage": os.urandom(3000),
        "foreign": (planted / "model.safetensors").read_bytes(),
        "document": ckptforensics.inspect(model.path).model_dump_json().encode(),
    }[how]
    if how in ("foreign", "document"):  # whole, by the digest in its name, and no signature
        key = entry.name.partition("-")[0]
        entry.unlink()
        digest = hashlib.sha256(content).hexdigest()[:16]
        entry = entry.with_name(f"{key}-{digest}.safetensors")
    entry.write_bytes(content)
    cache.said.clear()
    assert_same(ckptforensics.sign(model.path, cache=cache), fresh)
    assert cache.said == []
    (again,) = entries(cache)
    assert again.read_bytes() != content
    assert is_hit(lambda: ckptforensics.sign(model.path, cache=cache))


def test_a_directory_that_cannot_be_made(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "file" / "cache"))
    ran = run(capsys, "sign", model.path)
    assert ran.code == 0
    assert ran.out == run(capsys, "sign", model.path, "--no-cache").out
    assert ran.err.startswith("the signature is not cached: ")
    assert ran.err.count("\n") == 1
    assert run(capsys, "cache", "info").code == 0


def test_a_full_disk(model, cache, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert_same(ckptforensics.sign(model.path, cache=cache), ckptforensics.sign(model.path))
    (warning,) = cache.said
    assert "No space left on device" in warning
    assert list(cache.folder.iterdir()) == []


# Bounds.


def put(cache: SignatureCache, signature: Signature, number: int) -> Path:
    key = f"{number:064x}"
    before = set(entries(cache))
    cache.put((key,), signature)
    (entry,) = set(entries(cache)) - before
    os.utime(entry, (number, number))
    return entry


def test_the_least_recently_used_go_first(model, tmp_path):
    cache = SignatureCache(tmp_path / "small", most_entries=3)
    signature = ckptforensics.sign(model.path)
    first, second, third = (put(cache, signature, i) for i in (1, 2, 3))
    assert cache.get((f"{1:064x}",)) is not None
    fourth = put(cache, signature, 4)
    assert set(entries(cache)) == {first, third, fourth}
    assert not second.exists()


def test_the_bytes_are_bounded_with_unfinished_runs(model, tmp_path):
    signature = ckptforensics.sign(model.path)
    size = put(SignatureCache(tmp_path / "one"), signature, 1).stat().st_size
    cache = SignatureCache(tmp_path / "small", most_bytes=2 * size + 10)
    stale = cache.folder / f"{7:064x}.partial"
    cache.folder.mkdir()
    stale.write_bytes(bytes(size))
    os.utime(stale, (0, 0))
    kept = [put(cache, signature, i) for i in (1, 2)]
    assert {file.path for file in cache.files()} == set(kept)
    SignatureCache(tmp_path / "none", most_bytes=10).put((f"{1:064x}",), signature)
    assert cache_info(SignatureCache(tmp_path / "none")).entries == 0


def test_other_peoples_files_stay(model, cache, capsys):
    ckptforensics.sign(model.path, cache=cache)
    names = ["notes.txt", "model.safetensors", "0123.partial", f"{1:064x}.safetensors"]
    for name in names:
        (cache.folder / name).write_text("x")
    (cache.folder / f"{1:064x}.partial").mkdir()
    left_over = cache.folder / f".{2:064x}.partial.abc"
    left_over.write_text("x")
    os.utime(left_over, (0, 0))
    ckptforensics.sign(model.path, fit=Fit("paper"), cache=cache)
    assert not left_over.exists()
    before = json.loads(run(capsys, "cache", "info", "--format", "json").out)
    assert (before["entries"], before["unfinished"]) == (2, 0)
    assert before["path"] == str(cache.folder)
    sizes = [entry.stat().st_size for entry in entries(cache)]
    assert before["bytes"] == sum(sizes)
    ran = run(capsys, "cache", "clear")
    assert (ran.code, ran.err) == (0, "removed 2 signatures and 0 unfinished runs\n")
    assert {file.name for file in cache.folder.iterdir()} == {*names, f"{1:064x}.partial"}


# The command.


def test_no_cache_neither_reads_nor_writes(model, cache, capsys):
    ran = run(capsys, "sign", model.path, "--no-cache")
    assert (ran.code, ran.err) == (0, "")
    assert not cache.folder.exists()
    assert run(capsys, "sign", model.path).err == ""
    hit = run(capsys, "sign", model.path)
    assert hit.out == ran.out
    assert hit.err.startswith("from the cache: ")
    assert hit.err.count("\n") == 1
    assert run(capsys, "sign", model.path, "-q").err == ""
    assert run(capsys, "sign", model.path, "--no-cache").err == ""


def test_where_the_cache_is(model, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CKPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert run(capsys, "sign", model.path).code == 0
    assert len(list((tmp_path / "xdg" / "ckptforensics" / "signatures").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"{tmp_path}/home/.cache/ckptforensics/signatures" in run(capsys, "cache", "info").out
    monkeypatch.setenv("CKPT_CACHE", "")
    for words in (("info",), ("clear",)):
        assert "nothing is kept" in run(capsys, "cache", *words).out
    assert run(capsys, "sign", model.path).err == ""


def test_a_saved_signature_is_the_same_from_the_cache(model, cache, tmp_path, capsys):
    for name in ("one", "two"):
        assert run(capsys, "sign", model.path, "-o", tmp_path / f"{name}.safetensors").code == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


# Interrupted runs, and several at once.


class Steps:
    """A progress that does something after some layers."""

    def __init__(self, after: int = 0, action: Callable[[], None] | None = None) -> None:
        self.after, self.action, self.done = after, action, 0

    def start(self, label: str, total: int) -> None:
        self.total = total

    def step(self, note: str = "") -> None:
        self.done += 1
        if self.action is not None and self.done == self.after:
            self.action()

    def finish(self) -> None:
        pass


def interrupt() -> None:
    raise KeyboardInterrupt


def hybrid(folder: Path) -> Path:
    """Attention, Mamba, Mamba, attention, Mamba: the rollout ends before layer 2; experts."""
    build_model(Case("jamba", "jamba", jamba)).save_pretrained(folder)
    return folder


def without_tokens(folder: Path) -> Path:
    arrays = llama_arrays(layers=LAYERS)
    del arrays["model.embed_tokens.weight"]
    return Model(folder, arrays, CONFIG).path


@pytest.mark.parametrize(
    ("make", "layers"),
    [(None, 8), (hybrid, 5), (without_tokens, LAYERS)],
    ids=["planted", "hybrid", "no tokens"],
)
def test_an_interrupted_run_goes_on_and_ends_alike(make, layers, planted, cache, tmp_path):
    path = planted if make is None else make(tmp_path / "other")
    fresh = ckptforensics.sign(path)
    for after in range(1, layers):
        with pytest.raises(KeyboardInterrupt):
            ckptforensics.sign(path, cache=cache, progress=Steps(after, interrupt))
        assert entries(cache) == []
        cache.said.clear()
        rest = Steps()
        assert_same(ckptforensics.sign(path, cache=cache, progress=rest), fresh)
        assert rest.total == rest.done == layers - after
        (said,) = cache.said
        assert said.startswith(f"resuming after layer {after}: {after} of {layers} layers ")
        assert entries(cache, ".partial") == []
        cache.clear()


def test_a_run_that_resumes_reads_only_the_rest(planted, cache, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        ckptforensics.sign(planted, cache=cache, progress=Steps(6, interrupt))
    read = []
    original = FileReader.read_rows

    def recording(self: FileReader, name: str, start: int, stop: int) -> Any:
        read.append(name)
        return original(self, name, start, stop)

    monkeypatch.setattr(FileReader, "read_rows", recording)
    ckptforensics.sign(planted, cache=cache)
    assert {name.split(".")[2] for name in read} == {"6", "7"}


def test_other_weights_do_not_go_on_where_the_old_stopped(model, cache):
    with pytest.raises(KeyboardInterrupt):
        ckptforensics.sign(model.path, cache=cache, progress=Steps(3, interrupt))
    swap(model, "in place")
    assert_same(ckptforensics.sign(model.path, cache=cache), ckptforensics.sign(model.path))
    assert cache.said == []


@pytest.mark.parametrize("how", ["cut", "flipped", "garbage", "empty"])
def test_a_damaged_unfinished_run_begins_again(model, cache, how):
    with pytest.raises(KeyboardInterrupt):
        ckptforensics.sign(model.path, cache=cache, progress=Steps(3, interrupt))
    (file,) = entries(cache, ".partial")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    content = {"cut": data[:-9], "flipped": data, "garbage": os.urandom(500), "empty": b""}
    file.write_bytes(content[how])
    assert_same(ckptforensics.sign(model.path, cache=cache), ckptforensics.sign(model.path))
    assert cache.said == []
    assert entries(cache, ".partial") == []


def test_an_unfinished_run_of_other_fields_begins_again(model, cache):
    """Its digest is right, and what it holds is not a measurement."""
    with pytest.raises(KeyboardInterrupt):
        ckptforensics.sign(model.path, cache=cache, progress=Steps(3, interrupt))
    (file,) = entries(cache, ".partial")
    from safetensors.numpy import save

    for facts in (
        {"layers": [{"layer": 1}], "x": None},
        {"x": None},
        [],
        {"layers": [], "x": None},
    ):
        data = save({"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
        file.write_bytes(hashlib.sha256(data).digest() + data)
        assert_same(ckptforensics.sign(model.path, cache=cache), ckptforensics.sign(model.path))
        cache.clear()


# `ckpt` with layers that take a while and are written down one by one.
SLOW = """
import time
from ckptforensics.cli.entry import run
from ckptforensics.findings import measure
from ckptforensics.findings.cache import journal
journal.SAVE_EVERY_SECONDS = journal._LARGEST_SHARE = 1e-9
advance = measure.advance
def slowly(*arguments):
    time.sleep(0.25)
    return advance(*arguments)
measure.advance = slowly
run()
"""


def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_command_leaves_no_output_and_goes_on(kind, planted, cache, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "signature.safetensors"
    with start(SLOW, "sign", planted, "-o", output) as process:
        wait_for(lambda: entries(cache, ".partial"))
        time.sleep(0.4)  # some layers more, and not at any chosen place
        process.send_signal(kind)
        _, said = process.communicate(timeout=60)
    if kind != signal.SIGKILL:
        assert (process.returncode, said.strip()) == (130, "ckpt: error: interrupted")
    else:
        assert process.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []
    assert entries(cache) == []
    assert len(entries(cache, ".partial")) == 1
    ran = run(capsys, "sign", planted, "-o", output)
    assert ran.code == 0
    assert ran.err.startswith("resuming after layer ")
    fresh = tmp_path / "fresh.safetensors"
    assert run(capsys, "sign", planted, "-o", fresh, "--no-cache", "-q").code == 0
    assert output.read_bytes() == fresh.read_bytes()
    assert entries(cache, ".partial") == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_background_job_goes_on_where_the_terminal_is_interrupted(planted, cache):
    """Its shell has it ignore SIGINT, and it is left at that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(SLOW, "sign", planted, "-q")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: entries(cache, ".partial"))
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")
    assert "fingerprint" in out


def test_two_processes_at_once(planted, cache, capsys):
    expected = run(capsys, "sign", planted, "--no-cache", "-q").out
    processes = [start(SLOW, "sign", planted) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, expected)
    assert len(entries(cache)) == 1
    assert {file.path.suffix for file in cache.files()} == {".safetensors"}
    hit = run(capsys, "sign", planted)
    assert (hit.out, hit.err.partition(":")[0]) == (expected, "from the cache")


def test_entries_that_vanish_are_measured_again(model, cache, monkeypatch):
    """Another process has cleared the cache between listing and reading."""
    fresh = ckptforensics.sign(model.path, cache=cache)
    files = cache.files()
    cache.clear()
    with monkeypatch.context() as patch:
        patch.setattr(SignatureCache, "files", lambda _: files)
        assert_same(ckptforensics.sign(model.path, cache=cache), fresh)
    assert is_hit(lambda: ckptforensics.sign(model.path, cache=cache))


def test_a_vanished_file_is_one_clear_error(model):
    checkpoint = ckptforensics.open_checkpoint(model.path)
    model.weights.unlink()
    with pytest.raises(CkptError, match="cannot read the file"):
        signature_keys(checkpoint, Fit(), {})
