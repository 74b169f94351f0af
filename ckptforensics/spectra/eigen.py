"""The eigenpair of a matrix-free operator nearest a direction, by Arnoldi iteration from it.

A Krylov space that begins with the direction meets first the eigenvectors the direction leans to:
one close to it converges within a few products. Where none has converged after a bounded number of
products, none is close, and that is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Array, Doubles

# What orthogonalising leaves of a vector below this share of it is noise of float32 products.
_NOISE = 1e-6
_CLOSE = 0.5


class _Operator(Protocol):
    shape: tuple[int, int]

    def matmat(self, x: Any) -> Any: ...


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue, its unit eigenvector, |M x - lambda x| / |lambda|, and |cosine| with u."""

    value: complex
    vector: NDArray[np.complex128]
    residual: float
    cosine: float


def nearest_eigenpair(
    operator: _Operator,
    direction: Array,
    *,
    tolerance: float = 1e-3,
    acceptable: float = 0.1,
    max_products: int = 12,
) -> Eigenpair | None:
    """The eigenpair whose vector has the smallest angle to `direction` u, of those that converge.

    Parameters
    ----------
    operator : square
    direction : (n,), not zero
    tolerance : residual at which a pair closer than 60 degrees ends the search
    acceptable : residual above which a pair has not converged
    max_products : bound on the work

    Returns
    -------
    Eigenpair, of a conjugate pair the one with positive imaginary part, or None
    """
    start = np.asarray(direction, np.float64)
    basis = [start / np.linalg.norm(start)]
    images: list[Doubles] = []
    limit = min(max_products, operator.shape[0])
    while True:
        column = np.ascontiguousarray(basis[-1][:, None], np.float32)
        images.append(np.asarray(operator.matmat(column), np.float64)[:, 0])
        space = np.stack(basis, axis=1)
        found = _nearest(space, np.stack(images, axis=1), acceptable)
        if len(images) == limit:
            return found
        if found is not None and found.residual <= tolerance and found.cosine > _CLOSE:
            return found
        rest = images[-1]
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            rest = rest - space @ (space.T @ rest)
        size = float(np.linalg.norm(rest))
        if size <= _NOISE * np.linalg.norm(images[-1]):
            return found  # the space is invariant: nothing else leans to the direction
        basis.append(rest / size)


def _nearest(basis: Doubles, images: Doubles, acceptable: float) -> Eigenpair | None:
    """The converged Ritz pair nearest the first basis vector; None if none has converged."""
    values, small = np.linalg.eig(basis.T @ images)
    errors = np.linalg.norm(images @ small - basis @ (small * values), axis=0)
    sizes = np.abs(values)
    noise = _NOISE * np.linalg.norm(images, axis=0).max()
    residuals = np.divide(errors, sizes, out=np.full(sizes.shape, np.inf), where=sizes > noise)
    # The columns of `small` have unit norm and the basis is orthonormal: the first row is cosines.
    cosines = np.where(residuals <= acceptable, np.abs(small[0]), -1.0)
    at = int(np.argmax(cosines))
    if cosines[at] < 0:
        return None
    value, vector = complex(values[at]), (basis @ small[:, at]).astype(np.complex128)
    if value.imag < 0:
        value, vector = value.conjugate(), vector.conj()
    return Eigenpair(value, vector, float(residuals[at]), min(1.0, float(cosines[at])))
