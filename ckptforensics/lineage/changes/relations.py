"""How two related models are related, and who came first, from what changed.

A direction is stated only where the weights show it; each rule says in its docstring why it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from ckptforensics.lineage.changes.beyond_layers import appended_rows, drawn_anew, only_outside
from ckptforensics.lineage.changes.changes import NEAR, ROUNDED, Change, measure_changes
from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.changes.masks import Mask
from ckptforensics.lineage.changes.own_basis import own_findings
from ckptforensics.lineage.changes.structure import find_structure, reordered
from ckptforensics.lineage.changes.tensor_pairs import is_sampled
from ckptforensics.lineage.correspondence.hashes import roles_of
from ckptforensics.lineage.pair import Pair
from ckptforensics.results.comparison import Arrow, ChangeRecord

# A change must be seen in this share of the changed entries of layers to be the kind of the
# relation: what is equal on both sides says nothing of it.
_MOST = 0.5
# Mean square of digits that rounding took, relative to digits drawn uniformly: powers of two, whose
# lower side is rounded more finely, make it a little less.
_UNIFORM = (0.85, 1.15)
# A copy that was only quantized is explained whole, but for a few odd matrices.
_NEARLY_ALL = 0.9
# Share of zeros that one model has more than the other, to be called pruned.
_PRUNED = 0.1
# Share of the entries that pruning left which must be equal to say what was pruned.
_UNCHANGED = 0.9
_THIRD = "other changes lie between the two, so both may come from a third model"
# The entries that pruning removed are larger than what else changed, at least by this factor.
_REMOVED = 2.0
# Relative size of the rounding errors of products of a few stored numbers, with some slack.
_ROUNDING = {"BF16": 6e-3, "F16": 1e-3, "F32": 1e-4}
# Distance to a quantized model, relative to that of values anywhere between its steps, below which
# it was not made by rounding the other.
_FILLED = 0.6
# Entries whose rounding was looked at, and the mean square error relative to what rounding gives.
_LEAST_ENTRIES = 200
_LIKE_ROUNDING = (0.75, 1.3)


def identical(pair: Pair) -> bool:
    """Whether every tensor has the same name, stored type, shape and bytes; reads both models.

    Reading ends at the first byte that differs.
    """
    stores = [model.weights.store for model in pair.models]
    if set(stores[0]) != set(stores[1]) or stores[0].recipe() != stores[1].recipe():
        return False
    every = [[p for n in sorted(s) for p in s.parts(n)] for s in stores]
    if len(every[0]) != len(every[1]):
        return False
    if any(
        (a.name, a.dtype, a.shape, a.nbytes) != (b.name, b.dtype, b.shape, b.nbytes)
        for a, b in zip(*every, strict=True)
    ):
        return False
    same = True
    # Small ones first: what differs, differs in most tensors.
    for info in sorted(every[0], key=lambda p: p.nbytes):
        if info.nbytes == 0 or info.unreadable:
            continue
        a, b = (store.stored_bytes(info.name) for store in stores)
        for model in pair.models:
            model.count(info.nbytes)
        same = _same_bytes(a, b)
        for store in stores:
            store.release(info.name)
        if not same:
            break
    return same


def find_changes(pair: Pair) -> tuple[ChangeRecord, ...]:
    """What changed, tensor by tensor; empty where only signatures are compared."""
    if not pair.reads_weights:
        return ()
    return tuple(change.record for change in pair.once(measure_changes))


def left_out(pair: Pair) -> str | None:
    """What of the weights was not compared entry by entry, in words; None if all was."""
    if not pair.reads_weights:
        return "weights were not compared entry by entry"
    if not is_sampled(pair):
        return None
    changes = pair.once(measure_changes)
    layers = sorted({c.tensors.layer for c in changes if c.tensors.layer is not None})
    words = ", ".join(str(layer) for layer in layers)
    return f"what changed was looked for in layers {words} of {len(pair.a.layers)} alone"


def not_compared(pair: Pair) -> list[str]:
    """Tensors that were not compared entry by entry, in words with the reason."""
    changes = pair.once(measure_changes)
    mapped = sorted({c.tensors.layer or 0 for c in changes if c.tensors.mapped})
    if mapped and all(change.tensors.mapped for change in changes):
        return ["tensors as they are stored: a map between the models was undone"]
    roles = roles_of(pair.a)
    compared = {change.tensors.tensor for change in changes}
    compared |= {name for name, (layer, _) in roles.items() if layer in mapped}
    told = [] if (left := left_out(pair)) is None else [left]
    if mapped:
        words = ", ".join(map(str, mapped))
        told.append(
            f"some tensors of layers {words} as they are stored: other factors or bases there"
        )
    stores = [model.weights.store for model in pair.models]
    for name, own, other in (("A", stores[0], stores[1]), ("B", stores[1], stores[0])):
        alone = sorted(n for n in own if n not in other)
        if alone and len(alone) < len(own.tensors):
            told.append(f"{len(alone):,} tensors that {name} alone has, such as {alone[0]}")
    both = [n for n in stores[0] if n in stores[1] and n not in compared]
    if both and not is_sampled(pair):
        told.append(f"{len(both):,} tensors of other shapes or types, such as {sorted(both)[0]}")
    return told


def find_relation(pair: Pair) -> tuple[Finding, ...]:
    """All findings, the strongest first; empty where the weights say nothing.

    Raises
    ------
    CkptError
        if a tensor cannot be decoded.
    """
    if not pair.reads_weights:
        return ()
    every = pair.once(measure_changes)
    matrices = [c for c in every if c.tensors.part == "layer" and c.tensors.matrix]
    layers = [c for c in matrices if not c.foreign]
    alike = 2 * len(layers) >= len(matrices)
    # The gains of a layer that was replaced are those of another one.
    there = {c.tensors.layer for c in layers}
    changes = [
        c
        for c in every
        if not c.foreign and (c.tensors.part != "layer" or c.tensors.layer in there)
    ]
    found = [f for f in find_structure(pair) if alike or f.relation != "depth-changed"]
    if layers and alike:
        found += _of_values(pair, changes, layers)
        found += _replaced(pair)
    return tuple(sorted(_agreed(found, bool(layers)), key=lambda finding: finding.order))


def _agreed(found: Sequence[Finding], compared: bool) -> list[Finding]:
    """Directions only where all findings have one, the same, and common tensors were compared.

    Else both models may come from a third one: from what was pruned to make the one and quantized
    to make the other, for example, or tuned before a layer was removed.
    """
    arrows = {f.direction for f in found if f.relation is not None or f.direction != "unknown"}
    if len(arrows) < 2 and compared:
        return list(found)
    return [
        replace(f, direction="unknown", reason=f"{f.reason} ({_THIRD})")
        if f.direction != "unknown"
        else f
        for f in found
    ]


def _of_values(pair: Pair, changes: list[Change], layers: list[Change]) -> Iterable[Finding]:
    """Findings of tensors that both models have."""
    extended = appended_rows(changes)
    if extended:
        yield extended
    if all(change.equal == 1 for change in changes):
        if not extended:
            yield Finding(None, "unknown", _same_values(changes), 90, "spelling")
        return
    changed = [change for change in changes if change.equal < 1]
    if cast := _cast(changes, changed):
        yield cast
        return
    if all(change.tensors.mapped and change.relative <= _slack(change) for change in changed):
        most = max(change.relative for change in changed)
        reason = f"after the map was undone all that corresponds is equal to {most:.1g} of its norm"
        yield Finding(None, "unknown", reason, 90, "spelling")
        return
    changed = [change for change in changed if not change.respelled] or changed
    moved = [change for change in changed if change.tensors.part == "layer"]
    if drawn := drawn_anew(changed):
        yield drawn
    if not moved:
        if not drawn:
            yield only_outside(changed)
        return
    matrices = [change for change in layers if any(change is one for one in moved)]
    found = [*_both_ways(_quantized, matrices), *_both_ways(_pruned, matrices)]
    if 2 * sum(change.tensors.mapped for change in matrices) > len(matrices):
        own = list(own_findings(pair, matrices))
        found = own or found
    if any(finding.relation == "pruned" for finding in found):
        found = [finding for finding in found if finding.relation != "finetune"]
    kinds = {finding.relation for finding in found} - {None}
    adapter = None if kinds - {"finetune"} else _adapter(moved)
    bases = [model.weights.source.base for model in pair.models]
    if adapter is not None and bases[0] is not None and bases[0] == bases[1]:
        reason = f"{adapter.reason.partition(';')[0]}; both are adapters of one base, {bases[0]}"
        yield Finding("adapter", "unknown", reason, 40)
        return
    if adapter is not None:
        found = [_told_with(adapter, finding) for finding in found] or [adapter]
    elif not kinds:
        found.append(_finetune(matrices, moved))
    yield from found


def _replaced(pair: Pair) -> list[Finding]:
    """Tensors of one name that have nothing in common: no part of what the others say."""
    changes = pair.once(measure_changes)
    foreign = [c for c in changes if c.foreign]
    if not foreign:
        return []
    if moved := reordered(pair):
        return [moved]
    reason = (
        f"{len(foreign)} of {len(changes)} tensors of one name and shape have nothing in common, "
        f"such as {foreign[0].tensors.tensor}: they were replaced, or only one model has them"
    )
    return [Finding(None, "unknown", reason, 60)]


def _told_with(adapter: Finding, finding: Finding) -> Finding:
    """An adapter, and what the grid of the model it was merged onto says of who came first."""
    arrows = {adapter.direction, finding.direction} - {"unknown"}
    direction = arrows.pop() if len(arrows) == 1 else "unknown"
    reason = f"{adapter.reason}; {finding.reason}"
    return replace(adapter, direction=direction, reason=reason)


def _slack(change: Change) -> float:
    """How far apart rounding to the stored types brings what is computed from them."""
    return max(_ROUNDING.get(dtype, _ROUNDING["F32"]) for dtype in change.tensors.dtypes)


def _same_values(changes: Sequence[Change]) -> str:
    dtypes = sorted({f"{a} and {b}" for a, b in (c.tensors.dtypes for c in changes) if a != b})
    stored = f", stored as {', '.join(dtypes)}" if dtypes else ""
    return f"all values of the {len(changes)} tensors that correspond are equal{stored}"


def _cast(changes: Sequence[Change], changed: Sequence[Change]) -> Finding | None:
    """Every entry of one model is that of the other rounded to the narrower type it is stored in.

    The other way round, each entry would have had to grow digits that round away.
    """
    arrows: tuple[Arrow, ...] = ("a->b", "b->a")
    for arrow in arrows:
        if all(change.cast == arrow for change in changed):
            later = changed[0].tensors.dtypes[1 if arrow == "a->b" else 0]
            first, second = ("A", "B") if arrow == "a->b" else ("B", "A")
            reason = (
                f"{second} is {first} rounded to {later}, entry by entry, in {len(changed)} of "
                f"{len(changes)} tensors; the others are equal"
            )
            digits = float(np.median([change.digits for change in changed]))
            lowest, highest = _UNIFORM
            if not lowest < digits < highest:
                doubt = (
                    f"the digits that {first} has more have {digits:.2g} times the mean square of "
                    "digits that rounding takes, as where digits that round away were added"
                )
                return Finding(None, "unknown", f"{reason}; {doubt}", 80, "rounding", doubt)
            return Finding(None, arrow, reason, 80, "rounding")
    return None


def _both_ways(
    rule: Callable[[Sequence[Change], int], Finding | None], layers: Sequence[Change]
) -> list[Finding]:
    """A rule's findings with B, and with A, as the later model."""
    found = [finding for later in (1, 0) if (finding := rule(layers, later))]
    return found[:1]


