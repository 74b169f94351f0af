"""A, F, L and R = L - I as matrix-free linear operators (docs/mathematics.md, section 5).

Vectors are columns: an operator maps (columns, k) to (rows, k). Products are float32 like the
weights; with a few vectors they cost one pass over the weights, however few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.products import multiply, multiply_adjoint, multiply_and_back, over_rows
from ckptforensics.errors import UsageError
from ckptforensics.forward.branches import branch_result, finish_branch
from ckptforensics.forward.norms import affine
from ckptforensics.forward.routing import expert_shares
from ckptforensics.layers import Attention, Block, Ffn, Linear, Matrix, Moe, Norm
from ckptforensics.linear.attention import AttentionMap
from ckptforensics.linear.fit import (
    Coefficients,
    Fit,
    closed_coefficients,
    combine_rows,
    fit_ffn,
    fit_gated_output,
)
from ckptforensics.linear.folded import FoldedMatrix

# Vectors over which the size of what enters a norm behind a branch is taken; fixed, so that
# results repeat.
_SIZE_SAMPLES = 512


class FfnMap(Operator):
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
        """y = F x + added and F'y, reading W_down once."""
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


class ExpertsMap(Operator):
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


class _StreamedMaps(Sequence[FfnMap]):
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


class ScaledMap(Operator):
    """diag(scale) [C] M: a branch with its own norm or factor behind it."""

    def __init__(self, inner: Operator, scale: Floats, *, centre: bool = False) -> None:
        self.shape = inner.shape
        self.inner = inner
        self.scale = scale[:, None]
        self.centre = centre

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        y = self.inner.matmat(x)
        if self.centre:
            y = y - y.mean(axis=0)
        return self.scale * y

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        y = self.scale * y
        if self.centre:
            y = y - y.mean(axis=0)
        return self.inner.rmatmat(y)


class SumMap(Operator):
    """I plus the sum of the branches that read the same residual stream."""

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


class SharedMap(Operator):
    """F inside a block's operator, which takes other vectors along in the block's own products.

    A product takes as long as reading the matrices, however few its vectors are.

    Attributes
    ----------
    inner : F
    along : vectors that go along with the next product; then what F made of them
    returned : what its adjoint made of that
    """

    def __init__(self, inner: FfnMap | ExpertsMap) -> None:
        self.shape = inner.shape
        self.inner = inner
        self.along: Floats | None = None
        self.returned: Floats | None = None

    @contextmanager
    def taking(self, along: Floats) -> Iterator[None]:
        """Take these vectors along with the products in this context."""
        self.along = along
        try:
            yield
        finally:
            self.along = self.returned = None

    def arrived(self) -> tuple[Floats, Floats]:
        """What F made of the vectors that went along, and its adjoint of that."""
        assert self.along is not None and self.returned is not None
        return self.along, self.returned

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        if self.along is None:
            return self.inner.matmat(x)
        y = self.inner.matmat(np.hstack([x, self.along]))
        self.along = y[:, x.shape[1] :]
        return y[:, : x.shape[1]]

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        if self.along is None:
            return self.inner.rmatmat(y)
        x = self.inner.rmatmat(np.hstack([y, self.along]))
        self.returned = x[:, y.shape[1] :]
        return x[:, : y.shape[1]]

    def round_trip(self, x: Floats, added: Floats | None = None) -> tuple[Floats, Floats]:
        """y = F x + added and F'y, there and back in one where F can."""
        if self.along is None:
            return self.inner.round_trip(x, added)
        count = x.shape[1]
        start = np.zeros((self.shape[0], count + self.along.shape[1]), np.float32)
        if added is not None:
            start[:, :count] = added
        y, back = self.inner.round_trip(np.hstack([x, self.along]), start)
        self.along, self.returned = y[:, count:], back[:, count:]
        return y[:, :count], back[:, :count]


