"""What models declare about one another, and which pairs of them are worth a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.claims.matching import Match, Names
from ckptforensics.registry.nearest import NearSketches, neighbours


@dataclass(frozen=True)
class PlannedPair:
    """Two identities to compare, the smaller first, and a model for each."""

    a: CataloguedModel
    b: CataloguedModel

    @property
    def by_signature(self) -> bool:
        """Whether one of the two is known by its signature only."""
        return not (has_weights(self.a) and has_weights(self.b))


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    pairs : in order of their identities
    left : numbers of models to how many families near they are not compared with
    unsigned : pairs that would be compared, had not one of them a sketch only
    """

    pairs: list[PlannedPair]
    left: dict[int, int]
    unsigned: list[PlannedPair]


class Declared:
    """What the models of a catalog declare about one another.

    Attributes
    ----------
    matches : for each model's number, its claims' matches in their order
    """

    def __init__(self, models: Sequence[CataloguedModel]) -> None:
        names = Names(models)
        self.matches: dict[int, list[Match]] = {
            m.number: [names.find(claim.parent, m) for claim in m.reading.claims] for m in models
        }
        self._parents: dict[int, set[int | str]] = {}
        for model in models:
            parents: set[int | str] = set()
            for claim, match in zip(model.reading.claims, self.matches[model.number], strict=True):
                # A parent that is not here is still one that two models may share.
                parents |= {m.number for m in match.models} or {_bare(claim.parent)}
            self._parents[model.number] = parents

    def ancestors(self, number: int) -> set[int | str]:
        """Numbers, and names of what is not here, that a model declares to come from."""
        found: set[int | str] = set()
        waiting = list(self._parents.get(number, ()))
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                if isinstance(one, int):
                    waiting += self._parents.get(one, ())
        return found

    def families(self) -> dict[int, int]:
        """Each model's number to one that is the same for all that declare to be related."""
        family: dict[int | str, int | str] = {}

        def root(one: int | str) -> int | str:
            while family.setdefault(one, one) != one:
                one = family[one]
            return one

        for number, parents in self._parents.items():
            for parent in parents:
                family[root(parent)] = root(number)
        names: dict[int | str, int] = {}
        return {n: names.setdefault(root(n), len(names)) for n in self._parents}

    def related(self, i: int, j: int) -> bool:
        """Whether what the two declare makes them relatives."""
        a, b = self.ancestors(i) | {i}, self.ancestors(j) | {j}
        return not a.isdisjoint(b)


def plan_pairs(
    models: Sequence[CataloguedModel],
    of: Iterable[int],
    declared: Declared,
    near_sketches: NearSketches,
    *,
    most: int,
) -> Plan:
    """The pairs that are worth a test: claimed parents, and the nearest by signature or sketch.

    Parameters
    ----------
    models : of the catalog
    of : numbers of the models that are audited; a pair has one of them at least
    near_sketches : pairs of sketches that are near
    most : families of models near by signature or sketch that a model is compared with one of
    """
    of = set(of)
    by_number = {model.number: model for model in models}
    # Of models with the same weights one that is there stands for all.
    standing: dict[str, CataloguedModel] = {}
    for model in sorted(
        models,
        key=lambda model: (not model.reading.signature, not has_weights(model), model.name),
    ):
        standing.setdefault(model.identity, model)
    of_identity = {by_number[number].identity for number in of}
    models = list(standing.values())
    wanted: dict[tuple[str, str], PlannedPair] = {}
    unsigned: dict[tuple[str, str], PlannedPair] = {}

    def want(i: CataloguedModel, j: CataloguedModel) -> None:
        i, j = standing[i.identity], standing[j.identity]
        pair = as_pair(i, j)
        if pair is not None:
            wanted.setdefault((pair.a.identity, pair.b.identity), pair)
        elif i.identity != j.identity and _known(i) and _known(j):
            pair = _in_order(i, j)
            unsigned.setdefault((pair.a.identity, pair.b.identity), pair)

    for number in sorted(of):
        for match in declared.matches[number]:
            if match.models:
                want(by_number[number], match.models[0])
    family = declared.families()
    near = neighbours(models, near_sketches)
    left: dict[int, int] = {}
    for i, model in enumerate(models):
        # One of a family stands for it, and a model's own family is explained by what it declares:
        # else whoever has many siblings would have no place for anybody else.
        seen = {family[model.number]}
        for neighbour in near.get(i, ()):
            other = models[neighbour.index]
            if family[other.number] in seen:
                continue
            seen.add(family[other.number])
            if not (model.identity in of_identity or other.identity in of_identity):
                continue
            if len(seen) <= most + 1:
                want(model, other)
            elif model.identity in of_identity:
                left[model.number] = left.get(model.number, 0) + 1
    pairs, others = ([by[key] for key in sorted(by)] for by in (wanted, unsigned))
    return Plan(pairs, left, others)


def as_pair(i: CataloguedModel, j: CataloguedModel) -> PlannedPair | None:
    """The two in the order of their identities, None where they cannot be compared or are one."""
    if i.identity == j.identity or not (_comparable(i) and _comparable(j)):
        return None
    return _in_order(i, j)


def _in_order(i: CataloguedModel, j: CataloguedModel) -> PlannedPair:
    a, b = sorted((i, j), key=lambda model: model.identity)
    return PlannedPair(a, b)


def has_weights(model: CataloguedModel) -> bool:
    """Whether its weights are at hand, not only its signature."""
    return model.opens is not None and model.state != "vanished"


def _comparable(model: CataloguedModel) -> bool:
    return model.reading.signature is not None and not model.adapter


def _known(model: CataloguedModel) -> bool:
    """Whether it can be compared, or could if it were signed."""
    return _comparable(model) or (model.sketch is not None and not model.adapter)


def _bare(name: str) -> str:
    return name.partition("@")[0].rstrip("/").casefold()
