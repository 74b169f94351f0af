"""What every linear map of the package can do: products with blocks of vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ckptforensics.arrays import Floats


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

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = M x + added and M'y, for each column; by default of two products."""
        y = self.matmat(x)
        if added is not None:
            y = y + added
        return y, self.rmatmat(y)

    def dense(self) -> Floats:
        """The matrix itself, for tests and small models."""
        return self.matmat(np.eye(self.shape[1], dtype=np.float32))
