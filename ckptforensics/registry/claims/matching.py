"""Which catalogued model a parent's name means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptforensics.registry.catalog.models import CataloguedModel

_MOST_NAMED = 4
_ADDRESS = re.compile(r"^https?://(?:www\.)?(?:huggingface\.co|hf\.co)/")


@dataclass(frozen=True)
class Match:
    """The models that a name means, all with the same weights; or why it means none.

    Attributes
    ----------
    models : in order of name; empty where the name means none, or several with other weights
    why : set where `models` is empty
    whole : whether all of the name agrees, not only its last part
    """

    models: tuple[CataloguedModel, ...] = ()
    why: str = ""
    whole: bool = True


class Names:
    """Models by what they may be called."""

    def __init__(self, models: Iterable[CataloguedModel]) -> None:
        # A whole name counts before a place, that before its last two parts, and those before the
        # last part of a name that has no organisation: another organisation's is another model.
        self._tiers: tuple[dict[str, list[CataloguedModel]], ...] = tuple(
            defaultdict(list) for _ in range(5)
        )
        for model in models:
            bare = model.name.partition("@")[0]
            whole = bare.count("/") == 0
            keys = (model.name, bare, model.path, _last(bare, 2), bare if whole else "")
            for tier, key in zip(self._tiers, keys, strict=True):
                if key:
                    tier[key.casefold()].append(model)

    def find(self, parent: str, of: CataloguedModel) -> Match:
        """The models that `parent`, as `of` calls it, means; never `of` itself."""
        return self.find_from(parent, of.path, of.number)

    def find_from(self, parent: str, path: str, number: int | None = None) -> Match:
        """As `find`, for the model at `path` that the catalog has as `number`, if at all."""
        parent = _ADDRESS.sub("", parent)
        bare = parent.partition("@")[0].rstrip("/")
        beside = _beside(path, parent)
        two = _last(bare, 2)
        keys = ((parent,), (bare,), (parent, beside), (two,), (_last(bare, 1),))
        itself = False
        for number_of_tier, (tier, names) in enumerate(zip(self._tiers, keys, strict=True)):
            found = [
                m for name in dict.fromkeys(names) if name for m in tier.get(name.casefold(), ())
            ]
            others = [m for m in found if m.number != number]
            itself = itself or len(others) < len(found)
            if others:
                return _one_of(others, parent, whole=number_of_tier < len(self._tiers) - 1)
        if itself:
            return Match(why="it names itself as its parent")
        return Match(why="the parent is not among the catalogued models")


def _one_of(models: Sequence[CataloguedModel], parent: str, *, whole: bool) -> Match:
    present = [m for m in models if m.state != "vanished"] or models
    if len({m.identity for m in present}) > 1:
        names = [m.name for m in present[:_MOST_NAMED]]
        more = ", ..." if len(present) > _MOST_NAMED else ""
        return Match(
            why=f"the name {parent!r} may mean {len(present)} models of other weights: "
            f"{', '.join(names)}{more}"
        )
    return Match(tuple(present), whole=whole)


def _last(name: str, parts: int) -> str:
    """The last parts of a name, nothing where it has fewer."""
    words = name.replace("\\", "/").rstrip("/").split("/")
    return "/".join(words[-parts:]) if len(words) >= parts else ""


def _beside(path: str, parent: str) -> str:
    """A relative path in a configuration, as a path."""
    try:
        return (
            str((Path(path) / parent).resolve(strict=False)) if parent.startswith(".") else parent
        )
    except (OSError, ValueError, RuntimeError):
        return parent