def _share(layers: Sequence[Change], chosen: Callable[[Change], bool]) -> float:
    """Share of the entries of all matrices of layers."""
    total = sum(change.entries for change in layers)
    return sum(change.entries for change in layers if chosen(change)) / max(total, 1)


def _names(later: int) -> tuple[str, str, Arrow]:
    """The earlier model, the later one, and the direction."""
    return ("A", "B", "a->b") if later else ("B", "A", "b->a")


def _on_grid(name: str | None) -> bool:
    return name not in (None, "F32", "F16", "BF16", "F64")


def _quantized(layers: Sequence[Change], later: int) -> Finding | None:
    """The later model lies on a quantizer's grid, the other does not, and rounds to it.

    The other way round, every entry would have had to move by less than half a step from values
    that have few levels.
    """
    first, second, arrow = _names(later)
    on_grid = [c for c in layers if _on_grid(c.lattices[later]) and c.equal < 1]
    share = _share(layers, lambda c: c in on_grid)
    if share < _MOST:
        return None
    other = _share(on_grid, lambda c: _on_grid(c.lattices[1 - later]))
    names = sorted({str(c.lattices[later]) for c in on_grid})
    where = (
        f"{len(on_grid)} of {len(layers)} changed matrices of {second} lie on a quantizer's grid"
    )
    near = _share(on_grid, lambda c: c.rounded[later][0] >= ROUNDED)
    told = [c.rounded[later][0] for c in on_grid if c.rounded[later] is not NEAR]
    within = f"{math.floor(100 * min(told, default=1))}%"
    fill = float(np.median([c.rounded[later][1] for c in on_grid]))
    if near >= _MOST and fill < _FILLED and other <= _MOST:
        reason = (
            f"{where} ({', '.join(names)}), and {first} lies {fill:.2g} times as far from it as "
            f"rounding would have left it: {first} was made from the quantized model"
        )
        return Finding("finetune", "b->a" if later else "a->b", reason, 45)
    if near < _MOST:
        reason = (
            f"{where} ({', '.join(names)}), but farther from {first} than rounding brings them: "
            "more than quantization lies between the two"
        )
        return Finding("finetune", "unknown", reason, 45)
    guessed = [c for c in on_grid if c.rounded[later] is NEAR]
    reason = f"{where} ({', '.join(names)}), at least {within} of the entries within half a step"
    if len(guessed) == len(on_grid):
        reason = f"{where} ({', '.join(names)}), as near to {first} as their bits leave them"
    if other > _MOST:
        return Finding("quantized", "unknown", f"{reason}; {first} is quantized too", 30)
    if near < _NEARLY_ALL:
        rest = [c for c in on_grid if c.rounded[later][0] < ROUNDED]
        reason = (
            f"{where} ({', '.join(names)}); rounding explains all but {len(rest)} of them, which "
            f"{first} or {second} has changed otherwise, so that both may come from a third model"
        )
        return Finding("quantized", "unknown", reason, 30)
    if guessed:
        whole = (
            "" if len(guessed) == len(on_grid) else f" of {first}'s, or as near as bits leave them"
        )
        reason = (
            f"{reason}{whole}; where the steps lie is not looked at, so that a close relative of "
            f"{first} may be what was quantized"
        )
        return Finding("quantized", arrow, reason, 30)
    return Finding("quantized", arrow, f"{reason} of {first}'s, which lie on none", 30)


