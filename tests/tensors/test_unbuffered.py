"""What is read past the operating system's cache is what the files hold, and costs no answer."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.compute import buffers, products
from ckptforensics.compute.products import loops_compiled
from ckptforensics.errors import FormatError
from ckptforensics.findings import measure as measuring
from ckptforensics.layers import reader, stream_blocks
from ckptforensics.linear import Fit
from ckptforensics.sources import Source
from ckptforensics.tensors import FileReader, open_files, unbuffered
from tests.support.models import save, tiny_llama

SHAPES = {"one": (700, 900), "two": (701, 902), "three": (3, 1000, 222), "odd": (802, 901)}


@pytest.fixture(autouse=True)
def every_model_is_large(monkeypatch):
    monkeypatch.setattr(unbuffered, "machine_memory", lambda: 0)
    with loops_compiled(True):
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Tensors that begin and end anywhere, the last where the file ends."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in SHAPES.items()
    }
    path = tmp_path / "model.safetensors"
    save_file({"small": torch.ones(4, 4).to(torch.bfloat16), **tensors}, path)
    drop(path)
    return path


def drop(path: Path) -> None:
    """Let the system forget the file's contents, which it does only once they are written."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opened(path: Path) -> FileReader:
    store = open_files(Source(path, "safetensors", (path,), None))
    drop(path)
    return store


def held(store: FileReader) -> set[str]:
    return set(store._ahead._held)


def require_direct(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except (AttributeError, OSError) as problem:
        pytest.skip(f"this file system cannot be read past the cache: {problem}")


def kept(store: FileReader, name: str) -> np.ndarray:
    rows = store.info(name).shape[0] if len(store.info(name).shape) == 2 else 3000
    matrix = store.kept_rows(name, 0, rows)
    assert matrix is not None
    return np.asarray(matrix[0:rows])


def expected(path: Path, name: str) -> np.ndarray:
    tensor = load_file(path)[name].float()
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


def test_what_is_held_is_what_the_file_holds(file: Path):
    require_direct(file)
    store = opened(file)
    store.prefetch([*SHAPES, "small"], keep=True)
    assert held(store) == set(SHAPES)  # small tensors are mapped
    assert not store._maps
    for name in ("one", "two", "three"):
        np.testing.assert_array_equal(kept(store, name), expected(file, name))
    for name in ("small", "odd"):  # rows of an odd number of elements are decoded
        np.testing.assert_array_equal(store.read(name).reshape(-1), expected(file, name).ravel())
    np.testing.assert_array_equal(store.read_rows("two", 5, 9), expected(file, "two")[5:9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_decoded_is_held_too(tmp_path: Path, monkeypatch, dtype: torch.dtype):
    monkeypatch.setattr(products, "compiled_loops", lambda: None)
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}, path)
    drop(path)
    require_direct(path)
    store = opened(path)
    sizes = {name: store.info(name).nbytes for name in SHAPES}
    store.prefetch(SHAPES, keep=True)
    assert held(store) == set(SHAPES)
    for name in SHAPES:
        assert store.kept_rows(name, 0, 3) is None
        np.testing.assert_array_equal(store.read(name).reshape(-1), expected(path, name).ravel())
    # No more of it than there is room for: the rest is read through the cache.
    drop(path)
    monkeypatch.setattr(unbuffered, "_DECODED_BYTES", sizes["one"])
    store.prefetch(SHAPES, keep=True)
    assert held(store) == {"one"}
    for name in SHAPES:
        np.testing.assert_array_equal(store.read(name).reshape(-1), expected(path, name).ravel())


def test_what_the_cache_has_is_left_there(file: Path):
    store = opened(file)
    file.read_bytes()
    store.prefetch(SHAPES, keep=True)
    assert not held(store)
    np.testing.assert_array_equal(kept(store, "one"), expected(file, "one"))


def test_a_model_that_may_stay_in_the_cache_is_read_through_it(file: Path, monkeypatch):
    monkeypatch.setattr(unbuffered, "machine_memory", lambda: 1 << 40)
    store = opened(file)
    store.prefetch(SHAPES, keep=True)
    assert not held(store)


def test_nothing_is_held_but_for_who_keeps_it(file: Path):
    store = opened(file)
    store.prefetch(SHAPES)
    assert not held(store)


@pytest.mark.parametrize("where", ["open", "preadv"])
def test_a_file_system_that_cannot(file: Path, monkeypatch, where: str):
    original = getattr(os, where)

    def refuse(*arguments):
        # Reading with no flag is of a file that is open for reading past the cache.
        direct = arguments[1] & os.O_DIRECT if where == "open" else len(arguments) == 3
        if direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(*arguments)

    store = opened(file)
    monkeypatch.setattr(os, where, refuse)
    store.prefetch(SHAPES, keep=True)
    assert not held(store)
    np.testing.assert_array_equal(kept(store, "two"), expected(file, "two"))


def test_a_disk_that_fails_is_one_line(file: Path, monkeypatch):
    require_direct(file)

    def fail(descriptor, parts, place, *flags):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = opened(file)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError) as problem:
        store.prefetch(SHAPES, keep=True)
    assert "cannot read the file: Input/output error" in str(problem.value)
    assert problem.value.path == file
    assert problem.value.tensor in SHAPES


