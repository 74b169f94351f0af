"""The result of `find`: the models of a catalog that a model is a copy or a relative of."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.comparison import Level, Relation, Shares, Verdict
from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Name, Skipped

# What names a channel by which sketches are alike.
Channel = Literal["strings", "ids", "heads", "attention"]


class Channels(Frozen):
    """How alike two models are by their tokens, named by strings or ids, by heads and by attention.

    Results before version 1.1 have no `attention`: what all heads together do to a single token.
    """

    strings: Finite | None
    ids: Finite | None
    heads: Finite | None
    attention: Finite | None = None


class FindMatch(Frozen):
    """A model of the catalog whose sketch is near.

    `score` is 1 for the same sketch and 0 at the limit from which on a model is a candidate;
    `channels` has how alike the two are in each channel that both have, null where one lacks it.
    `verdict` and `relation` are what a comparison of the two says, null where there was none, and
    `evidence` what the verdict, or the candidate, rests on. `same` names further models of the
    catalog that have the same sketch.
    """

    name: Name
    source: str
    path: Name
    commit: str | None
    score: Finite
    channels: Channels
    verdict: Verdict | None
    relation: Relation | Shares | None
    evidence: str
    same: tuple[Name, ...] = ()


class FindDocument(Document):
    """The result of `find`.

    `answer` is `found` where a comparison shows a relative, `none` where nothing among `searched`
    sketches is near in any channel or all that is near is shown to be independent, and
    `inconclusive` where that could not be told; `reasons` say why. `candidates` are the sketches
    that are near, of which the first are in `matches`; `without` are models of the catalog that
    have no sketch. `search_seconds` are those of the search alone.
    """

    schema_version: Literal["1.1"] = "1.1"
    kind: Literal["find"] = "find"
    model: ModelRecord
    catalog: Name
    level: Level
    answer: Literal["found", "none", "inconclusive"]
    matches: tuple[FindMatch, ...]
    searched: int
    without: int
    candidates: int
    reasons: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    search_seconds: Finite
    seconds: Finite
