"""L of a block from its parts: which maps act in which order, with the norms behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.operator import Operator
from ckptforensics.errors import UsageError
from ckptforensics.forward import affine, branch_result, expert_shares, finish_branch
from ckptforensics.layers import Attention, Block, Ffn, Linear, Moe, Norm
from ckptforensics.linear.attention import AttentionMap
from ckptforensics.linear.fit import (
    Fit,
    fit_ffn,
    fit_gated_output,
)
from ckptforensics.linear.operators import (
    BlockMap,
    ExpertsMap,
    FfnMap,
    ScaledMap,
    StreamedMaps,
    SumMap,
)

# Vectors over which the size of what enters a norm behind a branch is taken; fixed, so that
# results repeat.
_SIZE_SAMPLES = 512


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
        experts = StreamedMaps(own, fit)
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
