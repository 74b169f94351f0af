"""The eigenpair nearest a direction against numpy's dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.spectra import nearest_eigenpair
from tests.support.matrices import Dense, spectra

MATRICES = {name: m for name, m in spectra().items() if m.shape[0] == m.shape[1]}


def with_eigenvalues(values: np.ndarray, seed: int, skew: float = 0.3) -> np.ndarray:
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


def leaning(vector: np.ndarray, degrees: float, seed: int = 5) -> np.ndarray:
    """A unit vector at this angle to the real part of `vector`."""
    v = vector.real / np.linalg.norm(vector.real)
    other = np.random.default_rng(seed).standard_normal(v.size)
    other -= v * (v @ other)
    other /= np.linalg.norm(other)
    return np.cos(np.radians(degrees)) * v + np.sin(np.radians(degrees)) * other


def check_honest(matrix: np.ndarray, direction: np.ndarray, pair) -> None:
    """What is said of the pair is so."""
    error = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
    assert pair.residual == pytest.approx(error / abs(pair.value), rel=0.05, abs=2e-6)
    assert np.linalg.norm(pair.vector) == pytest.approx(1, abs=1e-9)
    cosine = abs(np.vdot(pair.vector, direction)) / np.linalg.norm(direction)
    assert pair.cosine == pytest.approx(cosine, abs=1e-9)
    assert pair.value.imag >= 0


@pytest.mark.parametrize("degrees", [0, 10, 35])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_outlier_that_the_direction_leans_to(which: int, degrees: float):
    """Of three outliers the one the direction leans to, whatever its size and sign."""
    matrix = with_eigenvalues(np.r_[-50, 30, -14, np.linspace(-3, 3, 60)].astype(complex), seed=1)
    values, vectors = np.linalg.eig(matrix)
    at = np.argsort(-np.abs(values))[which]
    direction = leaning(vectors[:, at], degrees)
    pair = nearest_eigenpair(Dense(matrix), direction)
    assert pair is not None
    check_honest(matrix, direction, pair)
    assert pair.value == pytest.approx(values[at], rel=2e-3)
    exact = abs(np.vdot(vectors[:, at], direction))
    assert np.degrees(np.arccos(pair.cosine)) == pytest.approx(
        np.degrees(np.arccos(min(1, exact))), abs=1
    )


def test_complex_pair():
    matrix = with_eigenvalues(np.r_[40 + 10j, 12, np.linspace(-3, 3, 60)], seed=1)
    values, vectors = np.linalg.eig(matrix)
    direction = leaning(vectors[:, int(np.argmax(np.abs(values)))], 10)
    pair = nearest_eigenpair(Dense(matrix), direction)
    assert pair is not None
    check_honest(matrix, direction, pair)
    assert pair.value == pytest.approx(40 + 10j, rel=2e-3)


@pytest.mark.parametrize("name", MATRICES)
def test_whatever_is_returned_is_honest(name: str):
    matrix = MATRICES[name]
    direction = np.random.default_rng(2).standard_normal(len(matrix))
    pair = nearest_eigenpair(Dense(matrix), direction)
    if pair is None:
        return
    check_honest(np.float32(matrix).astype(float), direction, pair)
    assert pair.residual <= 0.1


@pytest.mark.parametrize("name", ["1 x 1", "2 x 2", "3 x 3", "identity", "minus identity"])
def test_small_or_degenerate_matrices_have_one(name: str):
    matrix = MATRICES[name]
    pair = nearest_eigenpair(Dense(matrix), np.arange(1.0, 1 + len(matrix)))
    assert pair is not None
    assert np.abs(np.linalg.eigvals(matrix) - pair.value).min() < 1e-5


@pytest.mark.parametrize("name", ["zero 1 x 1"])
def test_zero_matrix_has_none(name: str):
    assert nearest_eigenpair(Dense(MATRICES[name]), np.ones(len(MATRICES[name]))) is None


def test_work_is_bounded():
    """A spectrum on a circle does not converge: the work ends, and there is no answer."""
    matrix = np.linalg.qr(np.random.default_rng(7).standard_normal((300, 300)))[0]
    operator = Dense(matrix)
    assert nearest_eigenpair(operator, np.ones(300), max_products=9) is None
    assert operator.products == 9
