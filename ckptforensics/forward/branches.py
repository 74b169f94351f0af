"""The true, nonlinear branches of a block applied to single tokens, one token a row.

A single token attends to itself with weight 1 whatever its scores are, so attention is
output(repeat(value(norm(x)))) exactly (docs/mathematics.md, section 3), without softmax or
position encoding. Learned sinks and output gates make it depend on x; they are computed, not
ignored.
"""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.products import multiply
from ckptforensics.compute.threads import over_rows
from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward.activations import activation, sigmoid
from ckptforensics.forward.norms import apply_norm
from ckptforensics.forward.routing import routing_weights
from ckptforensics.layers import Attention, Block, Ffn, Linear, Moe, Sink


def apply_linear(linear: Linear, rows: Floats) -> Floats:
    """weight x + bias for each row x."""
    out = multiply(linear.matrix, np.ascontiguousarray(rows.T)).T
    if linear.bias is not None:
        out += linear.bias
    return out


def attention_forward(attention: Attention, x: Floats) -> Floats:
    """What attention adds to each row of the residual stream, (N, hidden_size)."""
    return finish_branch(attention, branch_result(attention, apply_norm(x, attention.norm)))


def branch_result(branch: Attention | Ffn | Moe, n: Floats) -> Floats:
    """What a branch makes of rows of normed input, before its own norm and factor, (N, d)."""
    if isinstance(branch, Attention):
        return _attention_result(branch, n)
    return experts_forward(branch, n) if isinstance(branch, Moe) else dense_forward(branch, n)


def _attention_result(attention: Attention, n: Floats) -> Floats:
    compressed = n
    if attention.latent is not None:
        compressed = apply_norm(apply_linear(attention.latent, n), attention.latent_norm)
    value = apply_linear(attention.value, compressed)
    if attention.clip is not None:
        np.clip(value, -attention.clip, attention.clip, out=value)
    heads = value.reshape(len(value), -1, attention.head_dim)
    if attention.repeats > 1:
        heads = np.repeat(heads, attention.repeats, axis=1)
    if attention.sink is not None:
        heads = heads * sink_weights(attention.sink, n)[:, :, None]
    value = heads.reshape(len(value), -1)
    if attention.gate is not None:
        value = value * sigmoid(apply_linear(attention.gate, n))
    return apply_linear(attention.output, value)


def sink_weights(sink: Sink, n: Floats) -> Floats:
    """Attention of each head to the token itself beside a learned sink, (N, num_heads).

    exp(s) / (exp(s) + exp(sink)) with s = scale q.k / sqrt(width). The rotation of a rotary
    encoding cancels between the query and the key of one position; a factor on its cosines is in
    `scale`.
    """
    heads = sink.scores.size
    query = apply_linear(sink.query, n).reshape(len(n), heads, -1)
    key = apply_linear(sink.key, n).reshape(len(n), -1, query.shape[2])
    key = np.repeat(key, heads // key.shape[1], axis=1)
    score = np.sum(query * key, axis=2) * np.float32(sink.scale / np.sqrt(query.shape[2]))
    return sigmoid(score - sink.scores)


def ffn_hidden(ffn: Ffn, n: Floats) -> Floats:
    """The FFN's hidden activation for rows of normed input, (N, ffn_width)."""
    up = apply_linear(ffn.up, n)
    if ffn.gate is None:
        return activation(ffn.activation).value(up)
    gate = apply_linear(ffn.gate, n)
    units_up, units_gate = up.T, gate.T  # rows that lie behind each other

    def unite(units: slice) -> None:
        u, g = units_up[units], units_gate[units]
        if ffn.clamp is None:
            u *= activation(ffn.activation).value(g)
            return
        np.minimum(g, ffn.clamp, out=g)
        np.clip(u, -ffn.clamp, ffn.clamp, out=u)
        u += 1
        u *= activation("quick_gelu").value(g)

    over_rows(unite, *units_up.shape)
    return up


def ffn_forward(ffn: Ffn | Moe, x: Floats) -> Floats:
    """What the FFN or the experts add to each row of the residual stream, (N, hidden_size)."""
    return finish_branch(ffn, branch_result(ffn, apply_norm(x, ffn.norm)))


def experts_forward(moe: Moe, n: Floats) -> Floats:
    """Weighted sum of the experts' outputs for rows of normed input, (N, hidden_size)."""
    weights = routing_weights(moe, n)
    out = np.zeros_like(n)
    for index, weight in enumerate(weights.T):
        rows = np.flatnonzero(weight)
        if rows.size == 0:
            continue
        expert = moe.experts[index]
        share = weight[rows, None].astype(np.float32)
        if moe.plan.routing == "sigmoid-input":
            out[rows] += dense_forward(expert, n[rows] * share)
        else:
            out[rows] += dense_forward(expert, n[rows]) * share
    if moe.shared is not None:
        always = dense_forward(moe.shared, n)
        if moe.shared_router is not None:
            always = always * sigmoid(apply_linear(moe.shared_router, n))
        out += always
    return out


def block_forward(block: Block, x: Floats, *, with_attention: bool = True) -> Floats:
    """The residual stream after the block, (N, hidden_size).

    Raises
    ------
    NothingAnalysable
        if the block mixes tokens by something other than attention.
    """
    attention, ffn = block.attention, block.ffn
    if block.mixer is not None:
        raise NothingAnalysable(
            f"layer {block.layer} ({block.prefix}) cannot be rolled through: {block.mixer}"
        )
    if attention is not None:
        attended = attention_forward(attention, x) if with_attention else np.float32(0)
        if block.residual == "parallel":
            return x + attended + ffn_forward(ffn, x)
        x = apply_norm(x + attended, attention.after_norm)
    return apply_norm(x + ffn_forward(ffn, x), ffn.after_norm)


def dense_forward(ffn: Ffn, n: Floats) -> Floats:
    """What one FFN or expert returns for rows of normed input, (N, hidden_size)."""
    out = apply_linear(ffn.down, ffn_hidden(ffn, n))
    if ffn.output_gate is not None:
        out *= sigmoid(apply_linear(ffn.output_gate, n))
    return out


def finish_branch(branch: Attention | Ffn | Moe, added: Floats) -> Floats:
    """The branch's own norm and factor, which come before its result is added."""
    added = apply_norm(added, branch.post_norm)
    return added if branch.scale is None else added * np.asarray(branch.scale, np.float32)
