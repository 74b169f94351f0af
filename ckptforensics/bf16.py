"""Matrices that stay as they are stored, in BF16, while they are multiplied.

Half the bytes of float32, nothing to decode and nothing to hold: products with one vector take as
long as reading the matrix. Numbers are exact and sums are float32, as with the decoded matrix, only
their order differs. Needs numba; without it, weights are decoded (docs/performance.md).
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckptforensics.operator import Operator
from ckptforensics.parallel import in_threads, shares

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float32]

# Up to so many vectors are multiplied one by one.
_FEW = 3
# Elements decoded at once for products with many vectors: enough rows for the BLAS to be fast.
_DECODED_ELEMENTS = 1 << 20


@cache
def available() -> bool:
    """Whether matrices can stay in BF16: numba is installed, and the machine's order fits."""
    return sys.byteorder == "little" and importlib.util.find_spec("numba") is not None


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
            _kernels().decode(words, out)
            return out
        halves: NDArray[np.uint16] = self.words.view(np.uint16)
        return (np.asarray(halves[index], np.uint32) << 16).view(np.float32)

    def decoded(self) -> Floats:
        """All of it as float32."""
        out = np.empty(self.shape, np.float32)
        _over(len(self), lambda a, b: _kernels().decode(self.words[a:b], out[a:b]))
        return out

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        if x.shape[1] > _FEW:
            return self._multiply_many(x)
        y = np.empty((x.shape[1], len(self)), np.float32)
        multiply = _kernels().multiply
        for column, result in zip(x.T, y, strict=True):
            even, odd = _parted(column)
            _over(len(self), _bound(multiply, self.words, even, odd, result))
        return y.T

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        out = np.empty((y.shape[1], self.shape[1]), np.float32)
        for column, result in zip(np.ascontiguousarray(y.T), out, strict=True):
            result[:] = self._gathered(_bound(_kernels().multiply_adjoint, self.words, column))
        return out.T

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = M x + added and M'y, for each column, reading M once."""
        y = np.zeros((x.shape[1], len(self)), np.float32)
        if added is not None:
            y[:] = added.T
        back = np.empty(x.shape[::-1], np.float32)
        for column, image, result in zip(x.T, y, back, strict=True):
            even, odd = _parted(column)
            work = _bound(_kernels().multiply_and_back, self.words, even, odd, image)
            result[:] = self._gathered(work)
        return y.T, back.T

    def row_products(
        self, other: Bf16Matrix, weight: Floats | None
    ) -> tuple[Floats, Floats, Floats]:
        """Inner products of each row a with itself, with the other matrix's b, and of b with b.

        Parameters
        ----------
        weight : (columns,) factor on each column's products
        """
        even, odd = _parted(np.ones(self.shape[1], np.float32) if weight is None else weight)
        out = np.empty((3, len(self)), np.float32)
        _over(len(self), _bound(_kernels().products, self.words, other.words, even, odd, *out))
        return out[0], out[1], out[2]

    @cached_property
    def column_squares(self) -> Floats:
        """(columns,) sum of the squares of each column."""
        return self._gathered(_bound(_kernels().column_squares, self.words))

    def _multiply_many(self, x: Floats) -> Floats:
        """The product with many columns: rows are decoded and multiplied by the BLAS."""
        out = np.empty((len(self), x.shape[1]), np.float32)
        step = max(1, _DECODED_ELEMENTS // self.shape[1])

        def part(begin: int, end: int) -> None:
            decoded = np.empty((min(step, end - begin), self.shape[1]), np.float32)
            for first in range(begin, end, step):
                last = min(first + step, end)
                some = decoded[: last - first]
                _kernels().decode(self.words[first:last], some)
                np.matmul(some, x, out=out[first:last])

        _over(len(self), part)
        return out

    def _gathered(self, work: Callable[..., None]) -> Floats:
        """A vector along the rows to which each thread's rows contribute."""

        def part(rows: range) -> Floats:
            both = np.zeros((2, self.words.shape[1]), np.float32)
            work(*both, rows.start, rows.stop)
            return both

        parts = in_threads(part, shares(len(self)))
        return np.ascontiguousarray(sum(parts[1:], parts[0]).T).reshape(-1)


def _parted(vector: Floats) -> tuple[Floats, Floats]:
    """The even and the odd entries."""
    return np.ascontiguousarray(vector[::2]), np.ascontiguousarray(vector[1::2])


def _bound(kernel: Any, *arguments: Any) -> Callable[..., None]:
    return lambda *rest: kernel(*arguments, *rest)


def _over(rows: int, work: Callable[[int, int], None]) -> None:
    in_threads(lambda part: work(part.start, part.stop), shares(rows))


@cache
def _kernels() -> Any:
    from ckptforensics import kernels

    return kernels
