"""Leading singular triplets by Golub-Kahan-Lanczos bidiagonalisation with a measured residual.

Each step multiplies the operator with one new right vector, and its adjoint with what results; both
products are orthogonalised against all before them, twice. The triplets are those of M on the space
of right vectors (Rayleigh-Ritz), and the adjoint's products, which are kept, give their exact
residual M'u - s v at no extra cost: the iteration stops when the answer is good, and says how good
it is. Products with one vector read a matrix at the memory's speed, which products with a few do
not (docs/performance.md); there and back in one reads the last matrix once instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforensics.errors import NotFinite

Floats = NDArray[np.float32]
Float64 = NDArray[np.float64]

# What orthogonalising leaves of a vector below this share of it is noise of float32 products.
_NOISE = 1e-6
# Size of the random part of the start vector beside the guess: what the guess lacks is found too.
_GENERIC = 0.1
# Residual of all triplets but the first, relative to their own value, which is off by its square.
_LATER = 1e-2
# Singular values below this share of the first are noise.
_TINY = 1e-5
# A gap of this size is checked with so many steps from another random vector.
_CHECKED_GAP = 1.5
_CHECK_STEPS = 3
# The adjoint's product with the new part of an image follows from that with the whole image, unless
# the part is a smaller share than this: then it would have fewer correct digits.
_SHARE = 0.1


class _Operator(Protocol):
    shape: tuple[int, int]

    def matmat(self, x: Any) -> Any: ...

    def rmatmat(self, y: Any) -> Any: ...

    def round_trip(self, x: Any) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets, largest first.

    Attributes
    ----------
    left : (rows, count) unit columns u
    values : (count,)
    right : (columns, count) unit columns v
    residuals : (count,) |M'u - s v| / s_1
    steps : products with M, and as many with its adjoint
    """

    left: Float64
    values: Float64
    right: Float64
    residuals: Float64
    steps: int


