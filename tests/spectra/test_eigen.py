"""Selected eigenpairs against numpy's dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.spectra import eigenpairs
from tests.helpers_matrices import Dense, spectra
from tests.helpers_models import angle

MATRICES = {name: m for name, m in spectra().items() if m.shape[0] == m.shape[1]}
# The relative accuracy asked of ARPACK is 1e-5, on float32 products.
ACCURACY = 3e-5


def _with_eigenvalues(values: np.ndarray, seed: int, skew: float = 0.3) -> np.ndarray:
    """Real matrix of these eigenvalues; complex ones come in pairs. Not normal, but nearly."""
    random = np.random.default_rng(seed)
    blocks = []
    for value in values:
        if value.imag:
            blocks.append([[value.real, value.imag], [-value.imag, value.real]])
        else:
            blocks.append([[value.real]])
    n = sum(len(b) for b in blocks)
    middle = np.zeros((n, n))
    at = 0
    for block in blocks:
        middle[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    basis = np.linalg.qr(random.standard_normal((n, n)))[0]
    basis += skew * random.standard_normal((n, n)) / np.sqrt(n)
    return basis @ middle @ np.linalg.inv(basis)


CLEAR = {
    "real": np.r_[-50, 30, 20, -14, 10, 7, np.linspace(-3, 3, 60)].astype(complex),
    "pairs": np.r_[40 + 10j, -25 + 3j, 12, np.linspace(-3, 3, 60)],
    "one": np.r_[-500, np.linspace(-1, 1, 70)].astype(complex),
}


def _check(matrix: np.ndarray, pairs, count: int) -> None:
    exact = np.asarray(np.float32(matrix), np.float64)
    expected = np.linalg.eigvals(exact)
    expected = expected[np.argsort(-np.abs(expected))]
    assert len(pairs) in (count, count + 1)
    size = np.abs(expected[0])
    magnitudes = [abs(p.value) for p in pairs]
    assert magnitudes == sorted(magnitudes, reverse=True)
    np.testing.assert_allclose(magnitudes, np.abs(expected[: len(pairs)]), atol=ACCURACY * size)
    for pair in pairs:
        assert np.abs(expected - pair.value).min() <= ACCURACY * size
        assert np.linalg.norm(pair.vector) == pytest.approx(1, abs=1e-9)
        error = np.linalg.norm(exact @ pair.vector - pair.value * pair.vector)
        if abs(pair.value) > 1e-3 * size:
            # Honest: what is reported is what is there, up to float32 rounding of the products.
            measured = error / abs(pair.value)
            rounding = 2e-6 * size / abs(pair.value)
            assert pair.residual == pytest.approx(measured, rel=0.05, abs=rounding)
            assert pair.residual < 1e-3


@pytest.mark.parametrize("name", CLEAR)
def test_clear_leading_eigenvalues(name: str):
    matrix = _with_eigenvalues(CLEAR[name], seed=1)
    count = {"real": 6, "pairs": 5, "one": 1}[name]
    pairs = eigenpairs(Dense(matrix), count)
    _check(matrix, pairs[:count], count)
    values, vectors = np.linalg.eig(matrix)
    for pair in pairs[:count]:
        nearest = vectors[:, np.argmin(np.abs(values - pair.value))]
        # Complex vectors have a free phase: compare |cosine|.
        cosine = abs(np.vdot(nearest / np.linalg.norm(nearest), pair.vector))
        assert cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["1 x 1", "2 x 2", "3 x 3", "zero 1 x 1"])
def test_matrices_too_small_for_arnoldi(name: str):
    matrix = MATRICES[name]
    _check(matrix, eigenpairs(Dense(matrix)), len(matrix))


@pytest.mark.parametrize("name", ["planted rank one", "identity and planted", "two planted"])
def test_planted(name: str):
    """The planted eigenvalue, with its sign, from a start that is nowhere near it."""
    matrix = MATRICES[name]
    pairs = eigenpairs(Dense(matrix), 2)
    values, vectors = np.linalg.eig(matrix)
    leading = np.argmax(np.abs(values))
    assert pairs[0].value == pytest.approx(values[leading], rel=ACCURACY)
    if values[leading].imag == 0:
        assert angle(pairs[0].vector.real, vectors[:, leading].real) < 0.1


@pytest.mark.parametrize("name", ["identity", "minus identity", "rank 9"])
def test_degenerate(name: str):
    """Few different eigenvalues: every pair that is returned is one."""
    matrix = MATRICES[name]
    pairs = eigenpairs(Dense(matrix), 4)
    expected = np.linalg.eigvals(matrix)
    assert pairs
    leading = max(expected, key=abs)
    assert abs(pairs[0].value) == pytest.approx(abs(leading), rel=1e-4)
    for pair in pairs:
        assert np.abs(expected - pair.value).min() < 1e-4 * abs(leading)


def test_zero_matrix():
    """Nothing, or zeros: never an exception."""
    for pair in eigenpairs(Dense(np.zeros((30, 30)))):
        assert pair.value == 0


def test_start_is_an_eigenvector():
    matrix = np.diag(np.r_[9.0, np.linspace(-1, 1, 39)])
    pairs = eigenpairs(Dense(matrix), 3, start=np.eye(40)[0])
    assert pairs[0].value == pytest.approx(9, rel=1e-5)


def test_work_is_bounded():
    """A spectrum on a circle does not converge; the work ends and what is returned is honest."""
    matrix = np.linalg.qr(np.random.default_rng(7).standard_normal((300, 300)))[0]
    operator = Dense(matrix)
    pairs = eigenpairs(operator, 6, max_products=60)
    # ARPACK may finish its round, and every returned pair is measured with one more product.
    assert operator.products <= 2 * 60 + 7
    for pair in pairs:
        error = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
        assert pair.residual == pytest.approx(error / abs(pair.value), rel=0.05, abs=1e-5)
