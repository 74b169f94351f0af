"""Products of large matrices, on all cores.

A matrix times one to three vectors is the task of compiled loops, where numba is installed
(docs/performance.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from ckptforensics.arrays import Array, Floats
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.threads import BLOCK_ELEMENTS, gathered, in_threads, shares

# Multiplications below which handing work to another thread costs more than it saves.
_WORTH_SPLITTING = 1 << 21
# Elements of the rows that one vector after another is multiplied by.
_CACHED = 4 * BLOCK_ELEMENTS
# With so few columns, but more than one, the BLAS multiplies an adjoint fast on few rows only.
_NARROW = 8
# Columns that the compiled loops multiply at once.
FEW = 3

# Whether the compiled loops are asked for.
_asked: ContextVar[bool] = ContextVar("asked", default=False)


def multiply(matrix: Floats | Operator, x: Floats) -> Floats:
    """matrix @ x, for a large matrix."""
    if isinstance(matrix, Operator):
        return matrix.matmat(x)
    count = x.shape[1]
    if matrix.size * count < _WORTH_SPLITTING:
        return matrix @ x
    if (loops := _loops_for(matrix, x)) is not None:
        return loop_there(loops.multiply, [matrix], few_rows(x))[0][:count].T
    if count <= FEW:
        return _by_vectors(matrix, x)
    x = in_fours(x)
    out = np.empty((matrix.shape[0], x.shape[1]), np.float32)

    def part(rows: range) -> None:
        np.matmul(matrix[rows.start : rows.stop], x, out=out[rows.start : rows.stop])

    in_threads(part, shares(len(matrix)))
    return out[:, :count]


def _by_vectors(matrix: Floats, x: Floats) -> Floats:
    """matrix @ x by one vector after the other: the second finds the rows in the cache.

    The BLAS, asked for two or three columns at once, takes longer to lay the rows out for them than
    to read them.
    """
    vectors = np.ascontiguousarray(x.T)
    out = np.empty((len(vectors), len(matrix)), np.float32)
    step = max(1, _CACHED // matrix.shape[1])

    def part(rows: range) -> None:
        for first in range(rows.start, rows.stop, step):
            some = slice(first, min(first + step, rows.stop))
            for vector, products in zip(vectors, out, strict=True):
                # On such blocks matmul takes twice as long (docs/performance.md).
                np.dot(matrix[some], vector, out=products[some])

    in_threads(part, shares(len(matrix)))
    return out.T


def multiply_adjoint(matrix: Floats | Operator, y: Floats) -> Floats:
    """matrix.T @ y, for a large matrix."""
    if isinstance(matrix, Operator):
        return matrix.rmatmat(y)
    count = y.shape[1]
    if matrix.size * count < _WORTH_SPLITTING:
        return matrix.T @ y
    if (loops := _loops_for(matrix, y)) is not None:
        shape = FEW, matrix.shape[1]
        return loop_back(loops.multiply_adjoint, [matrix], [y], shape)[:count].T
    if not 1 < count <= _NARROW:

        def whole(back: Floats, begin: int, end: int) -> None:
            back += matrix[begin:end].T @ y[begin:end]

        return gathered((matrix.shape[1], count), whole, len(matrix))
    step = max(1, BLOCK_ELEMENTS // matrix.shape[1])
    yt = np.ascontiguousarray(y.T)

    def part(back: Floats, begin: int, end: int) -> None:
        for first in range(begin, end, step):
            some = slice(first, min(first + step, end))
            back += yt[:, some] @ matrix[some]

    return gathered((count, matrix.shape[1]), part, len(matrix)).T


def multiply_and_back(matrix: Floats | Operator, x: Floats, added: Floats) -> tuple[Floats, Floats]:
    """y = added + matrix @ x and matrix.T @ y, reading what is stored in BF16 once."""
    if isinstance(matrix, Operator):
        return matrix.round_trip(x, added)
    # In one loop over rows in the cache it takes longer: the BLAS is at its best there and back on
    # blocks of other sizes (docs/performance.md).
    y = added + multiply(matrix, x)
    return y, multiply_adjoint(matrix, y)


@cache
def compiled_loops() -> Any | None:
    """The module `kernels`; None where numba does not work or numbers are stored reversed."""
    if sys.byteorder != "little":
        return None
    try:
        import numba

        from ckptforensics.compute import kernels
    except Exception:  # not installed, not for this NumPy, or a library it needs is broken
        return None
    return None if getattr(numba.config, "DISABLE_JIT", 0) else kernels


@contextmanager
def loops_compiled(worth_it: bool) -> Iterator[None]:
    """Multiply large arrays by the compiled loops too, if loading them is worth it.

    It holds for the caller and the threads that work for it, not for other callers.
    """
    token = _asked.set(_asked.get() or worth_it)
    try:
        yield
    finally:
        _asked.reset(token)


def _loops_for(matrix: Floats, x: Floats) -> Any | None:
    """The compiled loops, where they are asked for and faster than the BLAS."""
    usable = _asked.get() and x.shape[1] <= FEW and matrix.flags.c_contiguous
    return compiled_loops() if usable else None


def few_rows(x: Floats) -> Floats:
    """The columns, at most `FEW`, as so many rows; those that are lacking are 0."""
    rows = np.zeros((FEW, x.shape[0]), np.float32)
    rows[: x.shape[1]] = x.T
    return rows


def in_fours(x: Floats) -> Floats:
    """The columns with zeros behind them: the BLAS takes four at a time, and longer for fewer."""
    lacking = -x.shape[1] % 4
    return np.pad(x, ((0, 0), (0, lacking))) if lacking else x


def loop_there(loop: Any, matrices: Sequence[Array], x: Floats) -> list[Floats]:
    """(FEW, rows) products of matrices of one shape; x is laid out as the loop wants it."""
    out = [np.empty((FEW, len(matrix)), np.float32) for matrix in matrices]

    def part(rows: range) -> None:
        for matrix, y in zip(matrices, out, strict=True):
            loop(matrix, x, y, rows.start, rows.stop)

    in_threads(part, shares(len(matrices[0])))
    return out


def loop_back(
    loop: Any, matrices: Sequence[Array], y: Sequence[Floats], shape: tuple[int, int]
) -> Floats:
    """Sum of the adjoints' products, each matrix with its columns, laid out in this shape."""
    rows = [few_rows(columns) for columns in y]

    def part(back: Floats, begin: int, end: int) -> None:
        for matrix, some in zip(matrices, rows, strict=True):
            loop(matrix, some, back, begin, end)

    return gathered(shape, part, len(matrices[0]))
