"""What every linear map of the package can do: products with blocks of vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ckptforensics.layers import Floats

# Columns of the identity multiplied at once where a whole matrix's size is needed.
_COLUMNS_AT_ONCE = 512


class Operator(ABC):
    """A linear map known by its products.

    Attributes
    ----------
    shape : (rows, columns)
    """

    shape: tuple[int, int]

    @abstractmethod
    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x, (columns, k) to (rows, k)."""

    @abstractmethod
    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y, (rows, k) to (columns, k)."""

    def dense(self) -> Floats:
        """The matrix itself, for tests and small models."""
        return self.matmat(np.eye(self.shape[1], dtype=np.float32))

    def frobenius(self) -> float:
        """The Frobenius norm, exactly: the operator is applied to every unit vector once."""
        columns = self.shape[1]
        total = 0.0
        for begin in range(0, columns, _COLUMNS_AT_ONCE):
            count = min(_COLUMNS_AT_ONCE, columns - begin)
            part = self.matmat(np.eye(columns, count, -begin, dtype=np.float32))
            total += float(np.sum(np.square(part, dtype=np.float64)))
        return float(np.sqrt(total))
