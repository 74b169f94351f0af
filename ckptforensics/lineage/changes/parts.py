"""Whether two relatives share all of their weights, or only parts, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.changes.changes import Change, measure_changes
from ckptforensics.lineage.correspondence.equal_parts import (
    EqualParts,
    EqualTensor,
    equal_parts,
    named_parts,
)
from ckptforensics.lineage.correspondence.hashes import roles_of
from ckptforensics.lineage.pair import Pair
from ckptforensics.results import CriterionRecord

# Cosine of matrices of one name from which on they are one matrix that changed.
_ALIKE = 0.2
# Two models share parts only if so many of their layers' matrices have nothing in common.
_LEAST_FOREIGN = 0.1
_INITIALISATION = "initialisation"


def shared_parts(pair: Pair, tests: Sequence[CriterionRecord]) -> tuple[str, ...]:
    """The parts that two relatives share where the rest has nothing in common, in words.

    Empty where the models correspond as a whole. `initialisation` is what is left where the order
    of units or coordinates is shared and no weights or functions are.
    """
    every = pair.once(measure_changes)
    changes = [c for c in every if c.tensors.matrix or c.tensors.error is not None]
    layers = [c for c in changes if c.tensors.part == "layer"]
    foreign = sum(change.foreign for change in layers)
    if layers and foreign < _LEAST_FOREIGN * len(layers):
        return () if _functions_agree(tests) or not _unlike(layers) else (_INITIALISATION,)
    equal = _equal_parts(pair)
    alike = [*_named(pair, changes), *(equal.whole if equal else ()), *_seen(pair, tests)]
    found = named_parts(alike, pair.a.layers)
    if found:
        return found
    return () if _functions_agree(tests) else (_INITIALISATION,)


def equal_in_words(pair: Pair) -> str | None:
    """Which matrices are equal bit by bit and how many, or None if none is."""
    found = _equal_parts(pair)
    if found is None or not found.tensors:
        return None
    whole = found.whole
    if not whole:
        some = max(found.tensors, key=lambda t: t.rows)
        return f"{some.rows:.0%} of the rows or columns of {some.name} are equal bit by bit"
    words = ", ".join(named_parts(whole, pair.a.layers)) or "matrices outside the layers"
    verb = "are" if len(whole) > 1 else "is"
    return (
        f"{len(whole)} of {found.compared} matrices {verb} equal bit by bit, wherever they stand: "
        f"{words}"
    )


def _equal_parts(pair: Pair) -> EqualParts | None:
    """What is equal, None where it was not looked for."""
    try:
        return pair.once(equal_parts)
    except NotApplicable:
        return None


def _functions_agree(tests: Sequence[CriterionRecord]) -> bool:
    """Whether what the models compute corresponds, whatever the order of their units."""
    return any(
        t.shows_relatives for t in tests if t.name not in ("space of embeddings", "equal parts")
    )


def _unlike(layers: Sequence[Change]) -> bool:
    """Whether matrices changed by about as much as they hold."""
    changes = sorted(c.relative for c in layers)
    return changes[len(changes) // 2] >= 0.8


def _named(pair: Pair, changes: Sequence[Change]) -> list[EqualTensor]:
    """Matrices that correspond by their name and are alike."""
    roles = roles_of(pair.a)
    found = []
    for change in changes:
        known = roles.get(change.tensors.tensor)
        if change.cosine >= _ALIKE and known is not None:
            found.append(EqualTensor(change.tensors.tensor, *known, 1.0, change.entries))
    return found


def _seen(pair: Pair, tests: Sequence[CriterionRecord]) -> list[EqualTensor]:
    """Parts that the robust channels find in both, whatever basis they are in."""
    by_name: Mapping[str, CriterionRecord] = {test.name: test for test in tests}
    found = []
    for name, roles in (
        ("functions behind gates", ("gate", "up", "down")),
        ("head spectra", ("value", "output")),
    ):
        test = by_name.get(name)
        if test is None or test.limits is None or test.skipped is not None:
            continue
        for layer, value in zip(pair.a.layers, test.profile, strict=True):
            if value is not None and value >= test.limits[1]:
                found += [EqualTensor(name, layer, role, 1.0, 0) for role in roles]
    space = by_name.get("space of embeddings")
    if space is not None and space.shows_relatives:
        found.append(EqualTensor("embeddings", None, "embedding", 1.0, 0))
    return found
