"""Products split over threads give what one thread gives."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.compute import products


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
def test_products(count_of_threads: int, rows: int, columns: int, count: int):
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
