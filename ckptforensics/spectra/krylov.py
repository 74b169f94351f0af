"""Leading singular triplets by block Golub-Kahan-Lanczos with a measured residual.

Each step multiplies the operator with new right vectors, and its adjoint with what results; both
products are orthogonalised against all before them, twice. The triplets are those of M on the space
of right vectors (Rayleigh-Ritz), and the adjoint's products, which are kept, give their exact
residual M'u - s v at no extra cost: the iteration stops when the answer is good, and says how good
it is. Where more than one triplet is wanted, a step has two vectors, one from a guess and one from
random: from one alone two equal singular values would look like one. Two or three cost little more
than one, for a step takes as long as reading the matrices (docs/performance.md): so an operator and
a part of it are searched in the same steps. There and back in one reads the last of the matrices
once instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ckptforensics.arrays import Array, Doubles, Floats
from ckptforensics.errors import NotFinite

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


class _Whole(_Operator, Protocol):
    """An operator that multiplies other vectors with a part of it in the same products."""

    def rmatmat_along(self, y: Any, along: Any) -> tuple[Any, Any]: ...

    def round_trip_along(self, x: Any, along: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]: ...


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

    left: Doubles
    values: Doubles
    right: Doubles
    residuals: Doubles
    steps: int


def singular_triplets(
    operator: _Operator,
    count: int = 2,
    *,
    start: Array | None = None,
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
    search = _Search(operator, count, start, tolerance, max_steps, generator)
    search.begin(operator.rmatmat(search.start))
    return search.finish()


def joint_triplets(
    operator: _Whole,
    part: _Operator,
    *,
    start: Array | None = None,
    part_start: Array | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 40,
    generator: np.random.Generator,
) -> tuple[Triplets, Triplets]:
    """Two leading triplets of `operator` and the leading one of `part`, in the same products.

    Parameters and errors as of `singular_triplets`; `part` is what `operator` multiplies the
    vectors with that go along.
    """
    whole = _Search(operator, 2, start, tolerance, max_steps, generator)
    alone = _Search(part, 1, part_start, tolerance, max_steps, generator)
    back, back_along = operator.rmatmat_along(whole.start, alone.start)
    whole.begin(back)
    alone.begin(back_along)
    while not (whole.done or alone.done):
        products, along = operator.round_trip_along(whole.vectors, alone.vectors)
        whole.take(*products)
        alone.take(*along)
    return whole.finish(), alone.finish()


def _good(values: Doubles, residuals: Doubles, tolerance: float) -> bool:
    own = np.maximum(values, max(_TINY * values[0], np.finfo(np.float64).tiny)) / max(
        values[0], np.finfo(np.float64).tiny
    )
    limits = max(tolerance, _LATER) * own
    limits[0] = tolerance
    return bool(np.all(residuals <= limits))


def _start(start: Array | None, shape: tuple[int, int], generator: np.random.Generator) -> Doubles:
    """Left vectors to start from: the guess, if there is one, and random ones."""
    vectors = generator.standard_normal(shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    size = 0.0 if start is None else float(np.linalg.norm(start))
    if start is not None and 0 < size < np.inf:
        guess = np.asarray(start, np.float64) / size
        vectors[0] = guess if len(vectors) > 1 else guess + _GENERIC * vectors[0]
    return vectors


class _Search:
    """Orthonormal left and right vectors, M on the right ones, and the adjoint's products.

    It says which vectors to multiply, and is given the products.

    Attributes
    ----------
    operator : M
    start : (rows, k) left vectors, whose products with the adjoint it begins with
    vectors : (columns, k) right vectors to be multiplied next, there and back
    done : the triplets are good, or no more steps are allowed
    """

    def __init__(
        self,
        operator: _Operator,
        count: int,
        start: Array | None,
        tolerance: float,
        max_steps: int,
        generator: np.random.Generator,
    ) -> None:
        rows, columns = operator.shape
        self.operator = operator
        self.done = False
        self._count = min(count, rows, columns)
        self._width = min(2, self._count)
        self._tolerance = tolerance
        self._generator = generator
        self._steps = 0
        # So many vectors are known, with left @ small = M right, and as many right ones or more.
        self._known = 0
        limit = min(max(max_steps, self._count) * self._width, rows, columns)
        self._left = np.empty((limit, rows))
        self._right = np.empty((limit, columns))
        self._back = np.empty((limit, columns))
        self._small = np.zeros((limit, limit))
        self.start = _columns(_start(start, (self._width, rows), generator))

    def begin(self, products: Any) -> None:
        """Take the adjoint's products with `start`."""
        self._extend(_finite(products))

    def take(self, images: Any, returned: Any) -> None:
        """Take M's products with `vectors`, and the adjoint's with these."""
        for image, returning in zip(*self._in_range(images, returned), strict=True):
            n = self._known
            left, coefficients, new = self._new(image, self._left[:n])
            if new > _SHARE * np.linalg.norm(image):
                back = (returning - coefficients @ self._back[:n]) / new
            else:
                back = _finite(self.operator.rmatmat(_columns(left[None])))[0]
            self._left[n], self._back[n] = left, back
            self._small[:n, n], self._small[n, n] = coefficients, new
            self._known += 1
        self._steps += 1
        p, values, qt = np.linalg.svd(self._small[: self._known, : self._known])
        self._values = values[: self._count]
        self._combined = p.T[: self._count], qt[: self._count]
        self._residuals = self._measured()
        good = len(values) >= self._count and _good(self._values, self._residuals, self._tolerance)
        self.done = good or self._known == len(self._left)
        if not self.done:
            self._extend(self._back[self._known - self._width : self._known])

    def finish(self) -> Triplets:
        """The best of the space, after going on alone until it is good."""
        while not self.done:
            self.take(*self.operator.round_trip(self.vectors))
        (pt, qt), n = self._combined, self._known
        left, right = _fix_signs((pt @ self._left[:n]).T, (qt @ self._right[:n]).T)
        return Triplets(left, self._values, right, self._residuals, self._steps)

    def _measured(self) -> Doubles:
        """|M'u - s v| / s_1 of the triplets."""
        (pt, qt), n = self._combined, self._known
        errors = pt @ self._back[:n] - self._values[:, None] * (qt @ self._right[:n])
        scale = max(float(self._values[0]), np.finfo(np.float64).tiny)
        return np.linalg.norm(errors, axis=1) / scale

    def _extend(self, candidates: Doubles) -> None:
        """Add what is new in the candidates to the right vectors, and ask for their products."""
        end = min(self._known + len(candidates), len(self._right))
        for n, candidate in zip(range(self._known, end), candidates, strict=False):
            self._right[n] = self._new(candidate, self._right[:n])[0]
        self.vectors = _columns(self._right[self._known : end])

    def _in_range(self, images: Any, returned: Any) -> tuple[Doubles, Doubles]:
        """Both products as rows; the second anew where its size is no float32, though M's is."""
        images = _finite(images)
        sizes = np.linalg.norm(images, axis=1, keepdims=True)
        if np.all((sizes == 0) | (sizes > _SMALL) & (sizes < 1 / _SMALL)):
            return images, _finite(returned)
        sizes[sizes == 0] = 1
        return images, sizes * _finite(self.operator.rmatmat(_columns(images / sizes)))

    def _new(self, candidate: Doubles, basis: Doubles) -> tuple[Doubles, Doubles, float]:
        """Unit vector of what is new, the candidate's coefficients on the basis, and on it.

        Where nothing new is left, a random vector orthogonal to all takes its place, with
        coefficient 0.
        """
        size = float(np.linalg.norm(candidate))
        overlap, rest = _orthogonal(candidate, basis)
        new = float(np.linalg.norm(rest))
        if new <= _NOISE * size:
            new = 0.0
            _, rest = _orthogonal(self._generator.standard_normal(candidate.size), basis)
        return rest / np.linalg.norm(rest), overlap, new


def _orthogonal(x: Doubles, basis: Doubles) -> tuple[Doubles, Doubles]:
    """Coefficients of x on the rows of the basis and the rest; twice is enough (Giraud 2005)."""
    overlap = basis @ x
    rest = x - overlap @ basis
    again = basis @ rest
    return overlap + again, rest - again @ basis


def _columns(rows: Doubles) -> Floats:
    return np.ascontiguousarray(rows.T, np.float32)


def _finite(products: Any) -> Doubles:
    rows = np.asarray(products, np.float64).T
    if not np.isfinite(rows).all():
        raise NotFinite("the products with the layer's weights overflow float32")
    return rows


def _fix_signs(left: Doubles, right: Doubles) -> tuple[Doubles, Doubles]:
    at = np.argmax(np.abs(left), axis=0)
    sign = np.where(left[at, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * sign, right * sign
