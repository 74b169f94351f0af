"""Leading singular triplets against numpy's dense SVD."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.spectra import Triplets, joint_triplets, singular_triplets
from tests.support.matrices import Dense, spectra, with_values
from tests.support.models import angle

MATRICES = spectra()
# Products are float32: a residual below this is rounding.
ROUNDING = 1e-6


def triplets(matrix: np.ndarray, count: int = 2, **options) -> Triplets:
    options.setdefault("generator", np.random.default_rng(0))
    return singular_triplets(Dense(matrix), count, **options)


def measured_residuals(matrix: np.ndarray, found: Triplets) -> tuple[np.ndarray, np.ndarray]:
    """|M'u - s v| / s_1 and |M v - s u| / s_1 in float64."""
    exact = np.asarray(np.float32(matrix), np.float64)
    scale = max(found.values[0], np.finfo(float).tiny)
    back = np.linalg.norm(exact.T @ found.left - found.right * found.values, axis=0)
    forth = np.linalg.norm(exact @ found.right - found.left * found.values, axis=0)
    return back / scale, forth / scale


@pytest.mark.parametrize("name", MATRICES)
def test_against_dense_svd(name: str):
    matrix = MATRICES[name]
    found = triplets(matrix)
    u, s, vt = np.linalg.svd(np.asarray(np.float32(matrix), np.float64))
    count = min(2, *matrix.shape)
    assert found.values.shape == (count,)
    assert found.left.shape == (matrix.shape[0], count)
    assert found.right.shape == (matrix.shape[1], count)

    # A residual r moves a value by r at most, and by r^2 over the distance to its neighbours: the
    # first stops at r = 1e-4, the second at 1e-2 of itself.
    np.testing.assert_allclose(found.values[0], s[0], rtol=1e-5, atol=0)
    np.testing.assert_allclose(found.values, s[:count], rtol=1e-2, atol=1e-6 * s[0])
    for i in range(count):
        apart = np.min(np.abs(np.delete(s, i) - s[i]), initial=np.inf)
        if s[i] > 0 and apart > 0.1 * s[0]:
            # Davis and Kahan: the sine of the angle is at most the residual over the gap.
            limit = np.degrees(10 * 1e-2 if i else 10 * 1e-4)
            assert angle(found.left[:, i], u[:, i]) < limit
            assert angle(found.right[:, i], vt[i]) < limit


@pytest.mark.parametrize("name", MATRICES)
def test_vectors_are_orthonormal_with_fixed_signs(name: str):
    found = triplets(MATRICES[name])
    for vectors in (found.left, found.right):
        gram = vectors.T @ vectors
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
    largest = np.take_along_axis(found.left, np.abs(found.left).argmax(axis=0)[None], axis=0)
    assert np.all(largest > 0)


@pytest.mark.parametrize("max_steps", [2, 5, 40])
@pytest.mark.parametrize("name", MATRICES)
def test_residuals_are_honest(name: str, max_steps: int):
    """What is reported is what is there, also when the iteration was stopped early."""
    matrix = MATRICES[name]
    found = triplets(matrix, max_steps=max_steps)
    back, forth = measured_residuals(matrix, found)
    np.testing.assert_allclose(found.residuals, back, rtol=0.05, atol=ROUNDING)
    assert np.all(forth < ROUNDING)  # u is M v / s by construction
    assert found.steps <= max_steps


def test_early_stop_reports_a_large_residual():
    matrix = MATRICES["clustered"]
    found = triplets(matrix, max_steps=2)
    assert found.steps == 2
    # Values between 9.95 and 10 mix freely: u1 is any of them, and that is said.
    assert found.residuals[0] > 1e-4
    better = triplets(matrix, max_steps=120, tolerance=1e-5)
    assert better.residuals[0] < 1e-5 < found.residuals[0]
    # A slowly falling spectrum without a gap: two steps do not come close.
    assert triplets(MATRICES["random"], max_steps=2).residuals[0] > 0.05


