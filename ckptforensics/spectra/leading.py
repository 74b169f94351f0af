"""Leading singular values of matrix-free operators, many at once, by block Krylov iteration.

A step multiplies a block of vectors with the operator and its adjoint, which is a product of
matrices and ten times as fast as one vector after another. Values come from the right vectors of
all blocks together (Musco and Musco 2015), and the iteration stops when they stand still.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.errors import NotFinite

# Vectors of a block: twice as many as values, so that those converge that lie close together.
_EACH = 2
# Changes below this share of the first value are rounding of float32 products.
_ROUNDING = 1e-6
# Cosines below this are none, and what is left of a unit vector below that is not new.
_ORTHOGONAL, _NEW = 1e-5, 1e-4
# Two are enough but where a vector is replaced.
_PASSES = 5


class _Operator(Protocol):
    shape: tuple[int, int]

    def matmat(self, x: Any) -> Any: ...

    def rmatmat(self, y: Any) -> Any: ...


def leading_values(
    operator: _Operator,
    count: int,
    *,
    tolerance: float = 1e-2,
    max_steps: int = 16,
    generator: np.random.Generator,
) -> Doubles | None:
    """The `count` leading singular values of `operator`, largest first.

    Parameters
    ----------
    operator : of shape (rows, columns)
    count : at least 2; as many as there are, where they are fewer
    tolerance : how far a value may move in the last step, as a share of the distance from the
        first to the last; what is missing after it is much less, for convergence is geometric
    max_steps : bound on the work
    generator : of the vectors to start from

    Returns
    -------
    (count,) values, None where they still move after the last step

    Raises
    ------
    NotFinite
        if a product overflows float32.
    """
    rows, columns = operator.shape
    count = min(count, rows, columns)
    width = min(_EACH * count, rows, columns)
    most = min(max_steps * width, columns)
    right = np.empty((columns, most), np.float32, order="F")
    images = np.empty((rows, most), np.float32, order="F")
    # From the adjoint's image: what the operator maps to nothing is not searched.
    start = generator.standard_normal((rows, width)).astype(np.float32)
    block = _orthonormal(_finite(operator.rmatmat(start)), right[:, :0], generator)
    gram = np.empty((most, most))
    known, last, unit = 0, None, 1.0
    while True:
        end = known + block.shape[1]
        right[:, known:end], images[:, known:end] = block, _finite(operator.matmat(block))
        if last is None:  # squares of what float32 holds may not be in its range
            unit = float(np.abs(images[:, :end]).max()) or 1.0
        images[:, known:end] /= unit
        gram[:end, known:end] = images[:, :end].T @ images[:, known:end]
        gram[known:end, :known] = gram[:known, known:end].T
        squares = np.linalg.eigvalsh(gram[:end, :end])[::-1][:count]
        values = np.sqrt(np.maximum(squares, 0))
        if last is not None and _stands_still(values, last, tolerance):
            return values * unit
        if end == most:
            return values * unit if end == columns else None
        known, last = end, values
        back = _finite(operator.rmatmat(images[:, end - block.shape[1] : end]))
        block = _orthonormal(back[:, : most - end], right[:, :end], generator)


def _stands_still(values: Doubles, last: Doubles, tolerance: float) -> bool:
    limit = max(tolerance * (values[0] - values[-1]), _ROUNDING * values[0])
    return bool(np.abs(values - last).max() <= limit)


def _orthonormal(block: Floats, basis: Floats, generator: np.random.Generator) -> Floats:
    """An orthonormal basis of the block's columns, orthogonal to `basis`.

    Where nothing new is left of a column, as of an operator whose rank is reached, a random one
    takes its place: what is left is rounding, which leans to the basis and would count twice.
    """
    block = np.linalg.qr(block)[0]
    for _ in range(_PASSES):
        overlap = basis.T @ block
        if np.abs(overlap).max(initial=0) < _ORTHOGONAL:
            break
        rest = block - basis @ overlap
        lost = np.linalg.norm(rest, axis=0) < _NEW
        rest[:, lost] = generator.standard_normal((len(rest), np.count_nonzero(lost)))
        block = np.linalg.qr(rest)[0]
    return block


def _finite(products: Any) -> Floats:
    found = np.asarray(products, np.float32)
    if not np.isfinite(found).all():
        raise NotFinite("the products with the layer's weights overflow float32")
    return found
