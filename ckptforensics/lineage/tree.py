"""Three or more models: clusters, dendrogram and a proposed tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ckptforensics.results import PairRecord, TreeEdge
from ckptforensics.results.comparison import RELATIVES, DirectionRecord

# Models of other widths have no angle between their directions.
_FARTHEST = 90.0
# Squared distances of changes made apart nearly add up: two fine-tunes of one model give .68 of the
# sum, three siblings without their ancestor the half of it.
_ADDS_UP = 0.6
# Lengths this near to each other are equal: the third model differs in structure alone.
_EQUAL = 1.02
# Verdicts on copies.
_COPIES = ("identical", "re-parameterised")
# A length counts so much where the weights show what led to what: a near copy of either model is
# about as far away, and says less.
_EXPLAINED = 0.5


def distance_matrix(
    names: Sequence[str], pairs: Sequence[PairRecord], *, drawn: bool = False
) -> tuple[tuple[float | None, ...], ...]:
    """The paper's distances between all models in degrees, None where there is none.

    With `drawn` those of the dendrogram: of relatives the angle after the map where it is smaller,
    and 0 where they have none, so that no relative stands apart because its basis was changed.
    """
    place = {name: i for i, name in enumerate(names)}
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for i in range(len(names)):
        matrix[i][i] = 0.0
    for pair in pairs:
        i, j = place[pair.a], place[pair.b]
        value = pair.drawn_deg if drawn else pair.distance_deg
        if drawn and value is None and pair.verdict in RELATIVES:
            value = 0.0
        matrix[i][j] = matrix[j][i] = value
    return tuple(tuple(row) for row in matrix)


def linkage_of(
    matrix: Sequence[Sequence[float | None]],
) -> tuple[tuple[float, float, float, float], ...]:
    """scipy's average linkage of a distance matrix; empty for fewer than three models."""
    if len(matrix) < 3:
        return ()
    from scipy.cluster.hierarchy import linkage

    full = [[_FARTHEST if d is None else d for d in row] for row in matrix]
    condensed = np.asarray(full)[np.triu_indices(len(full), 1)]
    return tuple(
        (float(a), float(b), float(d), float(n)) for a, b, d, n in linkage(condensed, "average")
    )


def clusters_of(names: Sequence[str], pairs: Sequence[PairRecord]) -> tuple[tuple[str, ...], ...]:
    """The models in groups that their pairs' verdicts join, in the order they were given."""
    group = {name: {name} for name in names}
    for pair in pairs:
        if pair.verdict in RELATIVES and group[pair.a] is not group[pair.b]:
            joined = group[pair.a] | group[pair.b]
            for name in joined:
                group[name] = joined
    seen: list[tuple[str, ...]] = []
    for name in names:
        members = tuple(n for n in names if n in group[name])
        if members not in seen:
            seen.append(members)
    return tuple(seen)


def tree_of(
    pairs: Sequence[PairRecord], lengths: Mapping[tuple[str, str], float]
) -> tuple[TreeEdge, ...]:
    """Edges of the shortest forest that joins related models; undirected where nothing shows more.

    Parameters
    ----------
    lengths : of pairs (a, b), how far their weights are apart; the smaller, the closer. With
        squared distances of weights, orthogonal changes add up, so that the forest runs through
        the model that lies between two others. An edge that is directed and explained goes before
        others of up to twice its length.
    """
    related = [pair for pair in pairs if pair.verdict in RELATIVES]
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.get(name, name) != name:
            name = group[name]
        return name

    def weight(pair: PairRecord) -> float:
        explained = pair.direction.arrow != "unknown" and pair.relation is not None
        return lengths.get((pair.a, pair.b), np.inf) * (_EXPLAINED if explained else 1.0)

    edges = []
    # Of edges of one length a directed one goes first: copies are as near as what they copy.
    for pair in sorted(related, key=lambda p: (weight(p), p.direction.arrow == "unknown")):
        one, other = root(pair.a), root(pair.b)
        if one == other:
            continue
        group[one] = other
        a, b = (pair.b, pair.a) if pair.direction.arrow == "b->a" else (pair.a, pair.b)
        edges.append(
            TreeEdge(
                a=a,
                b=b,
                directed=pair.direction.arrow != "unknown",
                relation=pair.relation,
                length=pair.distance_deg,
            )
        )
    return tuple(edges)


def through_others(
    pairs: Sequence[PairRecord],
    lengths: Mapping[tuple[str, str], float],
    mixtures: Collection[str] = (),
) -> list[PairRecord]:
    """The pairs, those between which a third model lies called `related`.

    C lies between A and B where |A - B|^2 is about |A - C|^2 + |C - B|^2: changes that were made
    apart are nearly orthogonal. Where A led to C and C to B, B stays derived from A.
    """
    known = {frozenset((p.a, p.b)): p for p in pairs if p.verdict in RELATIVES}
    squares = {frozenset(key): value for key, value in lengths.items()}
    names = sorted({name for pair in pairs for name in (pair.a, pair.b)} - set(mixtures))
    told = []
    for pair in pairs:
        third = None
        if pair.verdict == "derived":
            third = _between(pair, names, known, squares)
        if third is None:
            told.append(pair)
            continue
        reason = f"{third} lies between the two: what separates it from each adds up"
        changed = {
            "verdict": "related",
            "relation": None,
            "direction": DirectionRecord.of_weights("unknown", reason),
            "reasons": (*pair.reasons, reason),
            "otherwise": (f"without {third}, one would be taken for derived from the other",),
        }
        told.append(pair.model_copy(update=changed))
    return told


def _between(
    pair: PairRecord,
    names: Sequence[str],
    known: Mapping[frozenset[str], PairRecord],
    squares: Mapping[frozenset[str], float],
) -> str | None:
    """The model that lies between two, the nearest to both; None if there is none."""
    whole = squares[frozenset((pair.a, pair.b))]
    ends = (pair.a, pair.b)
    found = []
    for name in names:
        models = [frozenset((pair.a, name)), frozenset((name, pair.b))]
        if name in (pair.a, pair.b) or any(model not in known for model in models):
            continue
        first, second = (squares[model] for model in models)
        # A copy of one of the two, in another type or basis, is that one.
        if any(known[model].verdict in _COPIES for model in models):
            continue
        if max(first, second) > _EQUAL * whole or whole < _ADDS_UP * (first + second):
            continue
        # What came from one of the two does not lie between them.
        joined = [(known[model], end) for model, end in zip(models, ends, strict=True)]
        if any(_led(edge, end, name) for edge, end in joined):
            continue
        if pair.direction.arrow == "unknown" or all(_led(edge, name, end) for edge, end in joined):
            found.append((first + second, name))
    return min(found)[1] if found else None


def _led(pair: PairRecord, first: str, second: str) -> bool:
    """Whether the weights show that the first model led to the second."""
    return pair.direction.arrow == ("a->b" if (pair.a, pair.b) == (first, second) else "b->a")
