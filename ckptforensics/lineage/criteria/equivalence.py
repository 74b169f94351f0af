"""Whether two models are one function, spelled in different ways.

Everything that decides the function is compared to the last weight, after the residual map, orders
and factors are undone: every hidden unit, every head's products W_O W_V and of queries and keys,
biases, embeddings, the output head behind the final norm, and the settings of the configuration.
What cannot be compared is named, and then the answer is not yes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ckptforensics.architectures.schema import UNUSED_REASONS
from ckptforensics.errors import NotApplicable, TensorError
from ckptforensics.forward import embedding_name
from ckptforensics.lineage.configuration import differing_settings
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.constants import constants_error
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
from ckptforensics.lineage.correspondence.readout import (
    embedding_error,
    readout_error,
    readout_refs,
)
from ckptforensics.lineage.correspondence.scores import score_error, score_refs
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream
from ckptforensics.quantities import error_size
from ckptforensics.tensors import matrix_shape

# Relative error of float32 arithmetic with large maps, and of numbers that are the same.
_ARITHMETIC, _EXACT = 1e-4, 1e-6
# Share of elements that may be rounded otherwise than their size says: those below the smallest
# normal number of a type.
_ODD = 1e-3
# Rows of a tensor outside the blocks' maps that are compared by name.
_ROWS = 64
# Ends of names of tensors that any loader makes anew.
_CONSTANTS = ("inv_freq", ".attn.bias", "masked_bias", "position_ids", ".attention.bias")


@dataclass(frozen=True)
class Equivalence:
    """Whether two models are one function, and what that rests on.

    Attributes
    ----------
    same : whether everything that decides the function was compared and is the same
    told : the largest error, or what differs, in words
    compared : what was found to be the same, in words
    not_compared : what was not, each with its reason
    """

    same: bool
    told: str
    compared: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()


def same_function(pair: Pair) -> Equivalence:
    """Whether two models compute the same, to the last weight and setting.

    Errors are relative: of the embeddings, of a layer's units, of each head's products, of biases,
    and of the output head behind the final norm. Numbers that are stored in one basis and type must
    be equal. Else rounding to the coarser type is allowed, twice of units and four times of a
    head's products, which are made of two maps with their gains; at least 1e-4 for float32
    arithmetic. What could not be compared, or is not finite, never counts as equal.

    Raises
    ------
    NotApplicable
        as `layer_facts`, where the layers cannot be compared.
    """
    why = _different_shape(pair) or _different_embeddings(pair)
    if why is not None:
        return Equivalence(False, why)
    layers = layers_within(pair, pair.effort.function_elements)
    worst, every = 0.0, []
    for facts in pair.by_layer(lambda both: layer_facts(pair, *both), layers):
        every.append(facts)
        why = _different_layer(facts, in_one_basis=_in_one_basis(pair, facts))
        if why is not None:
            return Equivalence(False, f"layer {facts.b}: {why}")
        worst = max(worst, facts.error)
    if _names_mean_the_same(pair, every):
        untouched = not any(facts.undone for facts in every)
        why = _different_tensor(pair, every=untouched)
        if why is not None:
            return Equivalence(False, why)
    matched = len(matched_layers(pair))
    count = "all" if len(layers) == matched else f"{len(layers)} of {matched}"
    told = f"units and heads of {count} layers agree to {error_size(worst)} of their size"
    return _rest(pair, every, count, told)


def _rest(pair: Pair, facts: Sequence[LayerFacts], count: str, told: str) -> Equivalence:
    """What decides the function beside units and heads, part by part."""
    rounding = max(fact.rounding for fact in facts)
    exact = all(f.same_types and _in_one_basis(pair, f) for f in facts)
    limit = (
        _EXACT
        if exact and _names_mean_the_same(pair, facts)
        else max(2 * _ARITHMETIC, 4 * rounding)
    )
    compared, missing = [f"units and heads of {count} layers"], []

    def scores() -> float:
        return max(pair.by_layer(lambda fact: _score_error(pair, fact), facts))

    def constants() -> float:
        return max(pair.by_layer(lambda fact: constants_error(pair, fact.a, fact.b), facts))

    parts: tuple[tuple[str, Callable[[], float]], ...] = (
        ("all rows of the embeddings", lambda: embedding_error(pair)),
        (f"queries and keys of {count} layers", scores),
        (f"biases and norms behind branches of {count} layers", constants),
        ("the final norm and the output head", lambda: readout_error(pair)),
    )
    for name, error_of in parts:
        try:
            error = error_of()
        except (NotApplicable, TensorError) as problem:
            missing.append(f"{name}: {problem.message}")
            continue
        if not error <= limit:
            why = f"{name} differ by {error:.1e} of their size"
            return Equivalence(False, why, tuple(compared), tuple(missing))
        compared.append(name)
    missing += _uncovered(pair)
    differ, unknown = differing_settings(pair)
    missing += [f"the configuration's {words}" for words in unknown]
    if differ:
        why = f"the configurations differ: {'; '.join(differ)}"
        return Equivalence(False, why, tuple(compared), tuple(missing))
    if not unknown:
        compared.append("what the configurations say of the function")
    if missing:
        told = f"{told}; not everything that decides the function could be compared"
    return Equivalence(not missing, told, tuple(compared), tuple(missing))


def _score_error(pair: Pair, facts: LayerFacts) -> float:
    a, b = (s.block(n).attention for s, n in zip(pair.models, (facts.a, facts.b), strict=True))
    if a is None and b is None:
        return 0.0
    if facts.heads is None or (facts.heads < 0).any():
        raise NotApplicable("the heads have no partners")
    learned = [model.weights.architecture.embedding for model in pair.models]
    rotary = not any(refs is not None and refs.positions is not None for refs in learned)
    return score_error(pair, facts.a, facts.b, facts.heads, rotary=rotary)


def _uncovered(pair: Pair) -> list[str]:
    """Tensors that no part of the comparison has looked at, for each model in one line."""
    told = []
    for name, model in zip("AB", pair.models, strict=True):
        architecture = model.weights.architecture
        known = set(architecture.used)
        readout = readout_refs(model)
        known |= readout.names() if readout is not None else set()
        for layer in model.layers:
            refs = score_refs(model, layer)
            known |= refs.names() if refs is not None else set()
        rest = [
            tensor
            for tensor, reason in architecture.unused.items()
            if tensor not in known and not _is_constant(tensor, reason)
        ]
        rest += list(model.weights.store.aside)
        if architecture.embedding is not None:
            parts = architecture.embedding
            beside = (parts.norm, parts.norm_bias, parts.projection)
            rest += [name for name in beside if name is not None]
        if rest:
            more = f" and {len(rest) - 3:,} more" if len(rest) > 3 else ""
            told.append(f"of {name}: {', '.join(rest[:3])}{more}: no part of the comparison")
    return told


def _is_constant(tensor: str, reason: str) -> bool:
    """Whether a tensor is computed from the configuration by whoever loads it."""
    return reason == UNUSED_REASONS["buffer"] and tensor.endswith(_CONSTANTS)


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
