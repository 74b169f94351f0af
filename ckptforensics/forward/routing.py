"""How a router's scores become the experts' weights."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Bools, Doubles, Floats
from ckptforensics.forward.activations import sigmoid
from ckptforensics.forward.norms import affine
from ckptforensics.layers import Moe

# Vectors over which the mean weight of an expert is taken; fixed, so that results repeat.
_SAMPLES = 4096


def routing_weights(moe: Moe, n: Floats) -> Doubles:
    """Weight of each expert for rows of normed input, (N, num_experts); 0 for those not chosen."""
    plan = moe.plan
    logits = (n @ moe.router.weight.T).astype(np.float64)
    if moe.router.bias is not None:
        logits += moe.router.bias
    if plan.routing == "top-softmax":
        weights = _softmax(np.where(_top(logits, plan.top_k), logits, -np.inf))
    elif plan.routing == "sparsemixer":
        weights = _sparsemixer(logits, plan.jitter)
    else:
        score = sigmoid if plan.routing.startswith("sigmoid") else _softmax
        scores: Doubles = score(logits)
        ranking: Doubles = scores if moe.correction is None else scores + moe.correction
        if plan.routing == "softmax-groups":
            grouped = ranking.reshape(len(ranking), plan.groups, -1)
            best = grouped.argmax(axis=2)[:, :, None] == np.arange(grouped.shape[2])
            weights = np.where(best.reshape(scores.shape), scores, 0)
        else:
            if plan.groups > plan.groups_kept:
                ranking = _keep_best_groups(ranking, plan.groups, plan.groups_kept, moe)
            weights = np.where(_top(ranking, plan.top_k), scores, 0)
    if plan.renormalise:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-20)
    if moe.expert_scale is not None:
        weights = weights * moe.expert_scale
    return weights * plan.scale


def expert_shares(moe: Moe) -> tuple[list[tuple[float, float]], float]:
    """How much each expert counts over standard Gaussian input of the branch's norm.

    Returns
    -------
    for each routed expert its mean weight on the output and its factor on the input (1 unless the
    router weighs inputs: then the chance to be chosen, and the mean weight when chosen); and the
    mean weight of the shared expert
    """
    generator = np.random.default_rng(0)
    z = generator.standard_normal((_SAMPLES, moe.router.weight.shape[1]), dtype=np.float32)
    if moe.norm is not None and moe.norm.kind == "layer":
        z -= z.mean(axis=1, keepdims=True)
    n = affine(z, moe.norm)
    weights = routing_weights(moe, n)
    mean = weights.mean(axis=0)
    if moe.plan.routing == "sigmoid-input":
        chance = (weights > 0).mean(axis=0)
        shares = [
            (float(p), float(m / p) if p > 0 else 0.0) for p, m in zip(chance, mean, strict=True)
        ]
    else:
        shares = [(float(m), 1.0) for m in mean]
    shared = 1.0
    if moe.shared_router is not None:
        shared = float(sigmoid(n @ moe.shared_router.weight.T).mean())
    return shares, shared


def _softmax(logits: Doubles) -> Doubles:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _sparsemixer(logits: Doubles, jitter: float) -> Doubles:
    """The two best experts, each weighed against those whose logits are nearly as large.

    The best by softmax over all experts within 2 * jitter of it, relative to the logits' size; the
    second the same way after the best is taken out. The weights do not sum to 1.
    """
    weights = np.zeros_like(logits)
    rows = np.arange(len(logits))
    remaining = logits.copy()
    for _ in range(2):
        best = remaining.argmax(axis=1)
        top = remaining[rows, best][:, None]
        size = np.maximum(np.abs(logits), top)
        # Multiplied out: a size of 0 belongs to logits of 0.
        near = top - logits <= 2 * jitter * size
        weights[rows, best] = _softmax(np.where(near, remaining, -np.inf))[rows, best]
        remaining[rows, best] = -np.inf
    return weights


def _top(scores: Doubles, count: int) -> Bools:
    chosen = np.zeros(scores.shape, bool)
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def _keep_best_groups(ranking: Doubles, groups: int, kept: int, moe: Moe) -> Doubles:
    """Experts outside the best groups cannot be chosen.

    A group counts by its two best experts where a correction is learned (DeepSeek V3), else by
    its best (DeepSeek V2).
    """
    by_group = ranking.reshape(len(ranking), groups, -1)
    if moe.correction is not None:
        strength = np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2)
    else:
        strength = by_group.max(axis=2)
    allowed = _top(strength, kept)[:, :, None]
    return np.where(allowed, by_group, -np.inf).reshape(ranking.shape)
