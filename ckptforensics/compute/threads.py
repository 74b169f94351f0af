"""Work on all cores: one pool of threads, and the BLAS kept to one thread beside it.

NumPy and the BLAS give the interpreter lock back, so threads are enough. The work is split here and
the BLAS is kept to one thread: its own threads wait for each other by spinning, which costs up to
ten times the time when another process needs a core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from ckptforensics.arrays import Floats

Item = TypeVar("Item")
Result = TypeVar("Result")
Held = TypeVar("Held")

# Elements of a block that, with its temporaries, stays in a core's cache.
BLOCK_ELEMENTS = 1 << 17

# Whether this runs in a thread of the pool: waiting for the pool there could wait for ever.
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def thread_count() -> int:
    """Threads to use: `OMP_NUM_THREADS` if it is set, else the cores this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Shared(Generic[Held]):
    """Something that all callers share, there while any of them uses it.

    Parameters
    ----------
    make : the context manager that is entered for the first and left behind the last
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Held]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._open = ExitStack()

    @contextmanager
    def use(self) -> Iterator[Held]:
        with self._lock:
            if not self._users:
                self._held = self._open.enter_context(self._make())
            self._users += 1
        try:
            yield self._held
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._open.close()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    # A BLAS with a pool for the whole process is restored only by the thread that lowered it, and
    # the last caller to leave need not be the first: a thread of its own does both.
    with ThreadPoolExecutor(1, thread_name_prefix="blas") as keeper:
        limits = keeper.submit(threadpool_limits, 1, "blas").result()
        try:
            yield
        finally:
            keeper.submit(limits.restore_original_limits).result()


def _threads() -> ThreadPoolExecutor:
    # They start as they are needed; the caller works too.
    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="work")


_blas: _Shared[None] = _Shared(_one_blas_thread)
_pool: _Shared[Executor] = _Shared(_threads)


@contextmanager
def all_cores() -> Iterator[None]:
    """Split work by `in_threads` alone: a pool is there, and the BLAS is kept to one thread.

    Any number of callers may be inside at once, nested or in several threads: they share the pool,
    and what the BLAS was set to is restored when the last one leaves.
    """
    from threadpoolctl import threadpool_limits

    # The second limit is for a BLAS on OpenMP, which keeps a number for each thread.
    with _blas.use(), threadpool_limits(1, "blas"), _pool.use():
        yield


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of each item, in their order; the first exception in that order is raised."""
    every = list(items)
    helpers = min(thread_count(), len(every)) - 1
    if helpers < 1 or _inside.get():
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

    with _pool.use() as pool:
        token = _inside.set(True)
        # The caller works too: to hand all of it over and wait would cost a fourth of a
        # millisecond.
        try:
            others = [pool.submit(copy_context().run, help_out) for _ in range(helpers)]
            take_part()
        except BaseException:
            for _ in waiting:  # interrupted: nobody waits for the rest
                pass
            raise
        finally:
            _inside.reset(token)
        for other in others:
            # One that has not begun, since others keep the pool busy, has nothing left to do.
            if not other.cancel():
                other.result()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(every))]


def over_rows(work: Callable[[slice], Result], rows: int, columns: int) -> list[Result]:
    """`work` of consecutive ranges of rows of a matrix, each small enough for a core's cache."""
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    ranges = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    # A thread takes a run of ranges: handing over each one would cost as much as its work.
    parts = in_threads(lambda part: [work(ranges[i]) for i in part], shares(len(ranges)))
    return [result for part in parts for result in part]


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
