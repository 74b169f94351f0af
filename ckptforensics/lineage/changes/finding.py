"""What is found to relate two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckptforensics.results.comparison import Arrow, Relation

What = Literal["spelling", "rounding", "vocabulary", "embeddings", "change"]

# By relation, or by what changed: what a direction rests on, and what it takes to forge it.
_FORGED = {
    "rounding": (
        "one model is the other rounded, and rounding loses digits",
        "digits are drawn at random in each rounding interval of the rounded model",
    ),
    "quantized": (
        "one model is the other rounded to a quantizer's steps",
        "each weight is drawn at random within its step, more densely towards 0",
    ),
    "pruned": (
        "one model has zeros where the other has weights of the density of those beside them",
        "zeros are filled with numbers of that density",
    ),
    "adapter": (
        "one model has the rounding errors of the sum with the low rank",
        "the low rank is subtracted and the errors of rounding are drawn anew",
    ),
    "finetune": (
        "one model lies on a quantizer's grid and the other close around it",
        "a grid is chosen on which a tuned model's weights already nearly lie",
    ),
    "depth-changed": (
        "one model has layers that the other lost, or repeats the other's",
        "layers are trained into a copy, or repeated layers are left out of one",
    ),
    "width-changed": (
        "one model has units that the other lost, or copies of the other's",
        "units like the others are trained into a copy, or copies are left out of one",
    ),
    "upcycled": (
        "every expert has the units of the dense model's FFN",
        "a dense model is made of what the experts of one model have in common",
    ),
    "vocabulary": (
        "the rows that one model has more are as initialised ones, and no others of it are",
        "rows that were never trained are left out of a copy",
    ),
    "embeddings": (
        "one model's embeddings are as random numbers are, and its layers fit the other's",
        "embeddings are drawn anew in a copy and its layers left as they are",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that the weights say of how two models are related.

    Attributes
    ----------
    relation : None where nothing changed but the spelling, or the change is of no kind of its own
    direction : who came first, `unknown` where nothing shows it
    reason : one sentence, with figures and place
    order : among several findings the lowest is the strongest
    doubt : why no direction is stated though something points to one: how it may have been forged
    what : of findings without a relation: other names or containers with the same values, rounding
        to another stored type, rows appended to the vocabulary, embeddings drawn anew
    """

    relation: Relation | None
    direction: Arrow
    reason: str
    order: int
    what: What = "change"
    doubt: str = ""

    @property
    def why(self) -> str:
        """What the direction rests on and what would forge it, or why there is none."""
        if self.direction == "unknown":
            return self.doubt or "what changed looks the same from both sides"
        kept, forged = _FORGED[self.relation or self.what]
        return f"{kept}; to forge it, {forged}"
