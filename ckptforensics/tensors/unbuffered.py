"""Reading ahead past the operating system's cache, for models that would not stay in it.

What goes through the cache costs the processor a page at a time: to find memory for it, to map it
and, on a virtual machine, to have it given by the host. Read past it, into the memory of the block
before, 13 GB cost a third of that, and push nothing else out of the cache (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ckptforensics.compute import buffers
from ckptforensics.compute.memory import machine_memory
from ckptforensics.errors import FormatError
from ckptforensics.tensors.info import TensorInfo, cut_within

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes

# A model that takes less of the memory than this may stay in the cache for the next command.
_SHARE = 4
# Where a file's bytes and the memory for them must begin and end.
_ALIGNED = 4096
_AT_ONCE = 1 << 23
_THREADS = 2
# Bytes that may be held of tensors that are decoded, beside the decoded block: a layer of 7B shape
# in BF16 takes 337 MB.
_DECODED_BYTES = 3 << 27
# Places of a tensor that are asked whether the cache has them, evenly spread.
_PLACES = 8
_SMALLEST = 1 << 20


class Unbuffered:
    """The bytes of the tensors that were read ahead last.

    Parameters
    ----------
    nbytes : of all files; where they take less than a quarter of the machine's memory, or the
        system cannot read past its cache, nothing is ever read
    """

    def __init__(self, nbytes: int) -> None:
        self._worth = _SHARE * nbytes > (machine_memory() or 0)
        self._held: dict[str, Bytes] = {}
        # Open as long as this is: a file that is replaced meanwhile stays the one it was.
        self._files: dict[Path, int | None] = {}
        weakref.finalize(self, _close, self._files)
        self._lock = threading.Lock()

    def read(self, wanted: Iterable[TensorInfo], kept: Callable[[TensorInfo], bool]) -> set[str]:
        """Hold these tensors in place of those before; what the cache has already is left there.

        The memory of one that is held no more goes back when nothing refers to it any longer.

        Parameters
        ----------
        wanted : each is read once; small ones are left to the cache
        kept : whether a tensor stays as it is stored. The others are decoded into as much memory
            again or more: of them only the first few hundred megabytes are held

        Returns
        -------
        names of those that are held now

        Raises
        ------
        FormatError
            if a file cannot be read.
        """
        with self._lock:
            self._held.clear()
        if not self._worth:
            return set()
        large = [i for i in wanted if i.nbytes >= _SMALLEST and not i.unreadable]
        room = _DECODED_BYTES
        found: dict[str, Bytes] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            reads = []
            for info in large:
                if info.path not in self._files:
                    self._files[info.path] = _opened(info.path)
                descriptor = self._files[info.path]
                needed = 0 if kept(info) else info.nbytes
                if descriptor is None or needed > room or _in_cache(info):
                    continue
                room -= needed
                begin = info.offset // _ALIGNED * _ALIGNED
                end = -(-(info.offset + info.nbytes) // _ALIGNED) * _ALIGNED
                memory = _memory_for(info.nbytes)[: end - begin]
                at = info.offset - begin
                found[info.name] = memory[at : at + info.nbytes]
                for first in range(0, end - begin, _AT_ONCE):
                    # The last block of a file may end before the memory for it does.
                    part = memory[first : first + _AT_ONCE]
                    least = min(len(part), at + info.nbytes - first)
                    place = begin + first
                    reads.append((info, pool.submit(_read, descriptor, part, place, least, info)))
            for info, one in reads:
                if not one.result():
                    found.pop(info.name, None)
        with self._lock:
            self._held = found
        return set(found)

    def bytes(self, info: TensorInfo, begin: int, count: int) -> Bytes | None:
        """Bytes of a tensor from its byte `begin` on; None where it is not held."""
        with self._lock:
            held = self._held.get(info.name)
        return None if held is None else held[begin : begin + count]


def _opened(path: Path) -> int | None:
    """A descriptor that reads past the cache; None where there is no such thing."""
    # Not on macOS and Windows, nor on every file system. A file that cannot be opened at all is
    # reported by whoever maps it.
    with contextlib.suppress(AttributeError, OSError):
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    return None


def _close(files: dict[Path, int | None]) -> None:
    for descriptor in files.values():
        if descriptor is not None:
            os.close(descriptor)


def _in_cache(info: TensorInfo) -> bool:
    """Whether the operating system has the tensor in its cache, by some places of it."""
    step = max(1, info.nbytes // _PLACES)
    try:
        with info.path.open("rb", buffering=0) as file:
            for at in range(info.offset, info.offset + info.nbytes, step):
                os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT)
    except (AttributeError, OSError):  # it would have to wait, or cannot say
        return False
    return True


def _memory_for(nbytes: int) -> Bytes:
    """Memory from the beginning of a page on, for as many bytes and what lies around them.

    As much for every tensor of one size, so that those of the next block find it.
    """
    import numpy as np

    flat = buffers.empty(((nbytes + 3 * _ALIGNED) // 4,)).view(np.uint8)
    return flat[-flat.ctypes.data % _ALIGNED :]


def _read(descriptor: int, memory: Bytes, place: int, least: int, info: TensorInfo) -> bool:
    """Fill the memory from this place of the file, with no fewer bytes than `least`.

    False where the file system opens files in this way but does not read them.
    """
    got = 0
    try:
        while got < least and (more := os.preadv(descriptor, [memory.data[got:]], place + got)):
            got += more
    except OSError as problem:
        if problem.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        reason = f"cannot read the file: {problem.strerror}"
        raise FormatError(reason, path=info.path, tensor=info.name) from None
    if got < least:
        raise cut_within(info, place + got)
    return True