def singular_triplets(
    operator: _Operator,
    count: int = 2,
    *,
    start: NDArray[Any] | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 40,
    generator: np.random.Generator,
) -> Triplets:
    """The `count` leading singular triplets of `operator`.

    From one start vector, two equal singular values look like one. So a gap behind the first is
    believed only after a few steps from another random vector have found nothing there.

    Parameters
    ----------
    operator : of shape (rows, columns)
    count : triplets wanted
    start : (rows,) guess of the first left singular vector
    tolerance : residual of the first triplet, relative to s_1, at which to stop; the others stop
        at 1e-2 (or this, if larger) relative to their own value, which is off by its square only
    max_steps : an operator whose leading values are clustered stops here (but not before `count`
        steps), and its residuals say how far it came
    generator : of the random vectors

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
    space = _Space(operator, generator)
    following = _product(operator.rmatmat, _guess(start, rows, generator))
    waiting: NDArray[np.float64] | None = None
    checked_until = 0
    while True:
        space.step(following)
        left, values, right, residuals = space.triplets(count)
        following = space.back[-1]
        steps = len(space.back)
        if steps == min(rows, columns) or steps >= max(max_steps, count):
            break
        if steps < max(count, checked_until):
            continue
        if steps == checked_until and waiting is not None:
            following, waiting = waiting, None
        if not _good(values, residuals, tolerance):
            continue
        if checked_until or count < 2 or values[0] < _CHECKED_GAP * values[1]:
            break
        checked_until = steps + _CHECK_STEPS
        following, waiting = generator.standard_normal(columns), following
    left, right = _fix_signs(left, right)
    return Triplets(left, values, right, residuals, steps)


def _good(values: Float64, residuals: Float64, tolerance: float) -> bool:
    own = np.maximum(values, max(_TINY * values[0], np.finfo(np.float64).tiny)) / max(
        values[0], np.finfo(np.float64).tiny
    )
    limits = max(tolerance, _LATER) * own
    limits[0] = tolerance
    return bool(np.all(residuals <= limits))


def _guess(
    start: NDArray[Any] | None, rows: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    random = generator.standard_normal(rows)
    random /= np.linalg.norm(random)
    size = 0.0 if start is None else float(np.linalg.norm(start))
    if start is None or not 0 < size < np.inf:
        return random
    return np.asarray(start, np.float64) / size + _GENERIC * random


class _Space:
    """Orthonormal left and right vectors, M on the right ones, and the adjoint's products.

    Attributes
    ----------
    left, right : unit vectors with M right = left @ coefficients
    back : the products of the adjoint with the left vectors
    """

    def __init__(self, operator: _Operator, generator: np.random.Generator) -> None:
        self.operator = operator
        self.generator = generator
        self.left: list[Float64] = []
        self.right: list[Float64] = []
        self.back: list[Float64] = []
        self._coefficients: list[Float64] = []

    def step(self, candidate: Float64) -> None:
        """Extend the space by what is new in the candidate right vector."""
        right, _ = self._new(candidate, self.right)
        self.right.append(right)
        image, returned = _round_trip(self.operator, right)
        left, coefficients = self._new(image, self.left)
        *known, new = coefficients
        if new > _SHARE * np.linalg.norm(image):
            back = sum((-c * b for c, b in zip(known, self.back, strict=True)), returned) / new
        else:
            back = _product(self.operator.rmatmat, left)
        self.left.append(left)
        self._coefficients.append(coefficients)
        self.back.append(back)

    def triplets(self, count: int) -> tuple[Float64, Float64, Float64, Float64]:
        """The leading `count` (or all) u, s, v of the space and their residuals."""
        n = len(self.left)
        small = np.zeros((n, n))
        for column, coefficients in enumerate(self._coefficients):
            small[: column + 1, column] = coefficients
        p, values, qt = np.linalg.svd(small)
        pt, values, qt = p[:, :count].T, values[:count], qt[:count]
        left, right = (pt @ np.stack(self.left)).T, (qt @ np.stack(self.right)).T
        errors = (pt @ np.stack(self.back)).T - right * values
        scale = max(float(values[0]), np.finfo(np.float64).tiny)
        return left, values, right, np.linalg.norm(errors, axis=0) / scale

    def _new(self, candidate: Float64, against: list[Float64]) -> tuple[Float64, Float64]:
        """Unit vector of what is new, and the candidate's coefficients on all with the new one.

        Where nothing new is left, a random vector orthogonal to all takes its place, with
        coefficient 0.
        """
        basis = np.stack(against) if against else np.zeros((0, candidate.size))
        size = float(np.linalg.norm(candidate))
        overlap, rest = _orthogonal(candidate, basis)
        new = float(np.linalg.norm(rest))
        if new <= _NOISE * size:
            new = 0.0
            _, rest = _orthogonal(self.generator.standard_normal(candidate.size), basis)
        return rest / np.linalg.norm(rest), np.append(overlap, new)


def _orthogonal(x: Float64, basis: Float64) -> tuple[Float64, Float64]:
    """Coefficients of x on the rows of the basis and the rest; twice is enough (Giraud 2005)."""
    overlap = basis @ x
    rest = x - overlap @ basis
    again = basis @ rest
    return overlap + again, rest - again @ basis


def _product(multiply: Any, x: Float64) -> Float64:
    return _finite(multiply(_column(x)))


def _round_trip(operator: _Operator, x: Float64) -> tuple[Float64, Float64]:
    image, returned = operator.round_trip(_column(x))
    return _finite(image), _finite(returned)


def _column(x: Float64) -> Floats:
    return np.ascontiguousarray(x[:, None], np.float32)


def _finite(product: Any) -> Float64:
    vector = np.asarray(product, np.float64)[:, 0]
    if not np.isfinite(vector).all():
        raise NotFinite("the products with the layer's weights overflow float32")
    return vector


def _fix_signs(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    at = np.argmax(np.abs(left), axis=0)
    sign = np.where(left[at, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * sign, right * sign
