"""The final norm and the output head of two models, after the map between them is undone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.tensors import matrix_shape

# Rows of a head that are read at once.
_ROWS = 4_096
_TINY = 1e-30
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "model.lm_head.weight")
_FINAL_NORMS = (
    *("norm.weight", "final_layernorm.weight", "final_layer_norm.weight", "ln_f.weight"),
    *("output_norm.weight", "final_norm.weight", "norm_f.weight"),
)


@dataclass(frozen=True)
class ReadoutRefs:
    """Where the final norm and the output head are stored; the head is the embedding where tied."""

    head: str
    head_bias: str | None
    gain: str | None
    bias: str | None
    tied: bool

    def names(self) -> frozenset[str]:
        """All tensors."""
        parts = (self.head, self.head_bias, self.gain, self.bias)
        return frozenset(name for name in parts if name is not None)


def readout_refs(model: Model) -> ReadoutRefs | None:
    """Told from the names of tensors outside the blocks; None where that is not known."""
    architecture, store = model.weights.architecture, model.weights.store
    if architecture.embedding is None:
        return None
    tokens = architecture.embedding.tokens
    outside = [name for name in architecture.unused if len(store.info(name).shape) in (1, 2)]
    heads = [name for name in outside if name.endswith(_HEADS) and name.rpartition(".")[0]]
    heads = [name for name in heads if len(store.info(name).shape) == 2]
    gains = [
        name
        for name in outside
        if name.endswith(_FINAL_NORMS) and store.info(name).shape == (model.hidden_size,)
    ]
    others = [plan.prefix for plan in architecture.layers]
    gains = [name for name in gains if not name.startswith(tuple(others))]
    if len(heads) > 1 or len(gains) > 1:
        return None
    head = heads[0] if heads else tokens
    gain = gains[0] if gains else None
    bias = None if gain is None else gain.removesuffix("weight") + "bias"
    head_bias = head.removesuffix("weight") + "bias" if heads else None
    return ReadoutRefs(
        head=head,
        head_bias=head_bias if head_bias in store else None,
        gain=gain,
        bias=bias if bias in store else None,
        tied=not heads,
    )


def embedding_error(pair: Pair) -> float:
    """|x_b - scale x_a Q| / |x_b| over all rows of the token embeddings, as they are stored.

    The same of learned positions and token types; the largest of these errors.

    Raises
    ------
    NotApplicable
        if a model has none, or they have other numbers of rows.
    NotFinite
        if one of them is NaN or infinite.
    """
    refs = [model.weights.architecture.embedding for model in pair.models]
    a, b = refs
    if a is None or b is None:
        raise NotApplicable("the files hold no token embeddings")
    scales = [model.weights.architecture.embedding_scale for model in pair.models]
    factors = np.full(1, scales[0], np.float32), np.full(1, scales[1], np.float32)
    one = np.ones(1, np.float32)
    worst = _row_error(pair, (a.tokens, b.tokens), factors, free_scale=False)
    for mine, theirs in ((a.positions, b.positions), (a.token_types, b.token_types)):
        if (mine is None) != (theirs is None):
            raise NotApplicable("only one of the models learned positions, or token types")
        if mine is not None and theirs is not None:
            worst = max(worst, _row_error(pair, (mine, theirs), (one, one), free_scale=False))
    return worst


def readout_error(pair: Pair) -> float:
    """The largest relative error of the output head behind the final norm, and of their biases.

    All rows are read. A row of one head is that of the same index in the other.

    Raises
    ------
    NotApplicable
        if where they are stored is not known, or one model has what the other has not.
    NotFinite
        if a weight is NaN or infinite.
    """
    refs = [readout_refs(model) for model in pair.models]
    a, b = refs
    if a is None or b is None:
        raise NotApplicable("which tensors are the output head and the final norm is not known")
    if (a.head_bias is None) != (b.head_bias is None) or (a.gain is None) != (b.gain is None):
        raise NotApplicable("only one of the models has a bias of the head, or a final norm")
    gains = []
    for model, ref in zip(pair.models, (a, b), strict=True):
        store, width = model.weights.store, model.hidden_size
        offset = np.float32(model.weights.architecture.gain_offset)
        gain = np.ones(width, np.float32) if ref.gain is None else store.read(ref.gain).reshape(-1)
        gains.append(gain + (offset if ref.gain is not None else np.float32(0)))
    error = _row_error(pair, (a.head, b.head), (gains[0], gains[1]), free_scale=True)
    if a.head_bias is not None and b.head_bias is not None:
        one, other = (
            model.weights.store.read(name).reshape(-1)
            for model, name in zip(pair.models, (a.head_bias, b.head_bias), strict=True)
        )
        if one.shape != other.shape:
            raise NotApplicable("the biases of the heads have other sizes")
        size = max(float(np.linalg.norm(other)), _TINY)
        error = max(error, float(np.linalg.norm(one - other)) / size)
    if (a.bias is None) != (b.bias is None):
        raise NotApplicable("only one of the models has a bias of the final norm")
    if a.bias is not None and b.bias is not None:
        mine, theirs = (
            model.weights.store.read(name).reshape(1, -1)
            for model, name in zip(pair.models, (a.bias, b.bias), strict=True)
        )
        mapped = pair.once(find_alignment).apply(mine)
        size = max(float(np.linalg.norm(theirs)), _TINY)
        error = max(error, float(np.linalg.norm(mapped - theirs)) / size)
    return error


def _row_error(
    pair: Pair, names: tuple[str, str], gains: tuple[Floats, Floats], *, free_scale: bool
) -> float:
    """Relative error of B's rows and A's, times their gains, after the map; over all rows."""
    stores = [model.weights.store for model in pair.models]
    infos = [store.info(name) for store, name in zip(stores, names, strict=True)]
    rows = [matrix_shape(info)[1] for info in infos]
    if rows[0] != rows[1]:
        raise NotApplicable(f"{names[0]} and {names[1]} have {rows[0]:,} and {rows[1]:,} rows")
    alignment = pair.once(find_alignment)
    factor = np.float32(1 if free_scale else alignment.scale)
    centred = [m.weights.architecture.family.norm.kind == "layer" for m in pair.models]

    def some(start: int) -> tuple[float, float, float]:
        stop = min(start + _ROWS, rows[0])
        parts = []
        for at in (0, 1):
            part = stores[at].read_rows(names[at], start, stop) * gains[at]
            pair.models[at].count(infos[at].nbytes * (stop - start) // rows[at])
            parts.append(part - part.mean(axis=1, keepdims=True) if centred[at] else part)
        mapped = factor * alignment.apply(parts[0])
        off = np.einsum("ij,ij->i", parts[1] - mapped, parts[1] - mapped, dtype=np.float64)
        own = np.einsum("ij,ij->i", parts[1], parts[1], dtype=np.float64)
        return float(off.sum()), float(own.sum()), float(off.max(initial=0.0))

    errors, sizes, worst_rows = zip(*in_threads(some, range(0, rows[0], _ROWS)), strict=True)
    wrong, size, worst = sum(errors), sum(sizes), max(worst_rows)
    # A few rows that are others hide in the sum over all: the worst counts against a usual row.
    usual = size / max(rows[0], 1)
    return float(np.sqrt(max(wrong / max(size, _TINY), worst / max(usual, _TINY) / 16)))
