"""Which catalogued model a parent's name means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptforensics.registry.catalog.models import CataloguedModel

_MOST_NAMED = 4


@dataclass(frozen=True)
class Match:
    """The models that a name means, all with the same weights; or why it means none.

    Attributes
    ----------
    models : in order of name; empty where the name means none, or several with other weights
    why : set where `models` is empty
    """

    models: tuple[CataloguedModel, ...] = ()
    why: str = ""


class Names:
    """Models by what they may be called: name, path, and the last part of either."""

    def __init__(self, models: Iterable[CataloguedModel]) -> None:
        # A whole name counts before a place, and a place before the last part of a name.
        self._tiers: tuple[dict[str, list[CataloguedModel]], ...] = tuple(
            defaultdict(list) for _ in range(4)
        )
        for model in models:
            bare = model.name.partition("@")[0]
            keys = (model.name, bare, model.path, _last(bare))
            for tier, key in zip(self._tiers, keys, strict=True):
                tier[key.casefold()].append(model)

    def find(self, parent: str, of: CataloguedModel) -> Match:
        """The models that `parent`, as `of` calls it, means; never `of` itself."""
        return self.find_from(parent, of.path, of.number)

    def find_from(self, parent: str, path: str, number: int | None = None) -> Match:
        """As `find`, for the model at `path` that the catalog has as `number`, if at all."""
        bare = parent.partition("@")[0].rstrip("/")
        beside = _beside(path, parent)
        keys = ((parent,), (bare,), (parent, beside), (_last(bare),))
        itself = False
        for tier, names in zip(self._tiers, keys, strict=True):
            found = [m for name in dict.fromkeys(names) for m in tier.get(name.casefold(), ())]
            others = [m for m in found if m.number != number]
            itself = itself or len(others) < len(found)
            if others:
                return _one_of(others, parent)
        if itself:
            return Match(why="it names itself as its parent")
        return Match(why="the parent is not among the catalogued models")


def _one_of(models: Sequence[CataloguedModel], parent: str) -> Match:
    present = [m for m in models if m.state != "vanished"] or models
    if len({m.identity for m in present}) > 1:
        names = [m.name for m in present[:_MOST_NAMED]]
        more = ", ..." if len(present) > _MOST_NAMED else ""
        return Match(
            why=f"the name {parent!r} may mean {len(present)} models of other weights: "
            f"{', '.join(names)}{more}"
        )
    return Match(tuple(present))


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _beside(path: str, parent: str) -> str:
    """A relative path in a configuration, as a path."""
    try:
        return (
            str((Path(path) / parent).resolve(strict=False)) if parent.startswith(".") else parent
        )
    except (OSError, ValueError, RuntimeError):
        return parent