class BlockMap(Operator):
    """L: the product of a block's steps, (I + F)(I + A) or I + A + F.

    Attributes
    ----------
    steps : in the order in which they act
    shared : F of the FFN or the experts, without a norm or factor behind it, as the steps have it
    """

    def __init__(self, steps: list[Operator], shared: SharedMap) -> None:
        self.shape = steps[0].shape
        self.steps = steps
        self.shared = shared

    @property
    def ffn(self) -> FfnMap | ExpertsMap:
        """F of the FFN or the experts."""
        return self.shared.inner

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
        with self.shared.taking(along):
            return self.rmatmat(y), self.shared.arrived()[1]

    def round_trip_along(
        self, x: Floats, along: Floats
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """y = L x and L'y, and the same of F and the vectors that go along."""
        with self.shared.taking(along):
            return self.round_trip(x), self.shared.arrived()


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


def block_map(block: Block, fit: Fit) -> BlockMap:
    """The linear approximation L of a block under a fit.

    A block without attention, or whose mixer is not analysed, has L = I + F.

    Raises
    ------
    NothingAnalysable
        if the activation is unknown.
    UsageError
        if the sampled fit has too few vectors.
    """
    ffn = SharedMap(ffn_map(block.ffn, fit, block.layer))
    # The paper's convention leaves LayerNorm's centring out of both branches.
    centred = fit.kind != "paper"
    f_branch, f_size = _behind(ffn, block.ffn, centred=centred)
    f_norm = block.ffn.after_norm
    if block.attention is None:
        return BlockMap([_normed(SumMap([f_branch]), f_norm, f_size, centred=centred)], ffn)
    a_branch, a_size = _behind(
        AttentionMap(block.attention, centred=centred), block.attention, centred=centred
    )
    if block.residual == "parallel":
        return BlockMap([SumMap([a_branch, f_branch])], ffn)
    steps = [
        _normed(SumMap([a_branch]), block.attention.after_norm, a_size, centred=centred),
        _normed(SumMap([f_branch]), f_norm, f_size, centred=centred),
    ]
    return BlockMap(steps, ffn)


def ffn_map(ffn: Ffn | Moe, fit: Fit, layer: int) -> FfnMap | ExpertsMap:
    """F of an FFN or of a layer of experts under a fit; errors as `block_map`."""
    if isinstance(ffn, Ffn):
        if ffn.output_gate is not None:
            return FfnMap(*fit_gated_output(ffn, fit, layer))
        return FfnMap(ffn.down.matrix, fit_ffn(ffn, fit, layer))
    shares, shared_share = expert_shares(ffn)
    own = _Experts(ffn.experts, ffn.norm, [scale for _, scale in shares])
    experts: Sequence[FfnMap]
    if ffn.held:
        experts = [FfnMap(expert.down.matrix, fit_ffn(expert, fit, layer)) for expert in own]
    elif fit.kind == "sampled":
        raise UsageError(
            f"the experts of layer {layer} do not fit into the memory allowed, so that a sampled "
            "fit would be repeated for every product",
            hint="allow more with --memory, or use another fit",
        )
    else:
        experts = _StreamedMaps(own, fit)
    shared = None
    if ffn.shared is not None:
        always = replace(ffn.shared, norm=ffn.norm)
        shared = (FfnMap(always.down.matrix, fit_ffn(always, fit, layer)), shared_share)
    return ExpertsMap(ffn.router.matrix.shape[1], experts, [w for w, _ in shares], shared)


class _Experts(Sequence[Ffn]):
    """The experts as their fit sees them: behind the branch's norm, the input times a factor."""

    def __init__(self, experts: Sequence[Ffn], norm: Norm | None, scales: list[float]) -> None:
        self._experts = experts
        self._norm = norm
        self._scales = scales

    def __len__(self) -> int:
        return len(self._experts)

    def __getitem__(self, index: Any) -> Any:
        expert = replace(self._experts[index], norm=self._norm)
        return _with_input_scale(expert, self._scales[index])


def _with_input_scale(expert: Ffn, factor: float) -> Ffn:
    """The expert that reads its input times a factor."""
    if factor == 1:
        return expert

    def scaled(linear: Linear) -> Linear:
        return Linear(linear.weight * np.float32(factor), linear.bias)

    gate = None if expert.gate is None else scaled(expert.gate)
    return replace(expert, gate=gate, up=scaled(expert.up))


def _behind(
    inner: Operator, branch: Attention | Ffn | Moe, *, centred: bool
) -> tuple[Operator, float]:
    """The branch with its own norm and factor; and the size of what enters the norm of the sum."""
    own_size, sum_size = _sizes(branch, inner.shape[1], centred=centred)
    inner = _normed(inner, branch.post_norm, own_size, centred=centred)
    if branch.scale is not None:
        scale = np.broadcast_to(np.asarray(branch.scale, np.float32), inner.shape[:1])
        inner = ScaledMap(inner, scale)
    return inner, sum_size


def _sizes(
    branch: Attention | Ffn | Moe, hidden_size: int, *, centred: bool
) -> tuple[float, float]:
    """What the norms behind the branch and behind its sum divide by; 1 where there is none.

    The root mean square over Gaussian input through the true branch. That of the linear part alone
    would be too small: a branch also returns constants, and what its units give for either sign.
    """
    if branch.post_norm is None and branch.after_norm is None:
        return 1.0, 1.0
    x = np.random.default_rng(0).standard_normal((_SIZE_SAMPLES, hidden_size), dtype=np.float32)
    z = _centre(x) if _centres(branch.norm, centred=centred) else x
    result = branch_result(branch, affine(z, branch.norm))
    own_size = _size(result, branch.post_norm, centred=centred)
    total = x + finish_branch(branch, result)
    return own_size, _size(total, branch.after_norm, centred=centred)


def _size(rows: Floats, norm: Norm | None, *, centred: bool) -> float:
    if norm is None:
        return 1.0
    if _centres(norm, centred=centred):
        rows = _centre(rows)
    return float(np.sqrt(np.mean(np.square(rows, dtype=np.float64)) + norm.eps))


def _centre(rows: Floats) -> Floats:
    return rows - rows.mean(axis=1, keepdims=True)


def _centres(norm: Norm | None, *, centred: bool) -> bool:
    """Whether the linear part takes the mean away; never by the paper's convention."""
    return centred and norm is not None and norm.kind == "layer"


def _normed(inner: Operator, norm: Norm | None, size: float, *, centred: bool) -> Operator:
    """The linear part of norm(M x), where what enters the norm has that size."""
    if norm is None:
        return inner
    factor = np.float32(1 / size if size > 0 else 0)
    return ScaledMap(inner, norm.gain * factor, centre=_centres(norm, centred=centred))
