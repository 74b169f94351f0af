"""The tensors of two models that are compared entry by entry, and how rows of them are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ckptforensics.architectures import WeightRef
from ckptforensics.arrays import Floats, Ints
from ckptforensics.errors import NotApplicable
from ckptforensics.layers import Block, Ffn
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.matched_layers import (
    BASIS,
    GAINS,
    HEADS,
    ORDER,
    SCALED,
    layer_facts,
)
from ckptforensics.lineage.correspondence.matching import LayerMatch, match_layer
from ckptforensics.lineage.correspondence.scores import score_refs
from ckptforensics.lineage.effort import within
from ckptforensics.lineage.models import Model, plain
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.tensors import matrix_shape

Reader = Callable[[int, int], Floats]
Part = Literal["layer", "embedding", "other"]

# Roles that are compared where names do not say which tensors correspond.
_ROLES = ("value", "output", "gate", "up", "down")
_NORMS = ("attention_norm", "ffn_norm")
_FFN = ("gate", "up", "down")
# Maps of which columns belong to a neuron or a head, not rows.
_WRITERS = ("down", "output")


@dataclass(frozen=True)
class TensorPair:
    """A tensor that both models have.

    Attributes
    ----------
    tensor : its name in A, or its role
    layer : number in A, from 1; None outside the layers
    part : `embedding` for tensors with a row a token (the head too)
    rows : of A and of B; more of one where the vocabulary was extended
    columns : of both
    read : rows from start to stop as float32, of A and of B
    dtypes : stored types, `F32` for what was computed
    mapped : a map between the models was undone: both are computed, and are equal up to rounding
        at the best
    error : |B - A| / |A| where only that is known
    """

    tensor: str
    layer: int | None
    part: Part
    rows: tuple[int, int]
    columns: int
    read: tuple[Reader, Reader]
    dtypes: tuple[str, str]
    mapped: bool = False
    error: float | None = None

    @property
    def matrix(self) -> bool:
        """Whether it is a map, and not a vector."""
        return self.rows[0] > 1 and self.columns > 1


def is_sampled(pair: Pair) -> bool:
    """Whether only some layers, and some rows of large tensors, are compared entry by entry."""
    return not within(max(model.stored_bytes for model in pair.models), pair.effort.entry_bytes)


def tensor_pairs(pair: Pair) -> Iterator[TensorPair]:
    """All tensors that correspond: by name, by role, or after the map between bases was undone.

    Raises
    ------
    NotApplicable
        if a model has no weights.
    """
    matched = spread(matched_layers(pair), pair.effort.entry_layers if is_sampled(pair) else None)
    mapped = not _same_basis(pair)
    for model in pair.models:
        model.forget()
    if not mapped:
        yield from _outside_layers(pair)
    for layer_a, layer_b in matched:
        if mapped:
            yield from _mapped(pair, layer_a, layer_b)
            continue
        named = list(_by_name(pair, layer_a, layer_b))
        yield from named
        yield from _by_role(pair, layer_a, layer_b, {tensors.tensor for tensors in named})
        if pair.a.width(layer_a) != pair.b.width(layer_b):  # the units that both have
            yield from (t for t in _mapped(pair, layer_a, layer_b) if t.error is None)


def layer_names(model: Model, layer: int) -> Mapping[str, str]:
    """Tensors of a layer, by their names without the layer's prefix."""
    prefix = model.weights.architecture.layers[layer - 1].prefix
    store = model.weights.store
    return {name.removeprefix(prefix): name for name in store if name.startswith(prefix)}


def _same_basis(pair: Pair) -> bool:
    """Whether tensors are compared as they are stored: no other map of the streams was found."""
    alignment = pair.once(find_alignment)
    if alignment.kind == "none":
        return pair.same_width
    return alignment.kind == "identity" and alignment.scale == 1


