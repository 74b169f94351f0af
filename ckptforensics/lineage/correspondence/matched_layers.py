"""What corresponding layers look like after everything that hides a copy is undone.

The layers of a pair are matched once; the criteria after the map, and the question whether two
models compute the same, read what was noted of each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.layers import Norm
from ckptforensics.lineage.correspondence.alignment import Alignment, find_alignment
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.matching import LayerMatch, match_layer
from ckptforensics.lineage.numeric import effective, relative_error, unit_rows
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream

# Units of B that are compared with all of A's.
_UNITS = 256
# Difference of stored gains, beyond three times that of the folded rows, of gains that were moved.
_MOVED = 1e-2
# Relative difference of units or heads that are not the same at all: no order is told of them.
_UNRELATED = 0.9
# Standard errors (of 0.5 / sqrt(units) twice) from which on signs are not those of a fair coin.
_BIASED = 2.0
# What was undone, in words; after some of it the stored numbers are products, rounded once more.
ORDER, HEADS = "neurons in another order", "heads in another order"
SCALED, GAINS = "up and down scaled against each other", "gains moved into the maps"
BASIS = "values in another basis"
# Largest relative error of an element rounded to a type; others are taken as they are.
ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


@dataclass(frozen=True)
class LayerFacts:
    """What is noted of two matched layers.

    Attributes
    ----------
    a, b : numbers of the layers, from 1
    units, of : sampled units of B, and units of A, one of which may be the nearest to each
    fixed : sampled units whose nearest unit of A, by the rows that name them, has their own index
    agreeing : share of the sampled units whose nearest unit is the same by gate, up and down
    ups, positive : sampled units with a nearest unit of their own, and those of them whose input
        rows have a positive inner product; 0 of 0 without a gate
    tosses : how many independent tosses their signs are
    expected : probability with which a sign is positive of independent models, 0.5 unless a unit's
        gate and input row mostly go together (or against each other) in both models
    errors : relative errors |B - A| / |B| of the rows that name the units, of the input rows and of
        what the units write, after the map is undone
    head_error : the largest of a head's product W_O W_V; None where heads are not compared
    heads : (heads of B,) head of A, -1 where none; None where there are none to match
    whole : whether every unit and head of each has a partner
    outside : share of sampled units' elements that differ by more than rounding of one to the
        other's stored type; None where the stored numbers are not the same but for that
    same_types : whether both layers are stored as the same types
    rounding : largest relative rounding error of the coarsest floating type stored
    undone : what had to be undone in this layer, in words
    """

    a: int
    b: int
    units: int
    of: int
    fixed: int
    agreeing: float
    ups: int
    positive: int
    tosses: float
    expected: float
    errors: tuple[float, float, float]
    head_error: float | None
    heads: Ints | None
    whole: bool
    outside: float | None
    same_types: bool
    rounding: float
    undone: tuple[str, ...]

    @property
    def error(self) -> float:
        """The largest of the relative errors."""
        return max((*self.errors, self.head_error or 0.0))


def layer_facts(pair: Pair, a: int, b: int) -> LayerFacts:
    """What is noted of layer `a` of A and layer `b` of B; each is looked at once a pair.

    Raises
    ------
    NotApplicable
        as `match_layer`.
    """
    return pair.once(_facts, a, b)


def sampled_facts(pair: Pair) -> tuple[LayerFacts, ...]:
    """Of the layers that the criteria after the map look at; errors as `layer_facts`."""
    effort = pair.effort
    layers = layers_within(pair, effort.matched_elements, effort.matched_layers)
    return tuple(pair.by_layer(lambda both: layer_facts(pair, *both), layers))


def layers_within(
    pair: Pair, elements: int | None, most: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Matched layers, evenly spread, whose FFNs have at most so many elements together.

    Parameters
    ----------
    elements : of both models' FFNs, None for any number; one layer is always taken
    most : layers, None for any number

    Raises
    ------
    NotApplicable
        if no layers correspond.
    """
    matched = matched_layers(pair)
    if not matched:
        raise NotApplicable("no layers correspond")
    if elements is not None:
        widths = zip(pair.models, matched[len(matched) // 2], strict=True)
        each = 3 * sum(model.width(layer) * model.hidden_size for model, layer in widths)
        affordable = max(1, elements // each)
        most = affordable if most is None else min(most, affordable)
    return spread(matched, most)


def undone(pair: Pair) -> tuple[str, ...]:
    """All that was undone to compare the models, in words; errors as `layer_facts`."""
    sampled_facts(pair)
    # Of other layers too, where something else has looked at them.
    facts = sorted(pair.known(_facts), key=lambda fact: (fact.a, fact.b))
    counts = Counter(words for fact in facts for words in fact.undone)
    told = [
        w if n == len(facts) else f"{w} ({n} of {len(facts)} layers)" for w, n in counts.items()
    ]
    return (*pair.once(find_alignment).found, *told)


def _facts(pair: Pair, layer_a: int, layer_b: int) -> LayerFacts:
    match = match_layer(pair, layer_a, layer_b)
    a, b = match.units_a, match.units_b
    generator = pair.generator(Stream.MATCHED_UNITS, match.b)
    chosen = np.sort(generator.permutation(len(b.up))[:_UNITS])
    # A tie must not point at a low index.
    shuffle = generator.permutation(len(b.up))
    nearest = shuffle[_cosines(a.rows[shuffle], b.rows[chosen]).argmax(axis=0)]
    by_up = shuffle[np.abs(_cosines(a.up[shuffle], b.up[chosen])).argmax(axis=0)]
    by_down = shuffle[np.abs(_cosines(a.down.T[shuffle], b.down.T[chosen])).argmax(axis=0)]
    agree = (nearest == by_up) & (nearest == by_down)
    signs = _up_signs(match, chosen, nearest)
    there = match.order >= 0
    errors = match_errors(match)
    heads = match.heads
    head_error = None if heads is None else float(np.nanmax(heads.errors, initial=0.0))
    width_a = pair.a.width(match.a)
    same_types, rounding = _stored_types(pair, match.a, match.b)
    words = _words(pair, match, errors)
    return LayerFacts(
        a=match.a,
        b=match.b,
        units=chosen.size,
        of=width_a,
        fixed=int(np.sum(match.order[nearest] == chosen)),
        agreeing=float(agree.mean()),
        ups=signs.signs.size,
        positive=int((signs.signs > 0).sum()),
        tosses=signs.tosses,
        expected=signs.expected,
        errors=errors,
        head_error=head_error,
        heads=None if heads is None else heads.order,
        whole=bool(there.all()) and width_a == there.size and _same_heads(pair, match),
        outside=_outside(match, chosen, 0.0 if same_types else 2 * rounding)
        if _as_stored(pair.once(find_alignment), words)
        else None,
        same_types=same_types,
        rounding=rounding,
        undone=words,
    )


class _Signs(NamedTuple):
    """See `LayerFacts`."""

    signs: Floats
    tosses: float
    expected: float


def _up_signs(match: LayerMatch, chosen: Ints, nearest: Ints) -> _Signs:
    """Signs of up_a . up_b as stored, of sampled units whose nearest unit is no other's too."""
    a, b = match.units_a, match.units_b
    if a.gate is None or b.gate is None:
        return _Signs(np.zeros(0, np.float32), 0.0, 0.5)
    _, first, counts = np.unique(nearest, return_index=True, return_counts=True)
    alone = first[counts == 1]
    at, of = nearest[alone], chosen[alone]
    inner = np.einsum("ij,ij->i", a.up[at], b.up[of])
    signs: Floats = np.sign(inner * match.scales[at])
    there = signs != 0
    one = _together(a.gate[at], a.up[at] * match.scales[at][:, None])
    other = _together(b.gate[of], b.up[of])
    tosses = min(effective(a.up[at[there]]), effective(b.up[of[there]]))
    return _Signs(signs[there], tosses, max(0.5, one * other + (1 - one) * (1 - other)))


def _together(gate: Floats, up: Floats) -> float:
    """Share of units whose gate and input row have a positive product, 0.5 if about half have."""
    signs = np.sign(np.einsum("ij,ij->i", gate, up))
    count = int(np.count_nonzero(signs))
    share = float(np.mean(signs[signs != 0] > 0)) if count else 0.5
    return share if abs(share - 0.5) > _BIASED / np.sqrt(max(count, 1)) else 0.5


def _words(pair: Pair, match: LayerMatch, errors: tuple[float, float, float]) -> tuple[str, ...]:
    """What had to be undone in a layer."""
    words = []
    if max(errors) < _UNRELATED:
        if not match.kept:
            words.append(ORDER)
        if (match.scales < 0).any():
            words.append(f"{SCALED}, with signs")
        elif (match.scales != 1).any():
            words.append(SCALED)
        if _gains_moved(pair, match, errors):
            words.append(GAINS)
    heads = match.heads
    if heads is not None and np.nanmedian(heads.errors) < _UNRELATED:
        if not heads.kept:
            words.append(HEADS)
        if not heads.basis_kept:
            words.append(BASIS)
    return tuple(words)


def _gains_moved(pair: Pair, match: LayerMatch, errors: tuple[float, float, float]) -> bool:
    """Whether stored gains differ by more than the rows that they were folded into."""
    block_a, block_b = pair.a.block(match.a), pair.b.block(match.b)
    limit = _MOVED + 3 * max(errors[:2])
    norms = [(block_a.ffn.norm, block_b.ffn.norm)]
    if block_a.attention is not None and block_b.attention is not None:
        norms.append((block_a.attention.norm, block_b.attention.norm))
    return any(
        relative_error(_gain(a, pair.once(find_alignment)), b.gain) > limit
        for a, b in norms
        if a is not None and b is not None
    )


def _gain(norm: Norm, alignment: Alignment) -> Floats:
    """A gain in B's coordinates; a rotation leaves only a common factor as it is."""
    if alignment.rotation is not None:
        constant = np.ptp(norm.gain) <= _MOVED * np.abs(norm.gain).max()
        count = alignment.rotation.shape[1]
        return np.full(count, norm.gain.mean() if constant else 0, np.float32)
    if alignment.order is not None:
        return norm.gain[alignment.order]
    return norm.gain


def match_errors(match: LayerMatch) -> tuple[float, float, float]:
    """Relative errors |B - A| / |B| of the rows that name units, input rows and what is written.

    Over the units that have a partner.
    """
    there = match.order >= 0
    at = slice(None) if there.all() else there
    a, b = match.units_a, match.units_b
    rows, up = relative_error(a.rows[at], b.rows[at]), relative_error(a.up[at], b.up[at])
    return rows, up, relative_error(a.down.T[at], b.down.T[at])


def _same_heads(pair: Pair, match: LayerMatch) -> bool:
    """Whether every head has a partner, or there are none on either side."""
    if match.heads is None:
        a, b = (s.block(n).attention for s, n in zip(pair.models, (match.a, match.b), strict=True))
        return a is None and b is None
    count = pair.a.weights.architecture.sizes.num_heads
    return bool((match.heads.order >= 0).all()) and match.heads.order.size == count


def _stored_types(pair: Pair, a: int, b: int) -> tuple[bool, float]:
    """Whether two layers are stored as the same types, and the coarsest one's relative rounding."""
    types = []
    for model, layer in zip(pair.models, (a, b), strict=True):
        plan, store = model.weights.architecture.layers[layer - 1], model.weights.store
        types.append({store.info(name).dtype for name, _ in plan.names()})
    return types[0] == types[1], max(ROUNDING.get(t, 0.0) for t in types[0] | types[1])


def _outside(match: LayerMatch, chosen: Ints, limit: float) -> float:
    """Share of elements of some units that differ by more than a relative limit."""
    a, b = match.units_a, match.units_b
    pairs = ((a.rows, b.rows), (a.up, b.up), (a.down.T, b.down.T))
    shares = [np.mean(np.abs(x[chosen] - y[chosen]) > limit * np.abs(y[chosen])) for x, y in pairs]
    return float(max(shares))


def _as_stored(alignment: Alignment, words: tuple[str, ...]) -> bool:
    """Whether the units are made of the same stored numbers, if in another order."""
    same = alignment.rotation is None and alignment.scale == 1
    return same and not any(word.startswith((SCALED, GAINS)) for word in words)


def _cosines(a: Floats, b: Floats) -> Floats:
    return multiply(unit_rows(a), np.ascontiguousarray(unit_rows(b).T))
