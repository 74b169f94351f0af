"""Stored matrices with what is folded into them, known by their products alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.bf16 import Bf16Matrix, adjoint_products, products
from ckptforensics.compute.operator import Operator
from ckptforensics.layers import Norm

Term = tuple[Bf16Matrix, Floats | None]


class FoldedMatrix(Operator):
    """(diag(a) G + diag(b) U + ...) diag(g) [C], what `fold_norm` and `combine_rows` would write.

    Attributes
    ----------
    terms : the matrices and the factors of their rows, None for 1
    norm : whose gain, and centring if it is a LayerNorm, are folded in; None for none
    """

    def __init__(self, terms: Sequence[Term], norm: Norm | None) -> None:
        self.shape = terms[0][0].shape
        self.terms = terms
        self.norm = norm

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        if self.norm is not None:
            if self.norm.kind == "layer":
                x = x - x.mean(axis=0)
            x = x * self.norm.gain[:, None]
        found = products([matrix for matrix, _ in self.terms], x)
        terms = [_times(factor, y) for (_, factor), y in zip(self.terms, found, strict=True)]
        return sum(terms[1:], terms[0])

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        matrices = [matrix for matrix, _ in self.terms]
        x = adjoint_products(matrices, [_times(factor, y) for _, factor in self.terms])
        if self.norm is not None:
            x = x * self.norm.gain[:, None]
            if self.norm.kind == "layer":
                x = x - x.mean(axis=0)
        return x

    def row_squares(self) -> Floats:
        """Squared norm of each row, but for the centring; of one or two matrices."""
        weight = None if self.norm is None else np.square(self.norm.gain)
        (first, a), (last, b) = self.terms[0], self.terms[-1]
        one, both, other = first.row_products(last, weight)
        if first is last:
            return _times(a, _times(a, one))
        return _times(a, _times(a, one) + 2 * _times(b, both)) + _times(b, _times(b, other))


def _times(factor: Floats | None, rows: Floats) -> Floats:
    if factor is None:
        return rows
    return rows * (factor if rows.ndim == 1 else factor[:, None])
