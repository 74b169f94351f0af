"""All tensors of a checkpoint's files, whichever file holds them, read by row ranges."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ckptforensics.compute import buffers
from ckptforensics.errors import FormatError, TensorError
from ckptforensics.sources import Fetcher, Source
from ckptforensics.tensors.containers.gguf import read_gguf, require_whole_split
from ckptforensics.tensors.containers.safetensors import LARGEST_HEADER, read_safetensors
from ckptforensics.tensors.containers.torchzip import Fetch, read_torch
from ckptforensics.tensors.damage import Watch
from ckptforensics.tensors.info import Container, TensorInfo, cut_within, matrix_shape
from ckptforensics.tensors.reader import BLOCK_ELEMENTS, TensorReader, require_finite
from ckptforensics.tensors.unbuffered import Unbuffered

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats
    from ckptforensics.compute.bf16 import Bf16Matrix

# Bytes asked for at once to bring a local file into the operating system's cache: Linux does not
# heed more than a disk takes in one request.
_READ_AHEAD = 1 << 17
# Bytes of a file that are decoded before their pages are given back.
_MAPPED = 1 << 26
_HEADERS_AT_ONCE = 8
# The header of a remote GGUF file is read on by this many bytes, for a small file by this share of
# it: what is read too much is little in both cases.
_GGUF_HEADER_STEP = 1 << 22
_GGUF_HEADER_SHARE = 128
_GGUF_SHORTEST_STEP = 1 << 12


def open_files(source: Source) -> FileReader:
    """Parse the headers of all files of `source`.

    Raises
    ------
    FormatError
        if a file breaks its format, or the files and the index contradict each other.
    NothingAnalysable
        if a PyTorch file is of a legacy format or holds no state dict.
    """
    if source.remote is None:
        containers = [_READERS[source.container](path) for path in source.files]
    else:
        containers = _read_headers(source, source.remote)
    if source.container == "gguf":
        require_whole_split(containers)
    return FileReader(containers, source.weight_map, source.remote)


class FileReader(TensorReader):
    """The tensors of weight files as they are stored, memory-mapped.

    Parameters
    ----------
    containers : the parsed files
    weight_map : file of each tensor, as an index promises it
    remote : fetches ranges of files that are not whole on this machine
    """

    watch: Watch

    def __init__(
        self,
        containers: list[Container],
        weight_map: Mapping[str, Path] | None = None,
        remote: Fetcher | None = None,
    ) -> None:
        self.containers = tuple(containers)
        self.metadata = containers[0].metadata
        tensors: dict[str, TensorInfo] = {}
        for container in containers:
            for name, info in container.tensors.items():
                if name in tensors:
                    raise FormatError(
                        f"the tensor is also in {tensors[name].path.name}",
                        path=container.path,
                        tensor=name,
                    )
                tensors[name] = info
        tensors |= _shared(containers, tensors)
        for name, path in (weight_map or {}).items():
            if name not in tensors or tensors[name].path != path:
                raise FormatError(
                    "the index promises a tensor the shard lacks",
                    path=path,
                    tensor=name,
                    hint="download the checkpoint again",
                )
        self.tensors = MappingProxyType(tensors)
        self._remote = remote
        self._ahead = Unbuffered(sum(info.nbytes for info in tensors.values()))
        self._maps: dict[Path, mmap.mmap] = {}
        # A matrix may be given back by the garbage collector, in the middle of anything.
        self._lock = threading.RLock()
        self._finite: set[tuple[str, int, int]] = set()
        paths = [container.path for container in containers]
        self.watch = Watch(paths, self._bytes, local=remote is None)

    def renamed(self, names: Mapping[str, str]) -> FileReader:
        """The same tensors under other names, each by its stored one."""
        reader = FileReader(list(self.containers), remote=self._remote)
        reader.tensors = MappingProxyType(
            {names[name]: replace(info, name=names[name]) for name, info in self.tensors.items()}
        )
        return reader

    def recipe(self) -> str:
        """See `TensorReader.recipe`: nothing."""
        return ""

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """See `TensorReader.read_rows`."""
        from ckptforensics.tensors.dtypes import decoder

        info = self.info(name)
        columns, rows = matrix_shape(info)
        if not 0 <= start <= stop <= rows:
            raise TensorError(
                f"rows {start} to {stop} of {rows} asked for", path=info.path, tensor=name
            )
        if info.unreadable:
            raise TensorError(info.unreadable, path=info.path, tensor=name)
        out = buffers.empty((stop - start, columns))
        if out.size == 0:
            return out
        decode = decoder(info.dtype, path=info.path, tensor=name)
        row_bytes = info.nbytes // rows
        step = max(1, BLOCK_ELEMENTS // columns)
        self.prefetch_rows(name, [(start, stop)])
        mapped = start
        for first in range(start, stop, step):
            last = min(first + step, stop)
            raw = self._bytes(info, first * row_bytes, (last - first) * row_bytes)
            block = out[first - start : last - start]
            decode(raw, block.reshape(-1))
            require_finite(block, info, first)
            if last == stop or (last - mapped) * row_bytes >= _MAPPED:
                begin, count = mapped * row_bytes, (last - mapped) * row_bytes
                self.watch.see(info, begin, self._bytes(info, begin, count), finite=True)
                self._release(info, begin, count)
                mapped = last
        return out

    def kept_rows(self, name: str, start: int, stop: int) -> Bf16Matrix | None:
        """See `TensorReader.kept_rows`; without numba, and of remote files, always None."""
        info = self.info(name)
        columns, rows = matrix_shape(info)
        first = info.offset + start * columns * 2
        if not self._keeps(info) or not 0 <= start < stop <= rows:
            return None
        import numpy as np

        from ckptforensics.compute.bf16 import Bf16Matrix

        count = (stop - start) * columns * 2
        words = self._bytes(info, first - info.offset, count).view(np.uint32)
        matrix = Bf16Matrix(words.reshape(stop - start, -1))
        release = weakref.finalize(matrix, self._release, info, first - info.offset, count)
        release.atexit = False
        if (name, start, stop) not in self._finite:  # experts are read again and again
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(matrix.column_squares.sum())
            step = max(1, BLOCK_ELEMENTS // columns)
            for begin in () if finite else range(0, len(matrix), step):
                require_finite(matrix[begin : begin + step], info, start + begin)
            self.watch.see(info, first - info.offset, words.view(np.uint8), finite=True)
            self._finite.add((name, start, stop))
        return matrix

    def prefetch(self, names: Iterable[str], *, keep: bool = False) -> None:
        """See `TensorReader.prefetch`."""
        wanted = [self.info(name) for name in names]
        held: set[str] = set()
        if keep and self._remote is None:
            held = self._ahead.read(wanted, self._keeps)
        ranges: dict[Path, list[tuple[int, int]]] = {}
        for info in wanted:
            if info.name not in held:
                ranges.setdefault(info.path, []).append((info.offset, info.nbytes))
        if self._remote is not None:
            self._remote.fetch(ranges)
            return
        for path, places in ranges.items():
            _read_ahead(path, sorted(places))

    def _keeps(self, info: TensorInfo) -> bool:
        """Whether `kept_rows` leaves the tensor as it is stored."""
        from ckptforensics.compute.products import compiled_loops

        odd = matrix_shape(info)[0] % 2 or info.offset % 4
        if info.dtype != "BF16" or info.unreadable or odd or self._remote is not None:
            return False
        return compiled_loops() is not None

    def prefetch_rows(self, name: str, rows: Iterable[tuple[int, int]]) -> None:
        """See `TensorReader.prefetch_rows`."""
        info = self.info(name)
        count = matrix_shape(info)[1]
        if self._remote is None or info.unreadable or count == 0:
            return
        width = info.nbytes // count
        wanted = [(info.offset + a * width, (b - a) * width) for a, b in rows]
        self._remote.fetch({info.path: wanted})

    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """See `TensorReader.parts`."""
        return (self.info(name),)

    def stored_bytes(self, name: str) -> Bytes:
        """See `TensorReader.stored_bytes`."""
        info = self.info(name)
        if info.unreadable:
            raise TensorError(info.unreadable, path=info.path, tensor=name)
        self.prefetch([name])
        raw = self._bytes(info, 0, info.nbytes)
        self.watch.see(info, 0, raw)
        return raw

    def release(self, name: str) -> None:
        """See `TensorReader.release`."""
        info = self.info(name)
        self._release(info, 0, info.nbytes)

    def _bytes(self, info: TensorInfo, begin: int, count: int) -> Bytes:
        import numpy as np

        held = self._ahead.bytes(info, begin, count)
        if held is not None:
            return held
        mapped, end = self._map(info.path), info.offset + begin + count
        # What a mapping has beyond the end of its file cannot be read: it would end the process.
        there = min(mapped.size(), len(mapped))
        if there < end:
            raise cut_within(info, there)
        return np.frombuffer(mapped, np.uint8, count, info.offset + begin)

    def _map(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path not in self._maps:
                try:
                    with path.open("rb") as file:
                        self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except OSError as problem:
                    reason = f"cannot read the file: {problem.strerror}"
                    raise FormatError(reason, path=path) from None
            return self._maps[path]

    def _release(self, info: TensorInfo, begin: int, count: int) -> None:
        """Give mapped pages back, so that the resident set does not grow with the file."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # not on this operating system
            return
        first = (info.offset + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        last = info.offset + begin + count
        self._map(info.path).madvise(mmap.MADV_DONTNEED, first, last - first)


def _shared(
    containers: Iterable[Container], tensors: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Tensors that `safetensors.torch.save_model` left out because another holds the same values.

    It writes the name of each and of that other into the metadata.
    """
    return {
        name: replace(container.tensors[kept], name=name)
        for container in containers
        if container.kind == "safetensors"
        for name, kept in container.metadata.items()
        if name not in tensors and kept in container.tensors
    }


def _read_ahead(path: Path, ranges: list[tuple[int, int]]) -> None:
    # A file that cannot be read is reported by whoever needs its bytes.
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        for begin, count in ranges:
            for at in range(begin, begin + count, _READ_AHEAD):
                _into_cache(file, at, min(_READ_AHEAD, begin + count - at))


def _into_cache(file: FileIO, begin: int, count: int) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
        # Unlike reading, this neither copies nor waits.
        os.posix_fadvise(file.fileno(), begin, count, os.POSIX_FADV_WILLNEED)
    else:
        file.seek(begin)
        file.read(count)


def _read_headers(source: Source, remote: Fetcher) -> list[Container]:
    """The headers of remote files, several at a time: each takes a few requests in turn."""
    read = _REMOTE_READERS[source.container]

    def read_one(path: Path) -> Container:
        return read(path, lambda ranges: remote.fetch({path: ranges}))

    with ThreadPoolExecutor(_HEADERS_AT_ONCE, thread_name_prefix="header") as pool:
        try:
            return list(pool.map(read_one, source.files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            remote.cancel()
            raise


def _read_remote_safetensors(path: Path, fetch: Fetch) -> Container:
    fetch([(0, 8)])
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length <= LARGEST_HEADER:  # the reader refuses a longer one
        fetch([(8, length)])
    return read_safetensors(path)


def _read_remote_gguf(path: Path, fetch: Fetch) -> Container:
    """A GGUF header does not say how long it is: read on until it parses."""
    size = path.stat().st_size
    step = min(_GGUF_HEADER_STEP, max(size // _GGUF_HEADER_SHARE, _GGUF_SHORTEST_STEP))
    reach, begin = 0, size
    while reach < min(begin, size):
        reach += step
        fetch([(0, reach)])
        with contextlib.suppress(FormatError):
            # What was not fetched reads as zeros, which may parse: then data begin too late.
            begin = min((t.offset for t in read_gguf(path).tensors.values()), default=size)
    return read_gguf(path)  # where the header is wrong, this reports it


_READERS: Mapping[str, Callable[[Path], Container]] = MappingProxyType(
    {"safetensors": read_safetensors, "torch": read_torch, "gguf": read_gguf}
)
_REMOTE_READERS: Mapping[str, Callable[[Path, Fetch], Container]] = MappingProxyType(
    {
        "safetensors": _read_remote_safetensors,
        "torch": read_torch,
        "gguf": _read_remote_gguf,
    }
)
