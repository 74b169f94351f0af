"""Whether two models are one function, spelled in different ways.

What a block does to one token is compared to the last weight: every hidden unit, and every head's
product W_O W_V, after the residual map, orders and factors are undone. Queries, keys and the output
head are compared where nothing had to be undone, so that they must be the same numbers; in another
basis they are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.errors import TensorError
from ckptforensics.forward import embedding_name
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.matched_layers import (
    BASIS,
    GAINS,
    HEADS,
    ROUNDING,
    LayerFacts,
    layer_facts,
    layers_within,
)
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream
from ckptforensics.tensors import matrix_shape

# Relative error of float32 arithmetic with large maps, and of numbers that are the same.
_ARITHMETIC, _EXACT = 1e-4, 1e-6
# Share of elements that may be rounded otherwise than their size says: those below the smallest
# normal number of a type.
_ODD = 1e-3
# Rows of a tensor outside the blocks' maps that are compared.
_ROWS = 64


def same_function(pair: Pair) -> tuple[bool, str]:
    """Whether two models compute the same in all that is compared, and the largest error in words.

    Errors are relative: of the embeddings, of a layer's units, and of each head's product. Numbers
    that are stored in one basis and type must be equal. Else rounding to the coarser type is
    allowed, twice of units and four times of a head's product, which is made of two maps with
    their gains; at least 1e-4 for float32 arithmetic.

    Raises
    ------
    NotApplicable
        as `layer_facts`, where the layers cannot be compared.
    """
    why = _different_shape(pair) or _different_embeddings(pair)
    if why is not None:
        return False, why
    layers = layers_within(pair, pair.effort.function_elements)
    worst, every = 0.0, []
    for a, b in layers:
        facts = layer_facts(pair, a, b)
        every.append(facts)
        why = _different_layer(facts, in_one_basis=_in_one_basis(pair, facts))
        if why is not None:
            return False, f"layer {b}: {why}"
        worst = max(worst, facts.error)
    comparable = _names_mean_the_same(pair, every)
    untouched = not any(facts.undone for facts in every)
    why = _different_tensor(pair, every=untouched) if comparable else None
    if why is not None:
        return False, why
    matched = len(matched_layers(pair))
    count = "all" if len(layers) == matched else f"{len(layers)} of {matched}"
    told = f"units and heads of {count} layers agree to {worst:.0e} of their size"
    if not comparable:
        told += "; queries, keys and the output head are not compared"
    return True, told


def _different_shape(pair: Pair) -> str | None:
    if pair.once(find_alignment).kind == "none":
        return f"no map between the residual streams was found: {pair.once(find_alignment).reason}"
    if not pair.same_width:
        return "the widths differ"
    if not pair.same_depth or len(matched_layers(pair)) < len(pair.a.layers):
        return "the layers differ"
    return None


def _different_embeddings(pair: Pair) -> str | None:
    alignment = pair.once(find_alignment)
    if alignment.error is None:
        return f"the embeddings do not fit: {alignment.reason}"
    if pair.a.vocabulary_size != pair.b.vocabulary_size:
        return "the vocabularies differ in size"
    stores = [model.weights.store for model in pair.models]
    types = {
        store.info(embedding_name(model.weights)).dtype
        for store, model in zip(stores, pair.models, strict=True)
    }
    stored = alignment.rotation is None and alignment.scale == 1 and len(types) == 1
    rounding = 2 * max(ROUNDING.get(t, 0.0) for t in types)
    if alignment.error > (_EXACT if stored else max(_ARITHMETIC, rounding)):
        return f"the embeddings differ by {alignment.error:.1e} of their size"
    return None


def _in_one_basis(pair: Pair, facts: LayerFacts) -> bool:
    """Whether the layers' numbers are the same as stored, but for the order of units and heads."""
    return facts.outside is not None and BASIS not in facts.undone


def _different_layer(facts: LayerFacts, *, in_one_basis: bool) -> str | None:
    if not facts.whole:
        return "units or heads have no partner"
    rounded = max(_ARITHMETIC, 2 * facts.rounding)
    units = rounded if facts.outside is None or not facts.same_types else _EXACT
    heads = 2 * rounded if not (in_one_basis and facts.same_types) else _EXACT
    if facts.outside is not None and facts.outside > _ODD:
        return f"{facts.outside:.1%} of the units' weights differ by more than rounding"
    for error, limit, name in (
        (max(facts.errors), units, "units"),
        (facts.head_error or 0.0, heads, "heads"),
    ):
        if error > limit:
            return f"{name} differ by {error:.1e} of their size"
    return None


def _names_mean_the_same(pair: Pair, facts: Sequence[LayerFacts]) -> bool:
    """Whether nothing was undone that also changes queries, keys, final norm and output head."""
    if pair.once(find_alignment).kind != "identity" or pair.once(find_alignment).scale != 1:
        return False
    return not any(word in (HEADS, GAINS) for fact in facts for word in fact.undone)


def _different_tensor(pair: Pair, *, every: bool) -> str | None:
    """What is stored under one name and shape but differs, looked at in some rows.

    Parameters
    ----------
    every : also tensors of the blocks' maps, not only others such as queries and keys
    """
    stores = [model.weights.store for model in pair.models]
    named = [set(s.weights.store if every else s.weights.architecture.unused) for s in pair.models]
    names = sorted(named[0] & named[1])
    generator = pair.generator(Stream.STORED_ROWS)
    for name in names:
        one, other = (store.info(name) for store in stores)
        if one.shape != other.shape:
            continue
        rows = matrix_shape(one)[1]
        start = int(generator.integers(max(1, rows - _ROWS + 1)))
        try:
            x, y = (store.read_rows(name, start, min(start + _ROWS, rows)) for store in stores)
        except TensorError:  # such as masks that are stored as integers
            continue
        limit = (
            0.0
            if one.dtype == other.dtype
            else 2 * max(ROUNDING.get(info.dtype, 0.0) for info in (one, other))
        )
        if np.mean(np.abs(x - y) > limit * np.abs(y)) > _ODD:
            return f"{name} differs"
    return None
