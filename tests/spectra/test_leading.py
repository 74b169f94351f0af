"""Leading singular values by blocks against numpy's dense SVD."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.errors import NotFinite
from ckptforensics.spectra import leading_values
from tests.support.matrices import Dense, spectra, with_values

MATRICES = spectra()


def found(matrix: np.ndarray, count: int = 16, seed: int = 0, **options) -> np.ndarray | None:
    return leading_values(Dense(matrix), count, generator=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("count", [2, 3, 16])
def test_values_are_those_of_the_dense_svd(name, count):
    exact = np.linalg.svd(np.float64(np.float32(MATRICES[name])), compute_uv=False)[:count]
    values = found(MATRICES[name], count, tolerance=1e-3)
    assert values is not None
    assert len(values) == len(exact)
    # Squares are formed in float32: what is far below the first is rounding.
    np.testing.assert_allclose(values, exact, rtol=1e-4, atol=1e-3 * exact[0])


def test_values_that_crowd_are_told_apart_from_any_start():
    """As of a wide random map, whose leading values lie closer the wider it is."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((700, 700)) @ random.standard_normal((700, 700))
    exact = np.linalg.svd(np.float64(np.float32(matrix)), compute_uv=False)[:16]
    width = exact[0] - exact[-1]
    assert width < 0.15 * exact[0]
    for seed in range(3):
        values = found(matrix, seed=seed)
        assert values is not None
        assert np.abs(values - exact).max() < 0.01 * width


def test_what_does_not_stand_still_is_none():
    crowd = with_values(10 - np.linspace(0, 1e-3, 900), 900, 900, 0)
    assert found(crowd, max_steps=3) is None


def test_so_few_products_are_enough_where_values_fall():
    operator = Dense(with_values(1 / np.arange(1.0, 901), 900, 900, 0))
    assert leading_values(operator, 16, generator=np.random.default_rng(0)) is not None
    assert operator.products <= 8


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_values_whose_squares_are_no_float32(size):
    matrix = np.float32(size * np.random.default_rng(0).standard_normal((60, 60)))
    exact = np.linalg.svd(np.float64(matrix), compute_uv=False)[:16]
    np.testing.assert_allclose(found(matrix), exact, rtol=1e-4)


def test_products_that_overflow_are_no_values():
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(NotFinite):
        found(np.full((60, 60), 3e38))
