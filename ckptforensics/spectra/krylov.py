"""Leading singular triplets by a block Krylov method with a measured residual.

Each round multiplies the operator with a block of new right vectors, extracts the best triplets
the subspace holds (Rayleigh-Ritz: the thin SVD of M K), multiplies the adjoint with the leading
left vectors, and orthogonalises the result against the subspace to get the next block. The
adjoint products are the exact residual M'u - s v of each triplet at no extra cost, so the
iteration stops when the answer is good and says how good it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforensics.errors import NotFinite

Floats = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Singular values below this share of the first are noise of the float32 products.
_TINY = 1e-5


class _Operator(Protocol):
    shape: tuple[int, int]

    def matmat(self, x: Any) -> Any: ...

    def rmatmat(self, y: Any) -> Any: ...


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets, largest first.

    Attributes
    ----------
    left : (rows, count) unit columns u
    values : (count,)
    right : (columns, count) unit columns v
    residuals : (count,) |M'u - s v| / s_1
    rounds : block products with M
    """

    left: Float64
    values: Float64
    right: Float64
    residuals: Float64
    rounds: int


def singular_triplets(
    operator: _Operator,
    count: int = 2,
    *,
    start: NDArray[Any] | None = None,
    block: int = 8,
    tolerance: float = 1e-5,
    max_rounds: int = 40,
    generator: np.random.Generator,
) -> Triplets:
    """The `count` leading singular triplets of `operator`.

    Parameters
    ----------
    operator : of shape (rows, columns)
    count : triplets wanted
    start : (rows, k) guesses of left singular vectors; random vectors fill the block up
    block : vectors multiplied at once, at least `count`
    tolerance : residual of the first triplet, relative to s_1, at which to stop; the others may
        be 10 times worse, relative to their own value, which is off by the square of it only
    max_rounds : an operator whose leading values are clustered stops here, and its residuals say
        how far it came
    generator : of the random start vectors

    Returns
    -------
    Triplets, with the sign of u and v such that the largest component of u is positive

    Raises
    ------
    NotFinite
        if a product overflows float32.
    """
    rows, columns = operator.shape
    count = min(count, rows, columns)
    block = min(max(block, count), rows, columns)
    guess = generator.standard_normal((rows, block))
    if start is not None:
        taken = start[:, :block]
        guess[:, : taken.shape[1]] = taken
    basis = np.zeros((columns, 0))
    # The images M K of the basis, kept as their QR factorisation, which grows with them.
    q, r = np.zeros((rows, 0)), np.zeros((0, 0))
    fresh = _orthonormal(operator.rmatmat(_columns(_orthonormal(guess, None))), None)
    if fresh.shape[1] == 0:  # the adjoint maps even random vectors to zero: the zero operator
        left = np.eye(rows, count)
        return Triplets(left, np.zeros(count), np.eye(columns, count), np.zeros(count), 0)
    if fresh.shape[1] < block:  # of lower rank than the block: any other vectors complete it
        more = generator.standard_normal((columns, block - fresh.shape[1]))
        fresh = np.hstack([fresh, _orthonormal(more, fresh)])
    rounds = 0
    while True:
        basis = np.hstack([basis, fresh])
        q, r = _extend_qr(q, r, np.asarray(operator.matmat(_columns(fresh)), np.float64))
        rounds += 1
        u, s, vt = np.linalg.svd(r)
        left, values, right = q @ u[:, :block], s[:block], basis @ vt[:block].T
        back = np.asarray(operator.rmatmat(_columns(left)), np.float64)
        if not np.isfinite(back).all():
            raise NotFinite("the products with the layer's weights overflow float32")
        scale = max(float(values[0]), np.finfo(np.float64).tiny)
        errors = (back - right * values)[:, :count]
        residuals = np.linalg.norm(errors, axis=0) / scale
        own = residuals * scale <= 10 * tolerance * np.maximum(values[:count], _TINY * scale)
        done = residuals[0] <= tolerance and bool(np.all(own))
        room = columns - basis.shape[1]
        if done or rounds >= max_rounds or room <= 0:
            break
        fresh = _orthonormal(back, basis)[:, :room]
        if fresh.shape[1] == 0:  # the subspace is invariant: nothing better exists outside it
            break
    left, right = _fix_signs(left[:, :count], right[:, :count])
    return Triplets(left, values[:count], right, residuals, rounds)


def _columns(x: Float64) -> Floats:
    return np.ascontiguousarray(x, dtype=np.float32)


def _extend_qr(q: Float64, r: Float64, more: Float64) -> tuple[Float64, Float64]:
    """QR factors of [Q R, more]; Gram-Schmidt twice keeps Q orthonormal."""
    overlap = q.T @ more
    rest = more - q @ overlap
    again = q.T @ rest
    rest -= q @ again
    new_q, new_r = np.linalg.qr(rest)
    old = r.shape[1]
    grown = np.zeros((r.shape[0] + new_r.shape[0], old + more.shape[1]))
    grown[: r.shape[0], :old] = r
    grown[: r.shape[0], old:] = overlap + again
    grown[r.shape[0] :, old:] = new_r
    return np.hstack([q, new_q]), grown


def _orthonormal(x: NDArray[Any], against: Float64 | None) -> Float64:
    """Orthonormal columns of x after removing its part in `against`; dependent ones are dropped."""
    y = np.asarray(x, np.float64)
    if not np.isfinite(y).all():
        raise NotFinite("the products with the layer's weights overflow float32")
    norms = np.linalg.norm(y, axis=0)
    y = y[:, norms > 0] / norms[norms > 0]
    for _ in range(2):  # twice is enough (Giraud et al. 2005)
        if against is not None:
            y = y - against @ (against.T @ y)
        if y.shape[1] == 0:
            return y
        u, s, _ = np.linalg.svd(y, full_matrices=False)
        # Float32 products carry relative errors near 1e-7: smaller parts are noise.
        y = u[:, s > 1e-6]
    return y


def _fix_signs(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    at = np.argmax(np.abs(left), axis=0)
    sign = np.where(left[at, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * sign, right * sign
