"""The linear map A of attention on a single token."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.operator import Operator
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Attention, Ffn, Linear, Matrix, Norm, Sink
from ckptforensics.linear.fit import Fit, fit_ffn
from ckptforensics.linear.folded import FoldedMatrix
from ckptforensics.linear.quadratic import mean_norm_jacobian, sigmoid_moments

_Real = TypeVar("_Real", np.float32, np.float64)


class AttentionMap(Operator):
    """A = W_O rep(W_V diag(g) [C]): what attention adds to a single token, without constants.

    Repeating a value head and multiplying by W_O is the same as multiplying by the sum of the
    columns of W_O that meet its copies, so the operator keeps that smaller sum. Where attention is
    not affine in a token, A is its mean Jacobian over Gaussian input, like F: of MLA's inner norm,
    of values that are clipped, of a learned sink, and of an output gate, which is fitted like a
    gated FFN.
    """

    def __init__(self, attention: Attention, *, centred: bool = True) -> None:
        d, inner = attention.output.matrix.shape
        self.shape = (d, d)
        self.output: Matrix = attention.output.matrix
        self.value: Floats | FoldedMatrix = _value_map(attention, centred=centred)
        if attention.gate is None and attention.sink is None and attention.repeats > 1:
            output = attention.output.weight
            per_copy = output.reshape(d, -1, attention.repeats, attention.head_dim)
            summed: Floats = per_copy.sum(axis=2)
            self.output = summed.reshape(d, inner // attention.repeats)

    def matmat(self, x: Floats) -> Floats:
        """The product with each column of x."""
        return multiply(self.output, multiply(self.value, x))

    def rmatmat(self, y: Floats) -> Floats:
        """The adjoint's product with each column of y."""
        return multiply_adjoint(self.value, multiply_adjoint(self.output, y))


def _value_map(attention: Attention, *, centred: bool) -> Floats | FoldedMatrix:
    """The linear map from the residual stream to the values that meet the output map."""
    matrix, norm = attention.value.matrix, attention.norm
    beside = (attention.latent, attention.clip, attention.gate, attention.sink)
    if isinstance(matrix, Bf16Matrix) and beside == (None, None, None, None):
        folded = norm if centred or norm is None else replace(norm, kind="rms")
        return FoldedMatrix([(matrix, None)], folded)
    if attention.latent is not None:
        compressed, shift = _folded(attention.latent, attention.norm, centred=centred)
        value = _behind_inner_norm(attention, compressed, shift)
        shift = np.zeros(len(value))
    else:
        value, shift = _folded(attention.value, attention.norm, centred=centred)
    if attention.clip is not None:
        share = _share_within(attention.clip, value, shift).astype(np.float32)
        value = value * share[:, None]
    if attention.gate is None and attention.sink is None:
        return value
    value, shift = _repeat_heads(value, attention), _repeat_heads(shift, attention)
    if attention.gate is not None:
        # sigmoid(g n) v n has the form of a gated unit: the same closed-form fit serves.
        bias = attention.value.bias
        up = Linear(
            _repeat_heads(attention.value.weight, attention),
            None if bias is None else _repeat_heads(bias, attention),
        )
        unit = Ffn(attention.norm, attention.gate, up, attention.output, "sigmoid", "")
        fitted = fit_ffn(unit, Fit("canonical" if centred else "paper"), 0)
        assert not isinstance(fitted, FoldedMatrix)  # `up` is an array
        value = fitted
    if attention.sink is not None:
        value = _beside_sink(value, shift, attention.sink, attention.norm, centred=centred)
    return value


def _folded(linear: Linear, norm: Norm | None, *, centred: bool) -> tuple[Floats, Doubles]:
    """Weight and constant on the normalised input; the paper's convention has no C and no b."""
    weight = linear.weight
    shift = np.zeros(len(weight)) if linear.bias is None else linear.bias.astype(np.float64)
    if centred or norm is None:
        if norm is not None and norm.bias is not None:
            shift = shift + weight @ norm.bias
        return fold_norm(weight, norm), shift
    return weight * norm.gain, shift


def _behind_inner_norm(attention: Attention, compressed: Floats, shift: Doubles) -> Floats:
    """W_V E[J] W_C: values of the compressed vector behind its norm."""
    norm = attention.latent_norm
    inner = fold_norm(attention.value.weight, norm)
    if norm is None:
        return inner @ compressed
    if norm.kind == "layer":
        compressed = compressed - compressed.mean(axis=0, dtype=np.float32)
        shift = shift - shift.mean()
    jacobian: Floats = mean_norm_jacobian(compressed, shift, norm.eps).astype(np.float32)
    inner = inner @ jacobian
    return inner @ compressed


def _share_within(clip: float, value: Floats, shift: Doubles) -> Doubles:
    """How often each value v z + c lies within the bound: the mean slope of clipping it."""
    from scipy.special import ndtr

    deviation = np.maximum(np.linalg.norm(value, axis=1), np.finfo(np.float32).tiny)
    above, below = (clip - shift) / deviation, (-clip - shift) / deviation
    share: Doubles = ndtr(above) - ndtr(below)
    return share


def _beside_sink(
    value: Floats, shift: Doubles, sink: Sink, norm: Norm | None, *, centred: bool
) -> Floats:
    """E[J] of sigmoid(score - sink) times the values, head by head.

    The score is a quadratic form of z in the few dimensions that the head's query and key read:
    the values' map times the mean weight, and the mean of values times the weight's gradient.
    """
    heads = sink.scores.size
    query, query_shift = _folded(sink.query, norm, centred=centred)
    key, key_shift = _folded(sink.key, norm, centred=centred)
    width = len(query) // heads
    shared = heads // (len(key) // width)
    out = np.empty_like(value)
    for head in range(heads):
        begin = head // shared * width
        rows = slice(head * len(value) // heads, (head + 1) * len(value) // heads)
        q, k = slice(head * width, (head + 1) * width), slice(begin, begin + width)
        both = np.concatenate([query[q], key[k]])
        # Its row space: z is seen through `basis`.
        basis, triangle = np.linalg.qr(both.T)
        a, b = np.split(triangle.T.astype(np.float64), 2)
        factor = sink.scale / np.sqrt(width)
        form = factor / 2 * (a.T @ b + b.T @ a)
        curvature, axes = np.linalg.eigh(form)
        basis = basis @ axes
        linear = factor * (query_shift[q] @ b + key_shift[k] @ a) @ axes
        constant = factor * float(query_shift[q] @ key_shift[k]) - float(sink.scores[head])
        mean = sigmoid_moments(curvature, linear, constant)
        gradient = (
            value[rows] @ basis @ (2 * mean.slope_xx * curvature + np.outer(mean.slope_x, linear))
        )
        gradient += np.outer(shift[rows], 2 * curvature * mean.slope_x + mean.slope * linear)
        out[rows] = mean.value * value[rows] + gradient @ basis.T
    return out


def _repeat_heads(rows: NDArray[_Real], attention: Attention) -> NDArray[_Real]:
    """Each value head's rows as often as query heads share it."""
    heads = rows.reshape(-1, attention.head_dim, *rows.shape[1:])
    return np.repeat(heads, attention.repeats, axis=0).reshape(-1, *rows.shape[1:])
