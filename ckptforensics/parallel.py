"""Elementwise work on large arrays, on all cores.

NumPy gives the interpreter lock back inside its loops, so threads are enough. Products of matrices
are not done here: the BLAS has threads of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements of a block that, with its temporaries, stays in a core's cache.
_BLOCK_ELEMENTS = 1 << 17


def thread_count() -> int:
    """Threads to use: `OMP_NUM_THREADS` if it is set, else the cores this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of each item, in their order; the first exception in that order is raised."""
    with ThreadPoolExecutor(thread_count(), thread_name_prefix="work") as pool:
        return list(pool.map(work, items))


def over_rows(work: Callable[[slice], Result], rows: int, columns: int) -> list[Result]:
    """`work` of consecutive ranges of rows of a matrix, each small enough for a core's cache."""
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    return in_threads(work, (slice(i, min(i + step, rows)) for i in range(0, rows, step)))