def _pruned(layers: Sequence[Change], later: int) -> Finding | None:
    """The later model has zeros where the other has entries, and all else is equal.

    Where the rest changed too, the pruned model may be that of a relative. What was removed is
    larger than what else changed: the other model's entries are not what training made of zeros.
    """
    first, second, arrow = _names(later)
    masked = [(c, mask) for c in layers if (mask := c.masks[later]) and mask.share >= _PRUNED]
    chosen = {id(c) for c, _ in masked}
    if _share(layers, lambda c: id(c) in chosen) < _MOST or _regrown(masked):
        return None
    share = float(np.median([mask.share for _, mask in masked]))
    patterns = {mask.pattern for _, mask in masked}
    pattern = patterns.pop() if len(patterns) == 1 else None
    kept = float(np.median([mask.kept_equal for _, mask in masked]))
    reason = (
        f"{share:.0%} of the entries are 0 in {second} and not in {first}"
        f"{f', in the pattern {pattern}' if pattern else ''}, in {len(masked)} of {len(layers)} "
        f"changed matrices; {kept:.0%} of the others are equal"
    )
    both = [c for c, _ in masked if (m := c.masks[1 - later]) and m.share >= _PRUNED]
    if kept < _UNCHANGED or both:
        reason += f", {_THIRD}"
        return Finding("pruned", "unknown", reason, 35)
    # On a quantizer's grid there are gaps anyway.
    gaps = [mask.gap for c, mask in masked if not _on_grid(c.lattices[1 - later])]
    if gaps and 2 * sum(gaps) > len(gaps):
        doubt = (
            f"what {first} has where {second} has 0 is not what pruning removes: its sizes leave a "
            f"gap below the others, as where zeros of {second} were filled in with small numbers"
        )
        return Finding("pruned", "unknown", f"{reason}; {doubt}", 35, doubt=doubt)
    return Finding("pruned", arrow, reason, 35)


