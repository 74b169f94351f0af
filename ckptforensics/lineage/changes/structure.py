"""Layers removed or repeated, units and coordinates removed, dense FFNs copied to experts.

The same principle decides every direction: what one model has more was either in the other once,
or was made from what the other has. That what both have is unchanged is asked elsewhere: where it
changed too, both may come from a third model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.findings.skipped import runs
from ckptforensics.layers import Attention, Ffn
from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.changes.lost import doubt_of_layer, doubt_of_units, picked
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.layer_map import PARTNER, map_layers, matched_layers
from ckptforensics.lineage.correspondence.partners import free_partners
from ckptforensics.lineage.models import Model, Units
from ckptforensics.lineage.numeric import relative_error, unit_rows
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream
from ckptforensics.results.comparison import Arrow

# Units of a layer, and experts, that are looked at.
_UNITS, _EXPERTS = 256, 8
# Share of the units that must agree; of independent models no more than a few in a hundred do.
_AGREE = 0.5
# Cosine of a unit's row and that of its copy, and what a copy may be farther than the nearest.
_COPY, _AS_NEAR = 0.999, 0.005
# Norm of what a part adds, relative to that of others, below which it adds nothing.
_NOTHING = 1e-3
# Cosine with the nearest unit below which a unit is no other model's, and layers looked at beside.
_OTHER, _COMPARED = 0.8, 4
# A distance to one expert, relative to the next one, that says it is that expert.
_NEARER = 0.2


@dataclass(frozen=True)
class Agreement:
    """Units of a narrower FFN among those of another.

    Attributes
    ----------
    share : of the sampled units, of which gate row and input row have the same partner
    partners : the unit of the other FFN that each of the sampled ones is nearest to, by both rows
        where they agree
    """

    share: float
    partners: Ints


def find_structure(pair: Pair) -> tuple[Finding, ...]:
    """Changes of depth, width and kind of FFN."""
    return (*_depth(pair), *_experts(pair), *_width(pair))


def agreement(few: Units, many: Units, generator: np.random.Generator) -> Agreement:
    """Whether the units of one FFN are units of another, in the same coordinates.

    Rows are compared by |cos|: the nearest gate row, or one as near as a copy of it, and the
    nearest input row must be of the same unit. Without a gate, the input row and the output column
    must be.
    """
    count = len(few.up)
    chosen = np.sort(generator.permutation(count)[:_UNITS])
    first = _cosines(few.rows[chosen], many.rows)
    if few.gate is None:
        second = _cosines(np.ascontiguousarray(few.down.T[chosen]), many.down.T)
    else:
        second = _cosines(few.up[chosen], many.up)
    near = np.logical_and(*(x >= x.max(axis=0) - _AS_NEAR for x in (first, second)))
    partners = np.where(near, first + second, first - 2).argmax(axis=0)
    return Agreement(float(near.any(axis=0).mean()), partners)


def _cosines(few: Floats, many: Floats) -> Floats:
    """(rows of many, rows of few) sizes of the cosines."""
    unit = many / np.maximum(np.linalg.norm(many, axis=1, keepdims=True), 1e-30)
    cosines: Floats = np.abs(multiply(unit, np.ascontiguousarray(unit_rows(few).T)))
    return cosines


# Depth


def _depth(pair: Pair) -> Iterator[Finding]:
    """Layers that one model has more: repeated ones were added, others removed."""
    missing_a = [a for a, b in pair.once(map_layers) if b is None and a is not None]
    missing_b = [b for a, b in pair.once(map_layers) if a is None and b is not None]
    if not (missing_a or missing_b) or not matched_layers(pair):
        return
    if missing_a and missing_b:
        words = f"layers {runs(missing_a)} of A and {runs(missing_b)} of B have no partner"
        yield Finding("depth-changed", "unknown", words, 15)
        return
    # As if B were the deeper one.
    deep_is_b = bool(missing_b)
    seen = pair if deep_is_b else pair.reversed()
    extra = missing_b or missing_a
    deep, few = ("B", "A") if deep_is_b else ("A", "B")
    partners = {b: a for b, a, score in free_partners(seen) if a is not None and score >= PARTNER}
    repeated = [n for n in extra if n in partners]
    grown: Arrow = "a->b" if deep_is_b else "b->a"
    shrunk: Arrow = "b->a" if deep_is_b else "a->b"
    if len(repeated) == len(extra):
        of = runs([partners[n] for n in extra])
        reason = f"layers {runs(extra)} of {deep} repeat layers {of} of {few}"
        yield Finding("depth-changed", grown, reason, 10)
    elif not repeated and all(_adds_nothing(seen.b, n) for n in extra):
        reason = f"layers {runs(extra)} of {deep} add nothing to the stream"
        yield Finding("depth-changed", grown, reason, 10)
    elif not repeated:
        reason = (
            f"layers {runs(extra)} of {deep} are missing in {few}, and unlike all of its layers"
        )
        doubt = _doubt_of_layers(seen.b, extra)
        if doubt is not None:
            doubt = f"layers {runs(extra)} of {deep} {doubt}"
            reason = f"layers {runs(extra)} of {deep} are missing in {few}; {doubt}"
            yield Finding("depth-changed", "unknown", reason, 10, doubt=doubt)
            return
        yield Finding("depth-changed", shrunk, reason, 10)
    else:
        reason = (
            f"layers {runs(extra)} of {deep} have no partner in {few}, of which "
            f"{runs(repeated)} repeat others"
        )
        yield Finding("depth-changed", "unknown", reason, 10)


def reordered(pair: Pair) -> Finding | None:
    """Layers of B that are layers of A with another number, in models of one depth."""
    if not pair.same_depth:
        return None
    partners = [(a, b) for a, b, s in free_partners(pair) if a is not None and s >= PARTNER]
    moved = [(a, b) for a, b in partners if pair.a.layers.index(a) != pair.b.layers.index(b)]
    if not moved:
        return None
    words = ", ".join(f"{a} as {b}" for a, b in moved)
    return Finding(None, "unknown", f"B has layers of A in another order: {words}", 12)


def _adds_nothing(model: Model, layer: int) -> bool:
    """Whether output and down projections are 0: a layer that was added to be trained."""
    block = model.block(layer)
    parts = []
    if isinstance(block.ffn, Ffn):
        parts.append((block.ffn.down.weight, block.ffn.up.weight))
    if isinstance(block.attention, Attention):
        parts.append((block.attention.output.weight, block.attention.value.weight))
    return bool(parts) and all(_norm(out) <= _NOTHING * _norm(into) for out, into in parts)


def _doubt_of_layers(model: Model, extra: list[int]) -> str | None:
    """Why layers that one model has more may have been added; None where they look trained."""
    try:
        others = [model.units(n) for n in model.layers if n not in extra][:_COMPARED]
        doubts = [doubt_of_layer(model.units(n), others) for n in extra]
    except NotApplicable:
        return None
    return doubts[0] if others and all(doubts) else None


# Experts


def _experts(pair: Pair) -> Iterator[Finding]:
    """Every expert of one model has the units of the other's dense FFN: copies that were trained.

    The other way round, experts that were trained apart would have the same units by chance.
    """
    routing = [model.weights.architecture.routing is not None for model in pair.models]
    if routing[0] == routing[1]:
        return
    dense, moe = ("A", "B") if routing[1] else ("B", "A")
    arrow: Arrow = "a->b" if routing[1] else "b->a"
    shares: list[list[float]] = []
    apart: list[list[float]] = []
    for layer_a, layer_b in _layers(pair):
        units = [[_in_b(pair, u) for u in pair.a.ffns(layer_a)], [*pair.b.ffns(layer_b)]]
        if len(units[0]) == len(units[1]):
            continue
        one, experts = units if len(units[0]) < len(units[1]) else units[::-1]
        at = np.linspace(0, len(experts) - 1, min(_EXPERTS, len(experts))).round().astype(int)
        generator = pair.generator(Stream.EXPERT_UNITS, layer_a)
        shares.append([_either(experts[i], one[0], generator).share for i in at])
        apart.append([_apart(expert, one[0]) for expert in experts])
    if not shares:
        return
    every = np.median([min(layer) for layer in shares])
    best = np.median([max(layer) for layer in shares])
    if every >= _AGREE and any(_one_alone(distances) for distances in apart):
        doubt = f"one expert of {moe} is the FFN of {dense} and the others are not"
        reason = f"{doubt}: it may have been taken out of {moe}, or {moe} made of copies of it"
        yield Finding("upcycled", "unknown", reason, 5, doubt=doubt)
        return
    counted = f"median over {len(shares)} layers"
    if every >= _AGREE:
        least = min(min(layer) for layer in shares)
        reason = (
            f"every expert of {moe} has the units of the dense FFN of {dense}: {every:.0%} or more "
            f"agree ({counted}; least {least:.0%})"
        )
        yield Finding("upcycled", arrow, reason, 5)
    elif best >= _AGREE:
        reason = (
            f"one expert of {moe} has the units of the dense FFN of {dense} ({best:.0%} agree, "
            f"{counted}), others have not"
        )
        yield Finding("width-changed", "unknown", reason, 20)


def _apart(one: Units, other: Units) -> float:
    """Relative difference of the input maps of two FFNs, 1 where their widths differ."""
    return relative_error(one.up, other.up) if one.up.shape == other.up.shape else 1.0


def _one_alone(distances: list[float]) -> bool:
    """Whether one expert is far nearer than the others, which no copying to all experts does."""
    first, *others = sorted(distances)
    return bool(others) and first < _NEARER * others[0]


def _either(few: Units, many: Units, generator: np.random.Generator) -> Agreement:
    """The narrower FFN's units among the wider one's."""
    if len(few.up) > len(many.up):
        few, many = many, few
    return agreement(few, many, generator)


def _in_b(pair: Pair, units: Units) -> Units:
    """A's units in B's residual coordinates, as they are where no map was found."""
    alignment = pair.once(find_alignment)
    if alignment.kind == "none":
        pair.need_same_width()
        return units
    down = alignment.apply(np.ascontiguousarray(units.down.T)).T
    gate = None if units.gate is None else alignment.apply(units.gate)
    return Units(gate, alignment.apply(units.up), down)


# Width


def _width(pair: Pair) -> Iterator[Finding]:
    """Units or coordinates that one model has more, in the sense of `_depth`."""
    if any(model.weights.architecture.routing is not None for model in pair.models):
        return
    layers = [(a, b) for a, b in _layers(pair) if pair.a.width(a) != pair.b.width(b)]
    if pair.same_width and not layers:
        return
    if not pair.same_width and pair.once(find_alignment).kind == "none":
        return
    shares, made, doubts = [], [], []
    for layer_a, layer_b in layers or _layers(pair):
        a, b = _in_b(pair, pair.a.units(layer_a)), _restricted(pair, pair.b.units(layer_b))
        few, many = (a, b) if len(a.up) <= len(b.up) else (b, a)
        match = agreement(few, many, pair.generator(Stream.NARROW_UNITS, layer_a))
        shares.append(match.share)
        made.append(len(few.up) < len(many.up) and _made_from_others(pair, match, few, many))
        if len(few.up) < len(many.up):
            doubts.append(_doubt_of_units(pair, few, many))
    share = float(np.median(shares)) if shares else 0.0
    if share >= _AGREE:
        doubt = doubts[0] if doubts and all(doubts) else None
        yield _narrowed(pair, share, all(made), doubt)


def _doubt_of_units(pair: Pair, few: Units, many: Units) -> str | None:
    """Why the units that the wider FFN has more may have been added to it."""
    some = np.sort(pair.generator(Stream.ADDED_UNITS).permutation(len(many.up))[: 2 * _UNITS])
    rows, own = unit_rows(many.rows[some]), unit_rows(few.rows)
    nearest = np.abs(multiply(rows, np.ascontiguousarray(own.T))).max(axis=1)
    extra, kept = some[nearest < _OTHER], some[nearest >= _OTHER]
    return doubt_of_units(picked(many, extra), picked(many, kept))


def _narrowed(pair: Pair, share: float, made: bool, doubt: str | None) -> Finding:
    """The finding, in words."""
    layer_a, layer_b = matched_layers(pair)[len(matched_layers(pair)) // 2]
    units = pair.a.width(layer_a), pair.b.width(layer_b)
    sizes = pair.a.hidden_size, pair.b.hidden_size
    a_is_wider = units[0] + sizes[0] > units[1] + sizes[1]
    wide, narrow = ("A", "B") if a_is_wider else ("B", "A")
    numbers = []
    if units[0] != units[1]:
        numbers.append(f"{max(units):,} units a layer to {min(units):,}")
    if sizes[0] != sizes[1]:
        numbers.append(f"{max(sizes):,} coordinates to {min(sizes):,}")
    opposed = (units[0] - units[1]) * (sizes[0] - sizes[1]) < 0
    shrunk: Arrow = "a->b" if a_is_wider else "b->a"
    grown: Arrow = "b->a" if a_is_wider else "a->b"
    if made:
        how = f"the units that {wide} has more add nothing or are copies of others"
    else:
        how = f"{share:.0%} of the units of {narrow} are units of {wide}"
    reason = f"{wide} and {narrow} have {' and '.join(numbers)}; {how}"
    direction: Arrow = "unknown" if opposed else grown if made else shrunk
    if doubt is not None and not made:
        doubt = f"the units that {wide} has more {doubt}"
        return Finding("width-changed", "unknown", f"{reason}; {doubt}", 20, doubt=doubt)
    return Finding("width-changed", direction, reason, 20)


def _restricted(pair: Pair, units: Units) -> Units:
    """B's units without the coordinates that A lacks."""
    order = pair.once(find_alignment).order
    if order is None or (order >= 0).all():
        return units
    there = (order >= 0).astype(np.float32)
    gate = None if units.gate is None else units.gate * there
    return Units(gate, units.up * there, units.down * there[:, None])


def _made_from_others(pair: Pair, match: Agreement, few: Units, many: Units) -> bool:
    """Whether the units that the wider FFN has more add nothing, or are copies of other units."""
    sizes = np.linalg.norm(many.up, axis=1) * np.linalg.norm(many.down, axis=0)
    silent = sizes <= _NOTHING * np.median(sizes[match.partners])
    more = len(many.up) - len(few.up)
    if np.count_nonzero(silent) >= 0.9 * more:
        return True
    some = np.sort(pair.generator(Stream.COPIED_UNITS).permutation(len(many.up))[:_UNITS])
    rows = many.rows / np.maximum(np.linalg.norm(many.rows, axis=1, keepdims=True), 1e-30)
    cosines = np.abs(multiply(rows, np.ascontiguousarray(rows[some].T)))
    cosines[some, np.arange(some.size)] = 0
    # A copy and what it was copied from have each other.
    copied = np.mean(cosines.max(axis=0) > _COPY)
    return bool(copied >= 0.9 * min(1.0, 2 * more / len(many.up)))


def _layers(pair: Pair) -> tuple[tuple[int, int], ...]:
    return spread(matched_layers(pair), pair.effort.structure_layers)


def _norm(x: Floats) -> float:
    return float(np.linalg.norm(x))