def put_in_order(pair: Pair, layer_a: int, layer_b: int) -> tuple[list[TensorPair], set[str]]:
    """What stands for tensors of two layers in one residual basis, once what was undone is.

    Where the order of neurons or heads was, the stored tensors of A in B's order. Where factors
    were moved or values are in another basis, what is computed of them.

    Returns
    -------
    pairs of tensors, and the names of those of A that they stand for; none where nothing was
    undone, or nothing explains how the layers differ
    """
    try:
        words = layer_facts(pair, layer_a, layer_b).undone
        match = match_layer(pair, layer_a, layer_b) if words else None
    except NotApplicable:
        return [], set()
    if match is None:
        return [], set()
    a, b = (_refs(model, n) for model, n in zip(pair.models, (layer_a, layer_b), strict=True))
    found: list[TensorPair] = []
    gone: set[str] = set()

    def put(roles: Sequence[str], orders: Mapping[str, Ints]) -> bool:
        """Whether the tensors of these roles could be put in order."""
        there = [role for role in roles if role in a]
        if not all(r in b and r in orders and plain(a[r]) and plain(b[r]) for r in there):
            return False
        for role in there:
            columns = role in _WRITERS
            names = [(a[role].weight, b[role].weight)]
            # A bias of what is written stands in no order.
            biases = a[role].bias, b[role].bias
            if not columns and biases[0] is not None and biases[1] is not None:
                names.append((biases[0], biases[1]))
            for both in names:
                found.extend(_ordered(pair, layer_a, both, orders[role], columns=columns))
        return True

    def compute(*, heads: bool) -> None:
        found.extend(t for t in _of_match(pair, match) if (t.error is not None) == heads)

    def drop(roles: Sequence[str]) -> None:
        gone.update(name for role in roles if role in a for name in a[role].names())

    moved = GAINS in words
    if moved:
        drop(_NORMS)
    factors = moved or any(word.startswith(SCALED) for word in words)
    if factors or ORDER in words:
        units = dict.fromkeys(_FFN, match.order) if (match.order >= 0).all() else {}
        if factors or not put(_FFN, units):
            compute(heads=False)
        drop(_FFN)
    if moved or HEADS in words or BASIS in words:
        orders = _head_orders(pair, match)
        if moved or (HEADS in words and put(("query", "key"), orders)):
            drop(("query", "key"))
        if moved or BASIS in words or not put(("value", "output"), orders):
            compute(heads=True)
        drop(("value", "output"))
    return found, gone


def _refs(model: Model, layer: int) -> Mapping[str, WeightRef]:
    """Where a layer's maps are stored, by role; queries and keys too, where that is known."""
    plan = model.weights.architecture.layers[layer - 1]
    found = {str(role): ref for role, ref in plan.refs.items()}
    if (scores := score_refs(model, layer)) is not None:
        found |= {"query": scores.query, "key": scores.key}
    return found


def _head_orders(pair: Pair, match: LayerMatch) -> Mapping[str, Ints]:
    """The head of A for each one of B, by role; empty unless each has a partner of its own."""
    if match.heads is None or (match.heads.order < 0).any():
        return {}
    heads = match.heads.order
    sizes = pair.b.weights.architecture.sizes
    share = sizes.num_heads // max(sizes.num_kv_heads or sizes.num_heads, 1)
    groups = heads.reshape(-1, share) // share
    if (groups != groups[:, :1]).any() or np.unique(groups[:, 0]).size < len(groups):
        return {}
    return {"query": heads, "output": heads, "key": groups[:, 0], "value": groups[:, 0]}


def _ordered(
    pair: Pair, layer: int, names: tuple[str, str], order: Ints, *, columns: bool
) -> Iterator[TensorPair]:
    """Stored tensors of which A's rows, or columns, or runs of them, are put in B's order."""
    for tensors in _stored(pair, *names, layer, ()):
        whole = tensors.read[0](0, tensors.rows[0])
        axis = 1 if columns or not tensors.matrix else 0
        size = whole.shape[axis] // len(order)
        at = (order[:, None] * size + np.arange(size)).reshape(-1)
        ready = np.take(whole, at, axis)
        yield replace(tensors, read=(_rows_of(ready), tensors.read[1]))


def _rows_of(array: Floats) -> Reader:
    return lambda start, stop: array[start:stop]


def _outside_layers(pair: Pair) -> Iterator[TensorPair]:
    """Tensors of no layer: those of one name, and the token embeddings whatever their name."""
    stores = [model.weights.store for model in pair.models]
    prefixes = [tuple(p.prefix for p in s.weights.architecture.layers) for s in pair.models]
    outside = [
        [name for name in store if not name.startswith(begin)]
        for store, begin in zip(stores, prefixes, strict=True)
    ]
    names = {name: name for name in outside[0] if name in outside[1]}
    embeddings = [model.weights.architecture.embedding for model in pair.models]
    tokens = [None if refs is None else refs.tokens for refs in embeddings]
    if tokens[0] is not None and tokens[1] is not None:
        names[tokens[0]] = tokens[1]
    for name_a, name_b in names.items():
        yield from _stored(
            pair, name_a, name_b, None, (tokens[0], "lm_head.weight", "output.weight")
        )


def _by_name(pair: Pair, layer_a: int, layer_b: int) -> Iterator[TensorPair]:
    a, b = layer_names(pair.a, layer_a), layer_names(pair.b, layer_b)
    for name in a:
        if name in b:
            yield from _stored(pair, a[name], b[name], layer_a, ())