def test_a_file_that_was_cut_meanwhile(file: Path):
    require_direct(file)
    store = opened(file)
    last = max((store.info(name) for name in ("one", "two", "three")), key=lambda i: i.offset)
    os.truncate(file, last.offset + 1_000)
    with pytest.raises(FormatError, match=f"ends at byte {last.offset + 1_000:,}") as problem:
        store.prefetch([last.name], keep=True)
    assert problem.value.tensor == last.name


def test_a_file_that_is_replaced_stays_the_one_it_was(file: Path):
    require_direct(file)
    wanted = {name: expected(file, name) for name in ("one", "two")}
    store = opened(file)
    store.prefetch(["one"], keep=True)
    other = file.with_name("other.safetensors")
    save_file({n: torch.zeros_like(x) for n, x in load_file(file).items()}, other)
    drop(other)
    other.replace(file)
    store.prefetch(["two"], keep=True)
    assert held(store) == {"two"}
    np.testing.assert_array_equal(kept(store, "two"), wanted["two"])


def test_descriptors_are_given_back(file: Path):
    require_direct(file)
    store = opened(file)
    store.prefetch(["one"], keep=True)
    (descriptor,) = store._ahead._files.values()
    assert descriptor is not None
    os.fstat(descriptor)
    del store
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_memory_is_used_again_only_when_nobody_has_it(file: Path):
    require_direct(file)
    store = opened(file)
    with buffers.reused():
        store.prefetch(["one"], keep=True)
        first = store.kept_rows("one", 0, 700)
        assert first is not None
        place = first.words.ctypes.data
        for name in ("two", "three", "two", "one"):
            drop(file)
            store.prefetch([name], keep=True)
            assert held(store) == {name}
        assert not np.shares_memory(first.words, store._ahead._held["one"])
        np.testing.assert_array_equal(np.asarray(first[0:700]), expected(file, "one"))
        del first
        store.prefetch([], keep=True)
        assert not held(store)
        drop(file)
        store.prefetch(["one"], keep=True)
        found = store._ahead._held["one"].ctypes.data
        store.prefetch([], keep=True)
        drop(file)
        store.prefetch(["one"], keep=True)
        assert store._ahead._held["one"].ctypes.data in (place, found)


def test_the_measurements_are_those_of_mapped_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reader, "KEPT_ELEMENTS", 0)
    monkeypatch.setattr(unbuffered, "_SMALLEST", 0)
    monkeypatch.setattr(measuring, "LARGE_MODEL", 0)
    # A file this small is in the cache once its embeddings were read.
    monkeypatch.setattr(unbuffered, "_in_cache", lambda info: False)
    folder = save(tiny_llama(3).to(torch.bfloat16), tmp_path / "model")
    path = folder / "model.safetensors"
    require_direct(path)
    found = []
    read: list[set[str]] = []
    original = unbuffered.Unbuffered.read

    def watched(self, *arguments):
        read.append(original(self, *arguments))
        return read[-1]

    monkeypatch.setattr(unbuffered.Unbuffered, "read", watched)
    for memory in (0, 1 << 40):
        monkeypatch.setattr(unbuffered, "machine_memory", lambda memory=memory: memory)
        read.clear()
        checkpoint = ckptforensics.open_checkpoint(folder)
        drop(path)
        found.append(measuring.measure(checkpoint, Fit(), eigenpairs=None))
        names = set().union(*read)
        assert ("model.layers.1.mlp.up_proj.weight" in names) == (memory == 0)
        assert not checkpoint.store._ahead._held
    np.testing.assert_array_equal(found[0].u, found[1].u)
    np.testing.assert_array_equal(found[0].sigma, found[1].sigma)
    for one, other in zip(*(m.layers for m in found), strict=True):
        np.testing.assert_array_equal(one.after.norms, other.after.norms)


def test_what_is_held_is_let_go_where_the_caller_fails(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(unbuffered, "_SMALLEST", 0)
    folder = save(tiny_llama(3).to(torch.bfloat16), tmp_path / "model")
    require_direct(folder / "model.safetensors")
    checkpoint = ckptforensics.open_checkpoint(folder)
    drop(folder / "model.safetensors")
    blocks = stream_blocks(checkpoint, keep=True)
    next(blocks)
    blocks.close()
    assert not checkpoint.store._ahead._held
