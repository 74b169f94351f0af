"""A, F, L and R = L - I as matrix-free linear operators (docs/mathematics.md, section 5).

Vectors are columns: an operator maps (columns, k) to (rows, k). Products are float32 like the
weights; with a few vectors they cost one pass over the weights, however few.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.products import multiply, multiply_adjoint, multiply_and_back
from ckptforensics.compute.threads import over_rows
from ckptforensics.layers import Ffn, Matrix
from ckptforensics.linear.fit import (
    Coefficients,
    Fit,
    closed_coefficients,
    combine_rows,
)
from ckptforensics.linear.folded import FoldedMatrix


class CarryingMap(Operator):
    """A map with F inside, which takes other vectors through F along with its own products.

    A product takes as long as reading the matrices, however few its vectors are.
    """

    @abstractmethod
    def matmat_along(self, x: Floats, along: Floats) -> tuple[Floats, Floats]:
        """M x, and F of the vectors that go along."""

    @abstractmethod
    def rmatmat_along(self, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """M'y, and F' of the vectors that go along."""

    def round_trip_along(
        self, x: Floats, along: Floats, added: Floats | None = None
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """y = M x + added and M'y, and z = F along and F'z; by default of two products."""
        y, z = self.matmat_along(x, along)
        if added is not None:
            y = y + added
        back, back_along = self.rmatmat_along(y, z)
        return (y, back), (z, back_along)


class _FMap(CarryingMap):
    """F itself: what goes along are more columns."""

    def matmat_along(self, x: Floats, along: Floats) -> tuple[Floats, Floats]:
        """F x, and F of the vectors that go along."""
        return _parted(self.matmat(np.hstack([x, along])), x.shape[1])

    def rmatmat_along(self, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """F'y, and F' of the vectors that go along."""
        return _parted(self.rmatmat(np.hstack([y, along])), y.shape[1])

    def round_trip_along(
        self, x: Floats, along: Floats, added: Floats | None = None
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """y = F x + added and F'y, and the same of what goes along, there and back in one."""
        count = x.shape[1]
        start = np.zeros((self.shape[0], count + along.shape[1]), np.float32)
        if added is not None:
            start[:, :count] = added
        y, back = self.round_trip(np.hstack([x, along]), start)
        return (y[:, :count], back[:, :count]), (y[:, count:], back[:, count:])


def _parted(columns: Floats, count: int) -> tuple[Floats, Floats]:
    return columns[:, :count], columns[:, count:]


class FfnMap(_FMap):
    """F = W_down F1, F1 the linear fit of the hidden activation.

    Attributes
    ----------
    down : (hidden_size, ffn_width)
    f1 : (ffn_width, hidden_size)

    Each is an array, or what multiplies like one.
    """

    def __init__(self, down: Matrix, f1: Floats | FoldedMatrix) -> None:
        self.shape = (down.shape[0], f1.shape[1])
        self.down = down
        self.f1 = f1

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return multiply(self.down, multiply(self.f1, x))

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return multiply_adjoint(self.f1, multiply_adjoint(self.down, y))

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = F x + added and F'y, reading W_down once where it is kept in BF16."""
        if added is None:
            added = np.zeros((self.shape[0], x.shape[1]), np.float32)
        y, back = multiply_and_back(self.down, multiply(self.f1, x), added)
        return y, multiply_adjoint(self.f1, back)

    def heaviest_neuron(self) -> Floats:
        """The column of W_down of the neuron with the largest |w_down,k| |row k of F1|.

        A few such neurons make the singular defect, so it is a good guess of its direction.
        """
        down = self.down
        heaviest = int(np.argmax(_column_squares(down) * _row_squares(self.f1)))
        column: Floats = down[:, heaviest]
        return column


def _column_squares(matrix: Matrix) -> Floats:
    if isinstance(matrix, Bf16Matrix):
        return matrix.column_squares
    parts = over_rows(lambda r: np.einsum("ij,ij->j", matrix[r], matrix[r]), *matrix.shape)
    return sum(parts[1:], parts[0])


def _row_squares(matrix: Floats | FoldedMatrix) -> Floats:
    if isinstance(matrix, FoldedMatrix):
        return matrix.row_squares()
    parts = over_rows(lambda r: np.einsum("ij,ij->i", matrix[r], matrix[r]), *matrix.shape)
    return np.concatenate(parts)


class ExpertsMap(_FMap):
    """F of a layer of experts: the router-weighted mean of theirs, plus the shared expert's.

    Least squares on the whole layer would differ: a router picks experts by the input, so that an
    expert sees other vectors than the Gaussian it is fitted on (tests/linear/test_experts.py).

    Attributes
    ----------
    experts : each routed expert's F, in their order; made anew at each access where the block
        does not hold its experts
    weights : its mean weight over Gaussian input
    shared : the shared expert's F and its mean weight, or None
    """

    def __init__(
        self,
        hidden_size: int,
        experts: Sequence[FfnMap],
        weights: Sequence[float],
        shared: tuple[FfnMap, float] | None = None,
    ) -> None:
        self.shape = (hidden_size, hidden_size)
        self.experts = experts
        self.weights = weights
        self.shared = shared

    def parts(self) -> Iterator[tuple[FfnMap, float]]:
        """The routed experts and then the shared one, each with its weight."""
        yield from zip(self.experts, self.weights, strict=True)
        if self.shared is not None:
            yield self.shared

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        out = np.zeros((self.shape[0], x.shape[1]), np.float32)
        for expert, weight in self.parts():
            out += np.float32(weight) * expert.matmat(x)
        return out

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        out = np.zeros((self.shape[1], y.shape[1]), np.float32)
        for expert, weight in self.parts():
            out += np.float32(weight) * expert.rmatmat(y)
        return out