def _regrown(masked: Sequence[tuple[Change, Mask]]) -> bool:
    """Whether entries that are 0 in one model are no larger in the other than all else changed."""
    ratios = [mask.removed / max(mask.kept_change, 1e-30) for _, mask in masked]
    return bool(ratios) and float(np.median(ratios)) < _REMOVED


def _adapter(moved: Sequence[Change]) -> Finding | None:
    """All changed matrices that were looked at differ by a low rank."""
    matrices = [change for change in moved if change.tensors.matrix]
    low = [change for change in matrices if change.rank is not None]
    ranked = [c for c in matrices if c.looked]
    if not low or len(low) < 0.9 * len(ranked):
        return None
    ranks = sorted({change.rank for change in low if change.rank is not None})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    direction, why = _rounded_last(low)
    reason = f"B - A has rank {span} in {len(low)} of {len(ranked)} changed matrices; {why}"
    return Finding("adapter", direction, reason, 40)


def _rounded_last(low: Sequence[Change]) -> tuple[Arrow, str]:
    """The later model is the rounded sum; a low rank alone is the same seen from both sides."""
    orders = [change.order for change in low if change.order is not None]
    entries = sum(order.entries for order in orders)
    lowest, highest = _LIKE_ROUNDING
    if entries >= _LEAST_ENTRIES:
        as_b = sum(order.as_b for order in orders) / entries
        as_a = sum(order.as_a for order in orders) / entries
        fits = [
            lowest < value < highest and _one_sum([getattr(order, side) for order in orders])
            for value, side in ((as_b, "finer_b"), (as_a, "finer_a"))
        ]
        if fits[0] != fits[1]:
            first, second, arrow = _names(int(fits[0]))
            return arrow, (
                f"{second} is the rounded sum: at {entries:,} entries that passed a power of two "
                f"its rounding errors have {(as_b if fits[0] else as_a):.2f} times the expected "
                f"square, and would have {(as_a if fits[0] else as_b):.2f} times if {first} were"
            )
    return (
        "unknown",
        "seen from both sides the same, so a third relative would have to say who came first",
    )


def _one_sum(finer: Sequence[tuple[int, float]]) -> bool:
    """Whether entries whose unit is finer in the rounded sum show no rounding of the other."""
    entries = sum(count for count, _ in finer)
    return entries == 0 or sum(ratio for _, ratio in finer) < 2 * entries


def _finetune(layers: Sequence[Change], moved: Sequence[Change]) -> Finding:
    """A change of full rank looks the same from both sides."""
    relative = [change.relative for change in layers if change.equal < 1]
    reason = f"{len(moved)} tensors of layers changed"
    if relative:
        most = max((c for c in layers if c.equal < 1), key=lambda c: c.relative)
        reason += (
            f", matrices by {np.median(relative):.2g} of their norm (median; most, "
            f"{most.relative:.2g}, in {most.tensors.tensor})"
        )
    return Finding("finetune", "unknown", reason, 50)


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    step = 1 << 24
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, a.size, step))
