"""Leading singular triplets by block Golub-Kahan-Lanczos with a measured residual.

Each step multiplies the operator with new right vectors, and its adjoint with what results; both
products are orthogonalised against all before them, twice. The triplets are those of M on the space
of right vectors (Rayleigh-Ritz), and the adjoint's products, which are kept, give their exact
residual M'u - s v at no extra cost: the iteration stops when the answer is good, and says how good
it is. Where more than one triplet is wanted, a step has two vectors, one from a guess and one from
random: from one alone two equal singular values would look like one. Two cost little more than one,
for a step takes as long as reading the matrices (docs/performance.md); there and back in one reads
the last of them once instead of twice.
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
# Size of the random part of a single start vector beside the guess: what the guess lacks is found.
_GENERIC = 0.1
# Residual of all triplets but the first, relative to their own value, which is off by its square.
_LATER = 1e-2
# Singular values below this share of the first are noise.
_TINY = 1e-5
# Singular values below this, or above its inverse, are not squared.
_SMALL = 1e-15
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
    steps : how often M was multiplied with new vectors, and its adjoint
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
    width = min(2, count)
    following = _products(operator.rmatmat, _start(start, (width, rows), generator))
    steps = 0
    while True:
        space.step(following)
        steps += 1
        left, values, right, residuals = space.triplets(count)
        whole = len(space.left) == min(rows, columns)
        if whole or (len(values) == count and _good(values, residuals, tolerance)):
            break
        if steps >= max(max_steps, count):
            break
        following = np.stack(space.back[-width:])
    left, right = _fix_signs(left, right)
    return Triplets(left, values, right, residuals, steps)


def _good(values: Float64, residuals: Float64, tolerance: float) -> bool:
    own = np.maximum(values, max(_TINY * values[0], np.finfo(np.float64).tiny)) / max(
        values[0], np.finfo(np.float64).tiny
    )
    limits = max(tolerance, _LATER) * own
    limits[0] = tolerance
    return bool(np.all(residuals <= limits))


def _start(
    start: NDArray[Any] | None, shape: tuple[int, int], generator: np.random.Generator
) -> Float64:
    """Left vectors to start from: the guess, if there is one, and random ones."""
    vectors = generator.standard_normal(shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    size = 0.0 if start is None else float(np.linalg.norm(start))
    if start is not None and 0 < size < np.inf:
        guess = np.asarray(start, np.float64) / size
        vectors[0] = guess if len(vectors) > 1 else guess + _GENERIC * vectors[0]
    return vectors


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

    def step(self, candidates: Float64) -> None:
        """Extend the space by what is new in the candidate right vectors, (k, columns)."""
        known = len(self.right)
        for candidate in candidates[: min(self.operator.shape) - known]:
            self.right.append(self._new(candidate, self.right)[0])
        images, returned = _round_trip(self.operator, np.stack(self.right[known:]))
        for image, returning in zip(images, returned, strict=True):
            left, coefficients = self._new(image, self.left)
            *old, new = coefficients
            if new > _SHARE * np.linalg.norm(image):
                back = sum((-c * b for c, b in zip(old, self.back, strict=True)), returning) / new
            else:
                back = _products(self.operator.rmatmat, left[None])[0]
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


def _products(multiply: Any, rows: Float64) -> Float64:
    return _finite(multiply(_columns(rows)))


def _round_trip(operator: _Operator, rows: Float64) -> tuple[Float64, Float64]:
    images, returned = operator.round_trip(_columns(rows))
    images = _finite(images)
    sizes = np.linalg.norm(images, axis=1, keepdims=True)
    if np.all((sizes == 0) | (sizes > _SMALL) & (sizes < 1 / _SMALL)):
        return images, _finite(returned)
    # The square of a singular value leaves the range of float32, though the value does not.
    sizes[sizes == 0] = 1
    return images, sizes * _products(operator.rmatmat, images / sizes)


def _columns(rows: Float64) -> Floats:
    return np.ascontiguousarray(rows.T, np.float32)


def _finite(products: Any) -> Float64:
    rows = np.asarray(products, np.float64).T
    if not np.isfinite(rows).all():
        raise NotFinite("the products with the layer's weights overflow float32")
    return rows


def _fix_signs(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    at = np.argmax(np.abs(left), axis=0)
    sign = np.where(left[at, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * sign, right * sign
