"""Work on large arrays, on all cores.

NumPy and the BLAS give the interpreter lock back, so threads are enough. The work is split here and
the BLAS is kept to one thread: its own threads wait for each other by spinning, which costs up to
ten times the time when another process needs a core. A matrix times one to three vectors is the
task of compiled loops, where numba is installed (docs/performance.md).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from ckptforensics.arrays import Array, Floats
from ckptforensics.compute.operator import Operator

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements of a block that, with its temporaries, stays in a core's cache.
_BLOCK_ELEMENTS = 1 << 17
# Multiplications below which handing work to another thread costs more than it saves.
_WORTH_SPLITTING = 1 << 21
# With so few columns, but more than one, the BLAS multiplies an adjoint fast on few rows only.
_NARROW = 8
# Columns that the compiled loops multiply at once.
FEW = 3

_inside = threading.local()
# How many ask for the compiled loops at the moment.
_asked = 0


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
    helpers = min(thread_count(), len(every)) - 1
    # Within a thread of the pool, waiting for the pool could wait for ever.
    if helpers < 1 or getattr(_inside, "pool", False):
        return [work(item) for item in every]
    # What NumPy reports is decided for each thread; the pool's follow the caller.
    reported = np.geterr()
    waiting = iter(range(len(every)))
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def take_part() -> None:
        for i in waiting:
            try:
                results[i] = work(every[i])
            except Exception as error:
                errors[i] = error

    def help_out() -> None:
        with np.errstate(**reported):
            take_part()

    # The caller works too: to hand all of it over and wait would cost a fourth of a millisecond.
    _inside.pool = True
    try:
        others = [_pool(helpers).submit(help_out) for _ in range(helpers)]
        take_part()
    except BaseException:
        for _ in waiting:  # interrupted: nobody waits for the rest
            pass
        raise
    finally:
        _inside.pool = False
    for other in others:
        other.result()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(every))]


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
    count = x.shape[1]
    if matrix.size * count < _WORTH_SPLITTING:
        return matrix @ x
    if (loops := _loops_for(matrix, x)) is not None:
        return loop_there(loops.multiply, [matrix], few_rows(x))[0][:count].T
    x = np.asfortranarray(x) if count < FEW else in_fours(x)
    out = np.empty((matrix.shape[0], x.shape[1]), np.float32)

    def part(rows: range) -> None:
        np.matmul(matrix[rows.start : rows.stop], x, out=out[rows.start : rows.stop])

    in_threads(part, shares(len(matrix)))
    return out[:, :count]


def multiply_adjoint(matrix: Floats | Operator, y: Floats) -> Floats:
    """matrix.T @ y, for a large matrix."""
    if isinstance(matrix, Operator):
        return matrix.rmatmat(y)
    count = y.shape[1]
    if matrix.size * count < _WORTH_SPLITTING:
        return matrix.T @ y
    if (loops := _loops_for(matrix, y)) is not None:
        shape = FEW, matrix.shape[1]
        return loop_back(loops.multiply_adjoint, [matrix], [y], shape)[:count].T
    if not 1 < count <= _NARROW:

        def whole(back: Floats, begin: int, end: int) -> None:
            back += matrix[begin:end].T @ y[begin:end]

        return gathered((matrix.shape[1], count), whole, len(matrix))
    step = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    yt = np.ascontiguousarray(y.T)

    def part(back: Floats, begin: int, end: int) -> None:
        for first in range(begin, end, step):
            some = slice(first, min(first + step, end))
            back += yt[:, some] @ matrix[some]

    return gathered((count, matrix.shape[1]), part, len(matrix)).T


def multiply_and_back(matrix: Floats | Operator, x: Floats, added: Floats) -> tuple[Floats, Floats]:
    """y = added + matrix @ x and matrix.T @ y, reading a large matrix once."""
    if isinstance(matrix, Operator):
        return matrix.round_trip(x, added)
    if matrix.size * x.shape[1] < _WORTH_SPLITTING:
        y = added + matrix @ x
        return y, matrix.T @ y
    if _loops_for(matrix, x) is not None:  # the cache is no faster for them than the memory
        y = added + multiply(matrix, x)
        return y, multiply_adjoint(matrix, y)
    count = x.shape[1]
    x, added = (np.asfortranarray(x), added) if count < FEW else (in_fours(x), in_fours(added))
    yt = added.T.copy(order="C")
    step = max(1, _BLOCK_ELEMENTS // matrix.shape[1])

    def part(back: Floats, begin: int, end: int) -> None:
        for first in range(begin, end, step):
            some = slice(first, min(first + step, end))
            yt[:, some] += (matrix[some] @ x).T
            # The second product finds the rows in the cache.
            back += yt[:, some] @ matrix[some]

    back = gathered((x.shape[1], matrix.shape[1]), part, len(matrix))
    return yt[:count].T, back[:count].T


@cache
def compiled_loops() -> Any | None:
    """The module `kernels`; None where numba does not work or numbers are stored reversed."""
    if sys.byteorder != "little":
        return None
    try:
        import numba

        from ckptforensics.compute import kernels
    except Exception:  # not installed, not for this NumPy, or a library it needs is broken
        return None
    return None if getattr(numba.config, "DISABLE_JIT", 0) else kernels


@contextmanager
def loops_compiled(worth_it: bool) -> Iterator[None]:
    """Multiply large arrays by the compiled loops too, if loading them is worth it."""
    global _asked
    _asked += worth_it
    try:
        yield
    finally:
        _asked -= worth_it


def _loops_for(matrix: Floats, x: Floats) -> Any | None:
    """The compiled loops, where they are asked for and faster than the BLAS."""
    usable = _asked and x.shape[1] <= FEW and matrix.flags.c_contiguous
    return compiled_loops() if usable else None


def few_rows(x: Floats) -> Floats:
    """The columns, at most `FEW`, as so many rows; those that are lacking are 0."""
    rows = np.zeros((FEW, x.shape[0]), np.float32)
    rows[: x.shape[1]] = x.T
    return rows


def in_fours(x: Floats) -> Floats:
    """The columns with zeros behind them: the BLAS takes four at a time, and longer for fewer."""
    lacking = -x.shape[1] % 4
    return np.pad(x, ((0, 0), (0, lacking))) if lacking else x


def loop_there(loop: Any, matrices: Sequence[Array], x: Floats) -> list[Floats]:
    """(FEW, rows) products of matrices of one shape; x is laid out as the loop wants it."""
    out = [np.empty((FEW, len(matrix)), np.float32) for matrix in matrices]

    def part(rows: range) -> None:
        for matrix, y in zip(matrices, out, strict=True):
            loop(matrix, x, y, rows.start, rows.stop)

    in_threads(part, shares(len(matrices[0])))
    return out


def loop_back(
    loop: Any, matrices: Sequence[Array], y: Sequence[Floats], shape: tuple[int, int]
) -> Floats:
    """Sum of the adjoints' products, each matrix with its columns, laid out in this shape."""
    rows = [few_rows(columns) for columns in y]

    def part(back: Floats, begin: int, end: int) -> None:
        for matrix, some in zip(matrices, rows, strict=True):
            loop(matrix, some, back, begin, end)

    return gathered(shape, part, len(matrices[0]))


def gathered(
    shape: tuple[int, int], work: Callable[[Floats, int, int], None], count: int
) -> Floats:
    """Sum of what `work` adds to zeros for each thread's share of the numbers up to `count`."""

    def part(share: range) -> Floats:
        sums = np.zeros(shape, np.float32)
        work(sums, share.start, share.stop)
        return sums

    parts = in_threads(part, shares(count))
    return sum(parts[1:], parts[0])


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
