"""The true, nonlinear branches of a block applied to single tokens, one token a row.

A single token attends to itself with weight 1 whatever its scores are, so attention is
output(repeat(value(norm(x)))) exactly (DESIGN 2.2), without softmax or position encoding.
"""

from __future__ import annotations

import numpy as np

from ckptforensics.layers import Attention, Block, Ffn, Floats, Linear
from ckptforensics.linear.activations import activation
from ckptforensics.linear.norms import apply_norm


def apply_linear(linear: Linear, rows: Floats) -> Floats:
    """weight x + bias for each row x."""
    out: Floats = rows @ linear.weight.T
    if linear.bias is not None:
        out += linear.bias
    return out


def attention_forward(attention: Attention, x: Floats) -> Floats:
    """What attention adds to each row of the residual stream, (N, hidden_size)."""
    value = apply_linear(attention.value, apply_norm(x, attention.norm))
    if attention.repeats > 1:
        heads = value.reshape(len(value), -1, attention.head_dim)
        value = np.repeat(heads, attention.repeats, axis=1).reshape(len(value), -1)
    return apply_linear(attention.output, value)


def ffn_hidden(ffn: Ffn, n: Floats) -> Floats:
    """The FFN's hidden activation for rows of normed input, (N, ffn_width)."""
    s = activation(ffn.activation).value
    up = apply_linear(ffn.up, n)
    if ffn.gate is None:
        return s(up)
    up *= s(apply_linear(ffn.gate, n))
    return up


def ffn_forward(ffn: Ffn, x: Floats) -> Floats:
    """What the FFN adds to each row of the residual stream, (N, hidden_size)."""
    return apply_linear(ffn.down, ffn_hidden(ffn, apply_norm(x, ffn.norm)))


def block_forward(block: Block, x: Floats, *, with_attention: bool = True) -> Floats:
    """The residual stream after the block, (N, hidden_size)."""
    attended = attention_forward(block.attention, x) if with_attention else np.float32(0)
    if block.residual == "parallel":
        return x + attended + ffn_forward(block.ffn, x)
    x = x + attended
    return x + ffn_forward(block.ffn, x)
