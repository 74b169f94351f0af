"""What is known of every model once claims and weights are laid side by side; rules read this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.claims.matching import Match
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.policy import Policy
from ckptforensics.results import PairRecord
from ckptforensics.results.audit import ClaimRecord, RelativeRecord
from ckptforensics.results.comparison import RELATIVES, Arrow

# Verdicts at which nothing was trained.
SAME = ("same weights", "identical", "re-parameterised")
_ARROWS: Mapping[Arrow, Arrow] = {"a->b": "b->a", "b->a": "a->b", "unknown": "unknown"}


@dataclass(frozen=True)
class Relative:
    """Another model beside this one.

    Attributes
    ----------
    other : the model
    record : what a report shows; its arrow is `a->b` where the other came first
    pair : the comparison; None where the weights are the same by their digests
    """

    other: CataloguedModel
    record: RelativeRecord
    pair: PairRecord | None

    @property
    def shares_only(self) -> bool:
        """Whether only parts are shared, and neither was made from the other."""
        return (self.record.relation or "").startswith("shares: ")

    @property
    def hidden(self) -> bool:
        """Whether a change of basis, or of the order of units, had to be undone.

        Containers permute the rows of queries and keys and round, which is nothing of the kind.
        """
        if self.pair is None:
            return False
        alignment = self.pair.alignment
        return alignment.kind in ("rotation", "signed-permutation") or bool(alignment.found)

    @property
    def same_function(self) -> bool:
        """Whether it has the same weights, if in another container or rounding."""
        return not self.hidden and self.record.verdict in SAME


@dataclass
class Judged:
    """One model with its claims and relatives.

    Attributes
    ----------
    claims : as a report shows them, undeclared relatives last
    matches : of the claims in the model's reading, in their order
    relatives : all that are related, or have the same weights
    undeclared : those that nothing declared explains
    compared : identities of the models that it was compared with
    failed : comparisons that ended in an error, as (the other's name, why)
    """

    model: CataloguedModel
    claims: tuple[ClaimRecord, ...] = ()
    matches: Sequence[Match] = ()
    relatives: tuple[Relative, ...] = ()
    undeclared: tuple[Relative, ...] = ()
    compared: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class World:
    """All that rules may look at.

    Attributes
    ----------
    judged : the audited models by number
    declared : what they declare
    policy : of the user
    """

    judged: Mapping[int, Judged]
    declared: Declared
    policy: Policy = field(default_factory=Policy)


def relative_of(
    model: CataloguedModel, other: CataloguedModel, pair: PairRecord | None
) -> Relative:
    """The other model as a relative of this one; `pair` has the smaller identity as A."""
    if pair is None:
        sentence = "all weight files have the same SHA-256"
        record = RelativeRecord(
            name=other.name,
            verdict="same weights",
            relation=None,
            arrow="unknown",
            evidence=(sentence,),
        )
        return Relative(other, record, None)
    other_is_a = other.identity <= model.identity
    a, b = (other, model) if other_is_a else (model, other)
    arrow = pair.direction.arrow if other_is_a else _ARROWS[pair.direction.arrow]
    evidence = [f"A is {a.name}, B is {b.name}", *pair.reasons]
    if pair.direction.arrow != "unknown":
        evidence.append(
            f"direction {pair.direction.arrow} ({pair.direction.strength}): {pair.direction.why}"
        )
    record = RelativeRecord(
        name=other.name,
        verdict=pair.verdict,
        relation=pair.relation,
        arrow=arrow,
        evidence=tuple(evidence),
    )
    return Relative(other, record, pair)


def is_relative(relative: Relative) -> bool:
    """Whether the two share a training run, or parts of one."""
    return relative.pair is None or relative.pair.verdict in RELATIVES