def test_tolerance_is_kept():
    steps = []
    for tolerance in (1e-1, 1e-2, 1e-4):
        found = triplets(MATRICES["random"], tolerance=tolerance)
        assert found.residuals[0] <= tolerance
        assert found.residuals[1] <= max(tolerance, 1e-2)
        steps.append(found.steps)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_counts(count: int):
    matrix = with_values(np.geomspace(100, 0.01, 70), 90, 70, seed=9)
    found = triplets(matrix, count)
    s = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.values, s[:count], rtol=2e-3)
    assert np.all(found.residuals[1:] * s[0] < 1e-2 * s[1:count])


def test_equal_leading_values_are_no_gap():
    """One start vector sees one of two equal values; the second start must see the other."""
    matrix = MATRICES["equal leading pair"]
    u = np.linalg.svd(matrix)[0]
    for start in (None, u[:, 0], u[:, 1]):
        found = triplets(matrix, start=start)
        np.testing.assert_allclose(found.values, [7, 7], rtol=2e-3)


def test_good_start_saves_steps():
    matrix = MATRICES["random"]
    u = np.linalg.svd(matrix)[0]
    assert triplets(matrix, 1, start=u[:, 0]).steps < triplets(matrix, 1).steps


@pytest.mark.parametrize("flaw", ["orthogonal", "zero", "infinite"])
def test_bad_start_does_no_harm(flaw: str):
    matrix = MATRICES["two planted"]
    u, s, _ = np.linalg.svd(matrix)
    start = {
        "orthogonal": u[:, -1],
        "zero": np.zeros(120),
        "infinite": np.full(120, np.inf),
    }[flaw]
    found = triplets(matrix, start=start)
    np.testing.assert_allclose(found.values, s[:2], rtol=1e-6)


def test_same_generator_same_answer():
    one, other = (triplets(MATRICES["random"]) for _ in range(2))
    np.testing.assert_array_equal(one.left, other.left)
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e-16, 1e16, 3e20])
@pytest.mark.parametrize("count", [1, 2])
def test_values_whose_squares_are_no_float32(size: float, count: int):
    """F of a layer may be almost zero: its direction is as well known as any other."""
    matrix = size * with_values(np.array([1.0, 0.3, 0.1, 0.03]), 60, 60, 3)
    with np.errstate(over="ignore", invalid="ignore"):  # as where layers are measured
        found = triplets(matrix, count)
    _, values, vt = np.linalg.svd(matrix.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(found.values, values[:count], rtol=1e-4)
    assert abs(found.right[:, 0] @ vt[0]) > 1 - 1e-6
    assert found.residuals[0] < 1e-4


class Joint(Dense):
    """A matrix that takes vectors along to another one."""

    def __init__(self, matrix: np.ndarray, part: Dense) -> None:
        super().__init__(matrix)
        self.part = part
        self.together = 0

    def rmatmat_along(self, y: np.ndarray, along: np.ndarray):
        return self.rmatmat(y), self.part.rmatmat(along)

    def round_trip_along(self, x: np.ndarray, along: np.ndarray):
        self.together += 1
        return self.round_trip(x), self.part.round_trip(along)


@pytest.mark.parametrize(
    ("whole", "part"),
    [("random", "two planted"), ("two planted", "random"), ("clustered", "two planted")],
)
def test_two_searches_at_once_find_what_each_finds(whole: str, part: str):
    """Either may be done first; the other goes on alone."""
    inner = Dense(MATRICES[part])
    operator = Joint(MATRICES[whole], inner)
    two, one = joint_triplets(operator, inner, generator=np.random.default_rng(0))
    for found, matrix in ((two, MATRICES[whole]), (one, MATRICES[part])):
        _, s, vt = np.linalg.svd(np.asarray(np.float32(matrix), np.float64))
        np.testing.assert_allclose(found.values[0], s[0], rtol=1e-5)
        np.testing.assert_allclose(found.values, s[: len(found.values)], rtol=1e-2)
        back, forth = measured_residuals(matrix, found)
        np.testing.assert_allclose(found.residuals, back, rtol=0.05, atol=ROUNDING)
        assert np.all(forth < ROUNDING)
        if s[1] < 0.9 * s[0]:
            assert abs(found.right[:, 0] @ vt[0]) > 1 - 1e-6
    assert len(two.values) == 2
    assert len(one.values) == 1
    assert operator.together == min(one.steps, two.steps)
