"""Work on large arrays, on all cores.

NumPy and the BLAS give the interpreter lock back, so threads are enough. The work is split here and
the BLAS is kept to one thread: its own threads wait for each other by spinning, which costs up to
ten times the time when another process needs a core (docs/performance.md).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from ckptforensics.operator import Floats, Operator

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements of a block that, with its temporaries, stays in a core's cache.
_BLOCK_ELEMENTS = 1 << 17
# Multiplications below which handing work to another thread costs more than it saves.
_WORTH_SPLITTING = 1 << 21
# Columns that are multiplied one by one.
_FEW = 3

_inside = threading.local()


def thread_count() -> int:
    """Threads to use: `OMP_NUM_THREADS` if it is set, else the cores this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS to one thread; products are split by `multiply` and `multiply_adjoint`."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of each item, in their order; the first exception in that order is raised."""
    every = list(items)
    threads = thread_count()
    # Within a thread of the pool, waiting for the pool could wait for ever.
    if threads == 1 or len(every) == 1 or getattr(_inside, "pool", False):
        return [work(item) for item in every]
    # What NumPy reports is decided for each thread; the pool's follow the caller.
    reported = np.geterr()

    def as_caller(item: Item) -> Result:
        with np.errstate(**reported):
            return work(item)

    return list(_pool(threads).map(as_caller, every))


def over_rows(work: Callable[[slice], Result], rows: int, columns: int) -> list[Result]:
    """`work` of consecutive ranges of rows of a matrix, each small enough for a core's cache."""
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    ranges = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    # A thread takes a run of ranges: handing over each one would cost as much as its work.
    parts = in_threads(lambda part: [work(ranges[i]) for i in part], shares(len(ranges)))
    return [result for part in parts for result in part]


def multiply(matrix: Floats | Operator, x: Floats) -> Floats:
    """matrix @ x, for a large matrix."""
    if isinstance(matrix, Operator):
        return matrix.matmat(x)
    if matrix.size * x.shape[1] < _WORTH_SPLITTING:
        return matrix @ x
    if 1 < x.shape[1] <= _FEW:
        return _multiply_few(matrix, x)
    out = np.empty((matrix.shape[0], x.shape[1]), np.float32)

    def part(rows: range) -> None:
        np.matmul(matrix[rows.start : rows.stop], x, out=out[rows.start : rows.stop])

    in_threads(part, shares(matrix.shape[0]))
    return out


def _multiply_few(matrix: Floats, x: Floats) -> Floats:
    """matrix @ x for a few columns, one after another while rows of the matrix are in the cache.

    A product of matrices would take as long as one with ten times the columns.
    """
    columns = np.ascontiguousarray(x.T)
    out = np.empty((x.shape[1], matrix.shape[0]), np.float32)

    def part(rows: slice) -> None:
        for column, result in zip(columns, out, strict=True):
            np.matmul(matrix[rows], column, out=result[rows])

    over_rows(part, *matrix.shape)
    return out.T


def multiply_adjoint(matrix: Floats | Operator, y: Floats) -> Floats:
    """matrix.T @ y, for a large matrix."""
    if isinstance(matrix, Operator):
        return matrix.rmatmat(y)
    if matrix.size * y.shape[1] < _WORTH_SPLITTING:
        return matrix.T @ y

    def part(rows: range) -> Floats:
        some: Floats = matrix[rows.start : rows.stop].T @ y[rows.start : rows.stop]
        return some

    parts = in_threads(part, shares(matrix.shape[0]))
    return sum(parts[1:], parts[0])


def multiply_and_back(matrix: Floats | Operator, x: Floats, added: Floats) -> tuple[Floats, Floats]:
    """y = added + matrix @ x and matrix.T @ y, reading a large matrix once."""
    if isinstance(matrix, Operator):
        return matrix.round_trip(x, added)
    y = added.copy()
    if matrix.size * x.shape[1] < _WORTH_SPLITTING:
        y += matrix @ x
        return y, matrix.T @ y
    step = max(1, _BLOCK_ELEMENTS * 2 // matrix.shape[1])

    def part(rows: range) -> Floats:
        back = np.zeros((matrix.shape[1], x.shape[1]), np.float32)
        for begin in range(rows.start, rows.stop, step):
            some = slice(begin, min(begin + step, rows.stop))
            # The second product finds the rows in the cache.
            y[some] += matrix[some] @ x
            back += matrix[some].T @ y[some]
        return back

    parts = in_threads(part, shares(matrix.shape[0]))
    return y, sum(parts[1:], parts[0])


def shares(count: int) -> list[range]:
    """The numbers up to `count` in as many runs as there are threads."""
    threads = min(thread_count(), max(1, count))
    ends = [count * i // threads for i in range(threads + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    def mark() -> None:
        _inside.pool = True

    return ThreadPoolExecutor(threads, thread_name_prefix="work", initializer=mark)
