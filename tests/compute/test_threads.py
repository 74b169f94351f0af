"""Work split over threads gives what one thread gives, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from ckptforensics.compute import products, threads


def blas_threads() -> set[int]:
    return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}


@pytest.mark.parametrize("rows", [1, 2, 6, 1000])
def test_every_row_is_visited_once(count_of_threads: int, rows: int):
    seen = np.zeros(rows, int)

    def visit(part: slice) -> int:
        seen[part] += 1
        return part.start

    starts = threads.over_rows(visit, rows, 50_000)
    assert np.all(seen == 1)
    assert starts == sorted(starts)


def test_results_come_in_order_and_the_first_error_is_raised(count_of_threads: int):
    assert threads.in_threads(lambda i: i * i, range(20)) == [i * i for i in range(20)]

    def fail(i: int) -> None:
        if i > 3:
            raise ValueError(str(i))

    with pytest.raises(ValueError, match="4"):
        threads.in_threads(fail, range(20))


def test_work_within_work_does_not_wait_for_ever(count_of_threads: int):
    """A thread of the pool that asked the pool for help could wait for itself."""
    answers: list[list[int]] = []

    def outer() -> None:
        answers.append(
            threads.in_threads(
                lambda i: sum(threads.in_threads(lambda j: i * j, range(10))), range(10)
            )
        )

    worker = threading.Thread(target=outer, daemon=True)
    worker.start()
    worker.join(30)
    assert answers == [[45 * i for i in range(10)]]


def test_the_blas_is_kept_to_one_thread():
    with threads.all_cores():
        assert blas_threads() == {1}


def test_threads_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.thread_count() == 5
    for nonsense in ("", "0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert threads.thread_count() >= 1


def test_threads_report_what_the_caller_reports(count_of_threads: int):
    def overflow(_: int) -> None:
        np.float32([3e38]) * np.float32([10])

    with np.errstate(over="ignore"):
        threads.in_threads(overflow, range(20))  # a warning is an error
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.in_threads(overflow, range(20))


def test_overlapping_callers_share_the_pool_and_restore_the_blas(monkeypatch):
    """The first to leave must not give the BLAS back while the other one is at work."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    before, running = blas_threads(), threading.active_count()
    one, other = threads.all_cores(), threads.all_cores()
    one.__enter__()
    other.__enter__()
    threads.in_threads(lambda i: i, range(9))
    assert threading.active_count() <= running + 4  # three work, one holds the BLAS
    one.__exit__(None, None, None)
    assert blas_threads() == {1}
    other.__exit__(None, None, None)
    assert blas_threads() == before
    assert threading.active_count() == running


def test_loops_are_asked_for_by_one_caller_alone():
    seen: dict[str, bool] = {}
    with products.loops_compiled(True):
        thread = threading.Thread(target=lambda: seen.update(other=products._asked.get()))
        thread.start()
        thread.join()
        workers = threads.in_threads(lambda _: products._asked.get(), range(50))
    assert seen == {"other": False}
    assert all(workers)
    assert not products._asked.get()


SIDE_BY_SIDE = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_info
import ckptforensics

def state():
    blas = sorted(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
    return blas, threading.active_count()

models = sys.argv[1:]
before = state()
alone = [ckptforensics.sign(model) for model in models]
assert state() == before, (state(), before)
with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(ckptforensics.sign, models * 4))
assert state() == before, (state(), before)
for i, found in enumerate(together):
    assert found.document == alone[i % 2].document
    for name in ("u", "v", "sigma", "residual"):
        assert np.array_equal(getattr(found, name), getattr(alone[i % 2], name)), name
"""


@pytest.mark.parametrize("count", ["2", "5"])
def test_models_signed_side_by_side_are_signed_as_alone(count: str, planted: Path):
    """In a process of its own: what the BLAS is set to here, other tests decide, too."""
    models = [str(planted), str(planted.parent / "zoo" / "seed0")]
    environment = {**os.environ, "OMP_NUM_THREADS": count, "CKPT_CACHE": ""}
    command = [sys.executable, "-c", SIDE_BY_SIDE, *models]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
