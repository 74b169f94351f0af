"""A, F, L and R = L - I as matrix-free linear operators (DESIGN 2.4).

Vectors are columns: an operator maps (columns, k) to (rows, k). Products are float32 like the
weights; a block of k vectors costs one pass over the weights whatever k is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from ckptforensics.layers import Attention, Block, Floats
from ckptforensics.linear.fit import Fit, fit_ffn
from ckptforensics.linear.norms import fold_norm


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


class AttentionMap(Operator):
    """A = W_O rep(W_V diag(g) [C]): what attention adds to a single token, without constants.

    Repeating a value head and multiplying by W_O is the same as multiplying by the sum of the
    columns of W_O that meet its copies, so the operator keeps that smaller sum.
    """

    def __init__(self, attention: Attention, *, centred: bool = True) -> None:
        d, inner = attention.output.weight.shape
        self.shape = (d, d)
        norm, value = attention.norm, attention.value.weight
        self.value = fold_norm(value, norm) if centred else value * norm.gain
        self.output = attention.output.weight
        if attention.repeats > 1:
            per_copy = self.output.reshape(d, -1, attention.repeats, attention.head_dim)
            summed: Floats = per_copy.sum(axis=2)
            self.output = summed.reshape(d, inner // attention.repeats)

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return self.output @ (self.value @ x)

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return self.value.T @ (self.output.T @ y)


class FfnMap(Operator):
    """F = W_down F1, F1 the linear fit of the hidden activation.

    Attributes
    ----------
    down : (hidden_size, ffn_width)
    f1 : (ffn_width, hidden_size)
    """

    def __init__(self, down: Floats, f1: Floats) -> None:
        self.shape = (down.shape[0], f1.shape[1])
        self.down = down
        self.f1 = f1

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return self.down @ (self.f1 @ x)

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return self.f1.T @ (self.down.T @ y)

    def heaviest_columns(self, count: int) -> Floats:
        """Columns of W_down of the `count` neurons with the largest |w_down,k| |row k of F1|.

        A few such neurons make the singular defect, so these columns nearly span its direction.
        """
        weight = np.linalg.norm(self.down, axis=0) * np.linalg.norm(self.f1, axis=1)
        heaviest = np.argsort(weight)[::-1][:count]
        return self.down[:, heaviest]


class BlockMap(Operator):
    """L = (I + F)(I + A), or I + A + F for parallel branches."""

    def __init__(
        self,
        attention: AttentionMap,
        ffn: FfnMap,
        residual: Literal["sequential", "parallel"] = "sequential",
    ) -> None:
        self.shape = attention.shape
        self.attention = attention
        self.ffn = ffn
        self.residual = residual

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        if self.residual == "parallel":
            return x + self.attention.matmat(x) + self.ffn.matmat(x)
        x = x + self.attention.matmat(x)
        return x + self.ffn.matmat(x)

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        if self.residual == "parallel":
            return y + self.attention.rmatmat(y) + self.ffn.rmatmat(y)
        y = y + self.ffn.rmatmat(y)
        return y + self.attention.rmatmat(y)


class ResidualMap(Operator):
    """R = L - I, whose negative eigenvalues take a direction away again."""

    def __init__(self, block: BlockMap) -> None:
        self.shape = block.shape
        self.block = block

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return self.block.matmat(x) - x

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return self.block.rmatmat(y) - y


def block_map(block: Block, fit: Fit) -> BlockMap:
    """The linear approximation L of a block under a fit.

    Raises
    ------
    NothingAnalysable
        if the activation is unknown.
    UsageError
        if the sampled fit has too few vectors.
    """
    # The paper's convention leaves LayerNorm's centring out of both branches.
    attention = AttentionMap(block.attention, centred=fit.kind != "paper")
    ffn = FfnMap(block.ffn.down.weight, fit_ffn(block.ffn, fit, block.layer))
    return BlockMap(attention, ffn, block.residual)
