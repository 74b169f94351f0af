"""Work split over threads gives what one thread gives."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ckptforensics.compute import products

THREADS = [1, 2, 3, 7]


@pytest.fixture(params=THREADS)
def threads(request, monkeypatch) -> int:
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param


@pytest.mark.parametrize(
    ("rows", "columns", "count"),
    [
        (3, 5, 2),
        (2000, 1100, 1),
        (2000, 1100, 2),
        (1100, 2000, 3),
        (1100, 2000, 5),
        (1100, 2000, 9),
    ],
)
def test_products(threads: int, rows: int, columns: int, count: int):
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((rows, columns), dtype=np.float32)
    x = generator.standard_normal((columns, count), dtype=np.float32)
    y = generator.standard_normal((rows, count), dtype=np.float32)
    exact = matrix.astype(np.float64)
    given = [array.copy() for array in (matrix, x, y)]
    for found, expected in (
        (products.multiply(matrix, x), exact @ x),
        (products.multiply_adjoint(matrix, y), exact.T @ y),
        (products.multiply_and_back(matrix, x, y)[0], exact @ x + y),
        (products.multiply_and_back(matrix, x, y)[1] / rows, exact.T @ (exact @ x + y) / rows),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-3)
    for array, before in zip((matrix, x, y), given, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("rows", [1, 2, 6, 1000])
def test_every_row_is_visited_once(threads: int, rows: int):
    seen = np.zeros(rows, int)

    def visit(part: slice) -> int:
        seen[part] += 1
        return part.start

    starts = products.over_rows(visit, rows, 50_000)
    assert np.all(seen == 1)
    assert starts == sorted(starts)


def test_results_come_in_order_and_the_first_error_is_raised(threads: int):
    assert products.in_threads(lambda i: i * i, range(20)) == [i * i for i in range(20)]

    def fail(i: int) -> None:
        if i > 3:
            raise ValueError(str(i))

    with pytest.raises(ValueError, match="4"):
        products.in_threads(fail, range(20))


def test_work_within_work_does_not_wait_for_ever(threads: int):
    """A thread of the pool that asked the pool for help could wait for itself."""
    answers: list[list[int]] = []

    def outer() -> None:
        answers.append(
            products.in_threads(
                lambda i: sum(products.in_threads(lambda j: i * j, range(10))), range(10)
            )
        )

    worker = threading.Thread(target=outer, daemon=True)
    worker.start()
    worker.join(30)
    assert answers == [[45 * i for i in range(10)]]


def test_the_blas_is_kept_to_one_thread():
    from threadpoolctl import threadpool_info

    with products.one_blas_thread():
        threads = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
    assert set(threads) == {1}


def test_threads_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert products.thread_count() == 5
    for nonsense in ("", "0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert products.thread_count() >= 1


def test_threads_report_what_the_caller_reports(threads: int):
    def overflow(_: int) -> None:
        np.float32([3e38]) * np.float32([10])

    with np.errstate(over="ignore"):
        products.in_threads(overflow, range(20))  # a warning is an error
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        products.in_threads(overflow, range(20))
