"""Matrices that stay as they are stored, in BF16, while they are multiplied.

Half the bytes of float32, nothing to decode and nothing to hold: products with up to three vectors
take as long as reading the matrix. Numbers are exact and sums are float32, as with the decoded
matrix, only their order differs. Needs numba; without it, weights are decoded
(docs/performance.md).
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Floats
from ckptforensics.compute import buffers
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.products import (
    FEW,
    compiled_loops,
    few_rows,
    in_fours,
    loop_back,
    loop_there,
)
from ckptforensics.compute.threads import gathered, in_threads, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# Elements decoded at once for products with many vectors: enough rows for the BLAS to be fast.
_DECODED_ELEMENTS = 1 << 20
# Columns from which on the BLAS multiplies an adjoint faster than the loops, three at a time.
_MANY = 24


class Bf16Matrix(Operator):
    """A matrix in BF16 whose products are those of its float32 numbers.

    Indexing decodes: `matrix[rows]` is a float32 array.

    Attributes
    ----------
    words : (rows, columns / 2) uint32, two numbers each
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self.words = words
        self.shape = (words.shape[0], 2 * words.shape[1])
        self._known_products: tuple[NDArray[np.uint32], Floats, Floats] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            words = self.words[index]
            out = np.empty((words.shape[0], self.shape[1]), np.float32)
            _loops().decode_bf16(words, out)
            return out
        halves: NDArray[np.uint16] = self.words.view(np.uint16)
        return (np.asarray(halves[index], np.uint32) << 16).view(np.float32)

    def rows(self, start: int, stop: int) -> Bf16Matrix:
        """Some of its rows, as they are stored."""
        return Bf16Matrix(self.words[start:stop])

    def decoded(self) -> Floats:
        """All of it as float32."""
        out = buffers.empty(self.shape)
        self._over_rows(lambda a, b: _loops().decode_bf16(self.words[a:b], out[a:b]))
        return out

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return products([self], x)[0]

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return adjoint_products([self], [y]) if y.shape[1] < _MANY else self._back_of_many(y)

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = M x + added and M'y, for each column, reading M once."""
        if x.shape[1] > FEW:
            return super().round_trip(x, added)
        if added is None:
            added = np.zeros((len(self), x.shape[1]), np.float32)
        parted, y = _parted(few_rows(x)), few_rows(added)
        work = partial(_loops().multiply_and_back_bf16, self.words, parted, y)
        back = gathered(parted.shape, work, len(self))
        return y[: x.shape[1]].T, _joined(back)[: x.shape[1]].T

    def row_products(
        self, other: Bf16Matrix, weight: Floats | None
    ) -> tuple[Floats, Floats, Floats]:
        """Inner products of each row a with itself, with the other matrix's b, and of b with b.

        They are remembered, and cannot be written to.

        Parameters
        ----------
        weight : (columns,) factor on each column's products, None for 1
        """
        weight = np.ones(self.shape[1], np.float32) if weight is None else weight
        known = self._known_products
        # The fit and the search for the heaviest neuron ask for the same.
        if known is None or known[0] is not other.words or not np.array_equal(known[1], weight):
            parts = _parted(weight)
            out = np.empty((3, len(self)), np.float32)
            words = self.words, other.words
            self._over_rows(lambda *rows: _loops().row_products(*words, parts, out, *rows))
            out.flags.writeable = False
            known = self._known_products = other.words, weight.copy(), out
        return known[2][0], known[2][1], known[2][2]

    @cached_property
    def column_squares(self) -> Floats:
        """(columns,) sum of the squares of each column."""
        shape = (2, self.words.shape[1])
        sums = gathered(shape, partial(_loops().column_squares, self.words), len(self))
        return _joined(sums)[0]

    def row_peaks(self, size: Floats) -> Floats:
        """Largest |entry| times the size of its column in each row; sizes are at least 0."""
        peaks = np.empty(len(self), np.uint32)
        self._over_rows(partial(_loops().row_peaks, self.words, _parted(size), peaks))
        return peaks.view(np.float32)

    def multiply_many(self, x: Floats) -> Floats:
        """The product with many columns: rows are decoded and multiplied by the BLAS."""
        count = x.shape[1]
        x = in_fours(x)
        out = np.empty((len(self), x.shape[1]), np.float32)
        step = max(1, _DECODED_ELEMENTS // self.shape[1])

        def part(begin: int, end: int) -> None:
            decoded = np.empty((min(step, end - begin), self.shape[1]), np.float32)
            for first in range(begin, end, step):
                last = min(first + step, end)
                some = decoded[: last - first]
                _loops().decode_bf16(self.words[first:last], some)
                np.matmul(some, x, out=out[first:last])

        self._over_rows(part)
        return out[:, :count]

    def _back_of_many(self, y: Floats) -> Floats:
        """The adjoint's product with many columns, as `multiply_many`."""
        count = y.shape[1]
        y = in_fours(y)
        step = max(1, _DECODED_ELEMENTS // self.shape[1])

        def part(back: Floats, begin: int, end: int) -> None:
            for first in range(begin, end, step):
                some = slice(first, min(first + step, end))
                back += self[some].T @ y[some]

        return gathered((self.shape[1], y.shape[1]), part, len(self))[:, :count]

    def _over_rows(self, work: Callable[[int, int], None]) -> None:
        in_threads(lambda rows: work(rows.start, rows.stop), shares(len(self)))


def products(matrices: Sequence[Bf16Matrix], x: Floats) -> list[Floats]:
    """The product of each matrix, all of one shape, with each column of x."""
    if x.shape[1] > FEW:
        return [matrix.multiply_many(x) for matrix in matrices]
    words = [matrix.words for matrix in matrices]
    found = loop_there(_loops().multiply_bf16, words, _parted(few_rows(x)))
    return [rows[: x.shape[1]].T for rows in found]


def adjoint_products(matrices: Sequence[Bf16Matrix], y: Sequence[Floats]) -> Floats:
    """Sum of the adjoints' products, each matrix, all of one shape, with each of its columns."""
    count = y[0].shape[1]
    if count > FEW:
        starts = range(0, count, FEW)
        return np.hstack(
            [adjoint_products(matrices, [c[:, i : i + FEW] for c in y]) for i in starts]
        )
    words = [matrix.words for matrix in matrices]
    shape = (2 * FEW, words[0].shape[1])
    return _joined(loop_back(_loops().multiply_adjoint_bf16, words, y, shape))[:count].T


def _parted(rows: Floats) -> Floats:
    """Even and odd entries of each row, or of a vector, as rows of their own."""
    halves = rows.reshape(-1, rows.shape[-1] // 2, 2).transpose(0, 2, 1)
    return np.ascontiguousarray(halves).reshape(-1, rows.shape[-1] // 2)


def _joined(parted: Floats) -> Floats:
    """The rows of which `_parted` makes these."""
    words = parted.shape[1]
    return np.ascontiguousarray(parted.reshape(-1, 2, words).transpose(0, 2, 1)).reshape(
        -1, 2 * words
    )


def _loops() -> Any:
    return compiled_loops()
