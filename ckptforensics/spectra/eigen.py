"""Selected eigenpairs of a matrix-free operator, by implicitly restarted Arnoldi (ARPACK)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class _Operator(Protocol):
    shape: tuple[int, int]

    def matmat(self, x: Any) -> Any: ...


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue, its unit eigenvector and |M x - lambda x| / |lambda|."""

    value: complex
    vector: NDArray[np.complex128]
    residual: float


def eigenpairs(
    operator: _Operator,
    count: int = 6,
    *,
    start: NDArray[Any] | None = None,
    tolerance: float = 1e-5,
    max_products: int = 400,
) -> list[Eigenpair]:
    """The eigenpairs of largest magnitude, largest first.

    Parameters
    ----------
    operator : square
    count : pairs wanted; a complex pair may add one
    start : (n,) start vector, random directions mixed in by ARPACK's own restarts
    tolerance : relative accuracy of the eigenvalues
    max_products : bound on the work; pairs not converged by then are left out

    Returns
    -------
    list of Eigenpair, possibly empty
    """
    n = operator.shape[0]
    count = min(count, n)
    if count >= n - 1:  # ARPACK needs room; a matrix this small is solved whole
        solved: Any = np.linalg.eig(operator.matmat(np.eye(n, dtype=np.float32)))
    else:
        solved = _arnoldi(operator, count, start, tolerance, max_products)
    values, vectors = solved
    pairs = [_measured(operator, v, x) for v, x in zip(values, vectors.T, strict=True)]
    return sorted(pairs, key=lambda pair: -abs(pair.value))[: count + 1]


def _arnoldi(
    operator: _Operator,
    count: int,
    start: NDArray[Any] | None,
    tolerance: float,
    max_products: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

    n = operator.shape[0]

    def product(x: NDArray[Any]) -> NDArray[Any]:
        column = np.asarray(x, np.float32).reshape(n, 1)
        result: NDArray[Any] = np.asarray(operator.matmat(column), np.float64)[:, 0]
        return result

    subspace = min(n, max(2 * count + 1, 20))
    v0 = np.ones(n) if start is None or not np.any(start) else np.asarray(start, np.float64)
    try:
        values, vectors = eigs(
            LinearOperator((n, n), matvec=product, dtype=np.float64),
            k=count,
            which="LM",
            v0=v0,
            ncv=subspace,
            tol=tolerance,
            maxiter=max(1, max_products // subspace),
        )
    except ArpackNoConvergence as stopped:
        return np.asarray(stopped.eigenvalues), np.asarray(stopped.eigenvectors)
    except ArpackError:  # no subspace to iterate on: the zero operator
        return np.zeros(0), np.zeros((n, 0))
    return np.asarray(values), np.asarray(vectors)


def _measured(operator: _Operator, value: Any, vector: NDArray[Any]) -> Eigenpair:
    x = np.asarray(vector, np.complex128)
    x = x / np.linalg.norm(x)
    parts = np.stack([x.real, x.imag], axis=1).astype(np.float32)
    image = np.asarray(operator.matmat(parts), np.float64)
    error = image[:, 0] + 1j * image[:, 1] - value * x
    size = max(abs(complex(value)), float(np.finfo(np.float64).tiny))
    return Eigenpair(complex(value), x, float(np.linalg.norm(error)) / size)
