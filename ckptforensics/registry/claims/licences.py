"""Families of licences, to see where a model's is looser than that of what it was made from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

_WORST = ("conflict", "ask", "same", "kept")


@dataclass(frozen=True)
class LicenceFamily:
    """Licences with conditions of one kind; `rank` as the table `licences.toml` explains it."""

    name: str
    rank: int


def family_of(licence: str) -> LicenceFamily | None:
    """The family of a licence by its identifier, None for one that the table does not have."""
    name = licence.strip().casefold()
    exact, begins = _table()
    if name in exact:
        return exact[name]
    return next((family for begin, family in begins if name.startswith(begin)), None)


def compare_licences(own: str, ancestor: str) -> Literal["same", "kept", "conflict", "ask"]:
    """What a model's licence is beside that of a model it was made from.

    Several, with commas between them, are each looked at, and the worst answer counts. `conflict`
    where it has fewer conditions, `ask` where one of the two is not in the table or both have
    conditions of one kind that need not be the same ones.
    """
    if "," in own or "," in ancestor:
        answers = [
            compare_licences(one, theirs)
            for one in own.split(",")
            for theirs in ancestor.split(",")
        ]
        return min(answers, key=_WORST.index)
    if own.strip().casefold() == ancestor.strip().casefold():
        return "same"
    a, b = family_of(own), family_of(ancestor)
    if b is not None and b.rank == 0:
        return "kept"
    if a is None or b is None:
        return "ask"
    if a.rank < b.rank:
        return "conflict"
    return "ask" if a.rank == b.rank else "kept"


@cache
def _table() -> tuple[dict[str, LicenceFamily], list[tuple[str, LicenceFamily]]]:
    text = (files("ckptforensics.registry.claims") / "licences.toml").read_text("utf-8")
    exact: dict[str, LicenceFamily] = {}
    begins: list[tuple[str, LicenceFamily]] = []
    for name, row in tomllib.loads(text).items():
        family = LicenceFamily(name, row["rank"])
        exact |= dict.fromkeys(row["ids"], family)
        begins += [(one, family) for one in row.get("begins", ())]
    return exact, begins