def _stored(
    pair: Pair, name_a: str, name_b: str, layer: int | None, tokens: tuple[str | None, ...]
) -> Iterator[TensorPair]:
    infos = pair.a.weights.store.info(name_a), pair.b.weights.store.info(name_b)
    if any(info.unreadable or 0 in info.shape for info in infos):
        return
    shapes = [matrix_shape(info) for info in infos]
    part: Part = "layer" if layer is not None else "embedding" if name_a in tokens else "other"
    if shapes[0][0] != shapes[1][0] or (part != "embedding" and shapes[0][1] != shapes[1][1]):
        return
    yield TensorPair(
        tensor=name_a,
        layer=layer,
        part=part,
        rows=(shapes[0][1], shapes[1][1]),
        columns=shapes[0][0],
        read=(_reader(pair.a, name_a), _reader(pair.b, name_b)),
        dtypes=(infos[0].dtype, infos[1].dtype),
    )


def _reader(model: Model, name: str) -> Reader:
    store = model.weights.store
    info = store.info(name)
    rows = matrix_shape(info)[1]

    def read(start: int, stop: int) -> Floats:
        model.count(info.nbytes * (stop - start) // rows)
        return store.read_rows(name, start, stop)

    return read


def _by_role(pair: Pair, layer_a: int, layer_b: int, seen: set[str]) -> Iterator[TensorPair]:
    """Maps and gains whose tensors have other names, or parts of tensors that are fused."""
    plans = [
        model.weights.architecture.layers[layer - 1]
        for model, layer in zip(pair.models, (layer_a, layer_b), strict=True)
    ]
    for role in (*_ROLES, *_NORMS):
        refs = [plan.refs.get(role) for plan in plans]  # type: ignore[call-overload]
        if refs[0] is None or refs[1] is None or refs[0].weight in seen:
            continue
        a, b = _role(pair.a.block(layer_a), role), _role(pair.b.block(layer_b), role)
        if a is not None and b is not None and a.shape == b.shape:
            dtypes = tuple(
                model.weights.store.info(ref.weight).dtype
                for model, ref in zip(pair.models, refs, strict=True)
            )
            yield _computed(f"layer {layer_a} {role.replace('_', ' ')}", layer_a, a, b, dtypes)


def _role(block: Block, role: str) -> Floats | None:
    """The matrix or the gain of a role in a block, None where it has none."""
    ffn, attention = block.ffn, block.attention
    if role == "ffn_norm":
        return None if ffn.norm is None else ffn.norm.gain[None]
    if role in ("gate", "up", "down"):
        map_ = getattr(ffn, role) if isinstance(ffn, Ffn) else None
        return None if map_ is None else map_.weight
    if attention is None:
        return None
    if role == "attention_norm":
        return None if attention.norm is None else attention.norm.gain[None]
    return attention.value.weight if role == "value" else attention.output.weight


def _computed(
    name: str, layer: int, a: Floats, b: Floats, dtypes: tuple[str, ...] = ("F32", "F32")
) -> TensorPair:
    """Arrays that are in memory."""

    return TensorPair(
        tensor=name,
        layer=layer,
        part="layer",
        rows=(a.shape[0], b.shape[0]),
        columns=a.shape[1],
        read=(_rows_of(a), _rows_of(b)),
        dtypes=(dtypes[0], dtypes[1]),
    )


def _mapped(pair: Pair, layer_a: int, layer_b: int) -> Iterator[TensorPair]:
    """The folded FFN of two layers, A's brought into B's coordinates, unit order and scales."""
    try:
        match = match_layer(pair, layer_a, layer_b)
    except NotApplicable:
        return
    yield from _of_match(pair, match)


def _of_match(pair: Pair, match: LayerMatch) -> Iterator[TensorPair]:
    layer_a, layer_b = match.a, match.b
    dtypes = tuple(
        model.weights.store.info(model.weights.architecture.layers[n - 1].refs["up"].weight).dtype
        for model, n in zip(pair.models, (layer_a, layer_b), strict=True)
    )
    kept = match.order >= 0
    # Of B's residual coordinates those that A has too.
    order = pair.once(find_alignment).order
    shared = slice(None) if order is None else order >= 0
    for role in ("gate", "up", "down"):
        a, b = getattr(match.units_a, role), getattr(match.units_b, role)
        if a is None or b is None or a.shape != b.shape:
            continue
        if role == "down":
            a, b = a[shared][:, kept], b[shared][:, kept]
        else:
            a, b = a[kept][:, shared], b[kept][:, shared]
        tensors = _computed(f"layer {layer_a} {role} (after the map)", layer_a, a, b, dtypes)
        yield replace(tensors, mapped=True)
    if match.heads is not None and np.isfinite(match.heads.errors).any():
        error = float(np.sqrt(np.nanmean(match.heads.errors**2)))
        name = f"layer {layer_a} value and output (after the map)"
        nothing = np.zeros((1, 1), np.float32)
        yield replace(_computed(name, layer_a, nothing, nothing, dtypes), mapped=True, error=error)
