"""Memory of large arrays, used again while the blocks of a model follow each other.

A large array that is new costs a fault for every page: as much time as decoding the weights that
fill it (docs/performance.md). Blocks have the same shapes, so the arrays of one serve the next.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats

# Below this, memory comes from what the process holds anyway.
_LARGE_BYTES = 1 << 20
_FLOAT_BYTES = 4


class _Pool:
    """Memory that nobody uses, by its size; nothing is kept but between `enter` and `leave`."""

    def __init__(self) -> None:
        self._idle: dict[int, list[Bytes]] = {}
        self._users = 0
        # An array may be given back by the garbage collector, in the middle of anything.
        self._lock = threading.RLock()

    def enter(self) -> None:
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._idle.clear()

    def take(self, nbytes: int) -> Bytes | None:
        """Idle memory of this size; where there is none all other is let go, for it may not fit."""
        with self._lock:
            idle = self._idle.get(nbytes)
            if idle:
                return idle.pop()
            self._idle.clear()
            return None

    def give(self, memory: Bytes) -> None:
        with self._lock:
            if self._users:
                self._idle.setdefault(memory.nbytes, []).append(memory)


_pool = _Pool()


@contextmanager
def reused() -> Iterator[None]:
    """Keep the memory of large arrays made by `empty` for others of the same size."""
    _pool.enter()
    try:
        yield
    finally:
        _pool.leave()


def empty(shape: tuple[int, ...]) -> Floats:
    """An array whose values are not set, in used memory where `reused` is in force.

    Its memory goes back when the array and all views of it are gone.
    """
    import numpy as np

    nbytes = _FLOAT_BYTES * math.prod(shape)
    if nbytes < _LARGE_BYTES:
        return np.empty(shape, np.float32)
    memory = _pool.take(nbytes)
    if memory is None:
        memory = np.empty(nbytes, np.uint8)
    # A view refers to the array at the end of its chain of bases. With a memoryview between the
    # two that is `flat`, not `memory`: whatever uses the memory keeps `flat`.
    flat = np.frombuffer(memory.data, np.float32)
    weakref.finalize(flat, _pool.give, memory).atexit = False
    return flat.reshape(shape)
