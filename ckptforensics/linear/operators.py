"""A, F, L and R = L - I as matrix-free linear operators (docs/mathematics.md, section 5).

Vectors are columns: an operator maps (columns, k) to (rows, k). Products are float32 like the
weights; a block of k vectors costs one pass over the weights whatever k is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ckptforensics.layers import Attention, Block, Ffn, Floats, Linear, Moe, Norm
from ckptforensics.linear.attention import AttentionMap
from ckptforensics.linear.base import Operator
from ckptforensics.linear.fit import Fit, fit_ffn, fit_gated_output
from ckptforensics.linear.routing import expert_shares


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

    def neuron_weights(self) -> Floats:
        """|w_down,k| |row k of F1| of each neuron."""
        return np.linalg.norm(self.down, axis=0) * np.linalg.norm(self.f1, axis=1)

    def heaviest_columns(self, count: int) -> Floats:
        """Columns of W_down of the `count` neurons with the largest |w_down,k| |row k of F1|.

        A few such neurons make the singular defect, so these columns nearly span its direction.
        """
        heaviest = np.argsort(self.neuron_weights())[::-1][:count]
        return self.down[:, heaviest]


class ExpertsMap(Operator):
    """F of a layer of experts: the router-weighted mean of theirs, plus the shared expert's.

    Least squares on the whole layer would differ: a router picks experts by the input, so that an
    expert sees other vectors than the Gaussian it is fitted on (tests/linear/test_experts.py).

    Attributes
    ----------
    experts : each routed expert's F, in their order
    weights : its mean weight over Gaussian input
    shared : the shared expert's F and its mean weight, or None
    """

    def __init__(
        self,
        experts: list[FfnMap],
        weights: list[float],
        shared: tuple[FfnMap, float] | None = None,
    ) -> None:
        self.shape = experts[0].shape
        self.experts = experts
        self.weights = weights
        self.shared = shared
        self._parts = list(zip(experts, weights, strict=True))
        if shared is not None:
            self._parts.append(shared)

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        out = np.zeros((self.shape[0], x.shape[1]), np.float32)
        for expert, weight in self._parts:
            out += np.float32(weight) * expert.matmat(x)
        return out

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        out = np.zeros((self.shape[1], y.shape[1]), np.float32)
        for expert, weight in self._parts:
            out += np.float32(weight) * expert.rmatmat(y)
        return out

    def heaviest_columns(self, count: int) -> Floats:
        """Columns of the down maps of the heaviest neurons of all experts, by their weight."""
        columns, weights = [], []
        for expert, weight in self._parts:
            strength = expert.neuron_weights()
            heaviest = np.argsort(strength)[::-1][:count]
            columns.append(expert.down[:, heaviest])
            weights.append(weight * strength[heaviest])
        order = np.argsort(np.concatenate(weights))[::-1][:count]
        return np.concatenate(columns, axis=1)[:, order]


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


class BlockMap(Operator):
    """L: the product of a block's steps, (I + F)(I + A) or I + A + F.

    Attributes
    ----------
    steps : in the order in which they act
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
    ffn = ffn_map(block.ffn, fit, block.layer)
    # The paper's convention leaves LayerNorm's centring out of both branches.
    centred = fit.kind != "paper"
    f_branch = _behind(ffn, block.ffn, centred=centred)
    if block.attention is None:
        return BlockMap([_normed(SumMap([f_branch]), block.ffn.after_norm, centred=centred)], ffn)
    a_branch = _behind(
        AttentionMap(block.attention, centred=centred), block.attention, centred=centred
    )
    if block.residual == "parallel":
        return BlockMap([SumMap([a_branch, f_branch])], ffn)
    steps = [
        _normed(SumMap([a_branch]), block.attention.after_norm, centred=centred),
        _normed(SumMap([f_branch]), block.ffn.after_norm, centred=centred),
    ]
    return BlockMap(steps, ffn)


def ffn_map(ffn: Ffn | Moe, fit: Fit, layer: int) -> FfnMap | ExpertsMap:
    """F of an FFN or of a layer of experts under a fit; errors as `block_map`."""
    if isinstance(ffn, Ffn):
        if ffn.output_gate is not None:
            return FfnMap(*fit_gated_output(ffn, fit, layer))
        return FfnMap(ffn.down.weight, fit_ffn(ffn, fit, layer))
    shares, shared_share = expert_shares(ffn)
    experts, weights = [], []
    for expert, (weight, input_scale) in zip(ffn.experts, shares, strict=True):
        own = _with_input_scale(replace(expert, norm=ffn.norm), input_scale)
        experts.append(FfnMap(own.down.weight, fit_ffn(own, fit, layer)))
        weights.append(weight)
    shared = None
    if ffn.shared is not None:
        own = replace(ffn.shared, norm=ffn.norm)
        shared = (FfnMap(own.down.weight, fit_ffn(own, fit, layer)), shared_share)
    return ExpertsMap(experts, weights, shared)


def _with_input_scale(expert: Ffn, factor: float) -> Ffn:
    """The expert that reads its input times a factor."""
    if factor == 1:
        return expert

    def scaled(linear: Linear) -> Linear:
        return Linear(linear.weight * np.float32(factor), linear.bias)

    gate = None if expert.gate is None else scaled(expert.gate)
    return replace(expert, gate=gate, up=scaled(expert.up))


def _behind(inner: Operator, branch: Attention | Ffn | Moe, *, centred: bool) -> Operator:
    """The branch with its own norm and factor; the norm divides by the branch's own size."""
    inner = _normed(inner, branch.post_norm, centred=centred)
    if branch.scale is None:
        return inner
    scale = np.broadcast_to(np.asarray(branch.scale, np.float32), inner.shape[:1])
    return ScaledMap(inner, scale)


def _normed(inner: Operator, norm: Norm | None, *, centred: bool) -> Operator:
    """norm(M x) for isotropic x: the mean square of M x is |M|_F^2 / rows."""
    if norm is None:
        return inner
    centre = norm.kind == "layer" and centred
    ones = np.ones(inner.shape[0], np.float32)
    size = ScaledMap(inner, ones, centre=centre).frobenius() / np.sqrt(inner.shape[0])
    factor = np.float32(1 / size if size > 0 else 0)
    return ScaledMap(inner, norm.gain * factor, centre=centre)