class StreamedMaps(Sequence[FfnMap]):
    """F of experts that are not held: read and folded at each access, fitted at the first."""

    def __init__(self, experts: Sequence[Ffn], fit: Fit) -> None:
        self._experts = experts
        self._with_norm = fit.kind == "canonical"
        self._coefficients: dict[int, Coefficients] = {}

    def __len__(self) -> int:
        return len(self._experts)

    def __getitem__(self, index: Any) -> Any:
        expert = self._experts[index]
        if index not in self._coefficients:
            found = closed_coefficients(expert, with_norm=self._with_norm)
            self._coefficients[index] = found
        f1 = combine_rows(expert, *self._coefficients[index], with_norm=self._with_norm)
        return FfnMap(expert.down.matrix, f1)


class ScaledMap(CarryingMap):
    """diag(scale) [C] M: a branch with its own norm or factor behind it."""

    def __init__(self, inner: Operator, scale: Floats, *, centre: bool = False) -> None:
        self.shape = inner.shape
        self.inner = inner
        self.scale = scale[:, None]
        self.centre = centre

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return self.scale * self._centred(self.inner.matmat(x))

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return self.inner.rmatmat(self._centred(self.scale * y))

    def matmat_along(self, x: Floats, along: Floats) -> tuple[Floats, Floats]:
        """See `CarryingMap`; of a map with F inside."""
        y, z = _carrying(self.inner).matmat_along(x, along)
        return self.scale * self._centred(y), z

    def rmatmat_along(self, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """See `CarryingMap`; of a map with F inside."""
        return _carrying(self.inner).rmatmat_along(self._centred(self.scale * y), along)

    def _centred(self, y: Floats) -> Floats:
        return y - y.mean(axis=0) if self.centre else y


class SumMap(CarryingMap):
    """I plus the sum of the branches that read the same residual stream.

    Attributes
    ----------
    branches : if F is in one of them, it is in the last
    """

    def __init__(self, branches: list[Operator]) -> None:
        self.shape = branches[0].shape
        self.branches = branches

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return sum((branch.matmat(x) for branch in self.branches), x)

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return sum((branch.rmatmat(y) for branch in self.branches), y)

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = M x + added and M'y; of one branch by its own."""
        if len(self.branches) > 1:
            return super().round_trip(x, added)
        y, back = self.branches[0].round_trip(x, x if added is None else x + added)
        return y, y + back

    def matmat_along(self, x: Floats, along: Floats) -> tuple[Floats, Floats]:
        """See `CarryingMap`; of a map with F inside."""
        *others, last = self.branches
        y, z = _carrying(last).matmat_along(x, along)
        return sum((branch.matmat(x) for branch in others), x) + y, z

    def rmatmat_along(self, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """See `CarryingMap`; of a map with F inside."""
        *others, last = self.branches
        x, z = _carrying(last).rmatmat_along(y, along)
        return sum((branch.rmatmat(y) for branch in others), y) + x, z

    def round_trip_along(
        self, x: Floats, along: Floats, added: Floats | None = None
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """See `CarryingMap`; of one branch by its own."""
        if len(self.branches) > 1:
            return super().round_trip_along(x, along, added)
        start = x if added is None else x + added
        (y, back), found = _carrying(self.branches[0]).round_trip_along(x, along, start)
        return (y, y + back), found


def _carrying(inner: Operator) -> CarryingMap:
    assert isinstance(inner, CarryingMap)  # what goes along goes to F alone
    return inner


class BlockMap(Operator):
    """L: the product of a block's steps, (I + F)(I + A) or I + A + F.

    Attributes
    ----------
    steps : in the order in which they act; F is in the last
    ffn : F of the FFN or the experts, without a norm or factor behind it
    """

    def __init__(self, steps: list[Operator], ffn: FfnMap | ExpertsMap) -> None:
        self.shape = steps[0].shape
        self.steps = steps
        self.ffn = ffn

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        for step in self.steps:
            x = step.matmat(x)
        return x

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        for step in reversed(self.steps):
            y = step.rmatmat(y)
        return y

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = L x + added and L'y, the last step there and back in one."""
        for step in self.steps[:-1]:
            x = step.matmat(x)
        y, back = self.steps[-1].round_trip(x, added)
        for step in reversed(self.steps[:-1]):
            back = step.rmatmat(back)
        return y, back

    def rmatmat_along(self, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """L'y, and F' of the vectors that go along."""
        y, z = _carrying(self.steps[-1]).rmatmat_along(y, along)
        for step in reversed(self.steps[:-1]):
            y = step.rmatmat(y)
        return y, z

    def round_trip_along(
        self, x: Floats, along: Floats
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """y = L x and L'y, and the same of F and the vectors that go along."""
        for step in self.steps[:-1]:
            x = step.matmat(x)
        (y, back), found = _carrying(self.steps[-1]).round_trip_along(x, along)
        for step in reversed(self.steps[:-1]):
            back = step.rmatmat(back)
        return (y, back), found


class ResidualMap(Operator):
    """R = L - I, whose negative eigenvalues take a direction away again."""

    def __init__(self, block: Operator) -> None:
        self.shape = block.shape
        self.block = block

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return self.block.matmat(x) - x

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return self.block.rmatmat(y) - y
