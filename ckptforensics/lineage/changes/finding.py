"""What is found to relate two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckptforensics.results.comparison import Arrow, Relation

What = Literal["spelling", "rounding", "vocabulary", "embeddings", "change"]


@dataclass(frozen=True)
class Finding:
    """One thing that the weights say of how two models are related.

    Attributes
    ----------
    relation : None where nothing changed but the spelling, or the change is of no kind of its own
    direction : who came first, `unknown` where nothing shows it
    reason : one sentence, with figures and place
    order : among several findings the lowest is the strongest
    what : of findings without a relation: other names or containers with the same values, rounding
        to another stored type, rows appended to the vocabulary, embeddings drawn anew
    """

    relation: Relation | None
    direction: Arrow
    reason: str
    order: int
    what: What = "change"
