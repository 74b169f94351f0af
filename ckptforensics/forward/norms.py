"""Norms as they act on vectors, and their linear part folded into the maps that follow them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute import buffers
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.threads import over_rows
from ckptforensics.layers import Matrix, Norm


def normalise(x: Floats, kind: Literal["rms", "layer"], eps: float) -> Floats:
    """z = x / rms(x), or (x - mean x) / std(x), for each row; without gain and bias."""
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    # In float64, since the square of a large float32 may overflow, and a norm must not hide that.
    square = np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1]
    return x / np.sqrt(square + eps).astype(np.float32)[:, None]


def apply_norm(x: Floats, norm: Norm | None) -> Floats:
    """n = norm(x) for each row; x itself where there is no norm."""
    if norm is None:
        return x
    return affine(normalise(x, norm.kind, norm.eps), norm)


def affine(z: Floats, norm: Norm | None) -> Floats:
    """n = g z + b for rows z that are normalised already."""
    if norm is None:
        return z
    n = z * norm.gain
    return n if norm.bias is None else n + norm.bias


def fold_norm(weight: Matrix, norm: Norm | None) -> Floats:
    """weight diag(g) for RMSNorm, weight diag(g) C for LayerNorm, C = I - 11'/d."""
    if norm is None:
        return weight.decoded() if isinstance(weight, Bf16Matrix) else weight
    folded = buffers.empty(weight.shape)

    def fold(rows: slice) -> None:
        folded[rows] = weight[rows]
        fold_in_place(folded[rows], norm)

    over_rows(fold, *weight.shape)
    return folded


def fold_into(vectors: Floats, norm: Norm | None) -> Floats:
    """(hidden_size, vectors): W of these columns is `fold_norm(W, norm)` of the vectors, (n, d)."""
    if norm is None:
        return np.ascontiguousarray(vectors.T)
    if norm.kind == "layer":
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
    return np.ascontiguousarray((vectors * norm.gain).T)


def fold_in_place(rows: Floats, norm: Norm) -> None:
    """Rows of a weight become rows of what `fold_norm` returns."""
    rows *= norm.gain
    if norm.kind == "layer":
        rows -= rows.mean(axis=1, keepdims=True)
