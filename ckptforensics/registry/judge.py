"""Lay claims beside measurements: confirmed, contradicted, undeclared, or unverifiable and why.

`contradicted` needs positive evidence: a test that would have shown the claimed parent, or another
root. What was not measured is never counted against a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.claims.matching import Match
from ckptforensics.registry.judged import Judged, Relative, is_relative, relative_of
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.policy import Policy
from ckptforensics.registry.reading import Claim
from ckptforensics.registry.relations import Relations
from ckptforensics.results import PairRecord
from ckptforensics.results.audit import ClaimRecord, ClaimVerdict

# Kinds of derivation in which all weights come from the one parent, so that a test which would see
# any relative speaks against the claim.
_WHOLE = frozenset({"finetune", "quantized", "adapter"})


def judge(
    models: Sequence[CataloguedModel],
    of: Sequence[CataloguedModel],
    declared: Declared,
    measured: Relations,
    policy: Policy,
) -> dict[int, Judged]:
    """The audited models by number, each with its claims and relatives.

    Parameters
    ----------
    models : all of the catalog
    of : the audited ones
    """
    judge_of = _Judge(models, declared, measured)
    judged = {}
    for model in of:
        relatives = tuple(judge_of.relatives(model))
        claims = tuple(judge_of.claims(model, relatives))
        undeclared = tuple(
            r for r in relatives if judge_of.undeclared(model, r) and not policy.trusts(model.name)
        )
        claims += tuple(_undeclared_claim(r) for r in undeclared)
        judged[model.number] = Judged(
            model,
            claims,
            declared.matches[model.number],
            relatives,
            undeclared,
            tuple(judge_of.compared(model)),
            tuple(judge_of.failed(model)),
        )
    return judged


def second_round(
    models: Sequence[CataloguedModel],
    of: Sequence[CataloguedModel],
    declared: Declared,
    measured: Relations,
) -> Iterator[tuple[CataloguedModel, CataloguedModel]]:
    """Pairs that would contradict a claim: a relative of the model, and the parent it claims."""
    judge_of = _Judge(models, declared, measured)
    for model in of:
        near = [r.other for r in judge_of.relatives(model) if is_relative(r) and not r.shares_only]
        for match in declared.matches[model.number]:
            for parent in match.models[:1]:
                pair = judge_of.between(model, parent)
                if isinstance(pair, PairRecord) and pair.verdict in (
                    "not comparable",
                    "inconclusive",
                ):
                    yield from ((other, parent) for other in near)


class _Judge:
    def __init__(
        self, models: Sequence[CataloguedModel], declared: Declared, measured: Relations
    ) -> None:
        self._models, self._declared, self._measured = models, declared, measured
        self._by_identity: dict[str, list[CataloguedModel]] = {}
        for model in models:
            if model.state != "vanished":
                self._by_identity.setdefault(model.identity, []).append(model)

    def between(self, a: CataloguedModel, b: CataloguedModel) -> PairRecord | str | None:
        """What was measured of two models."""
        return self._measured.between(a.identity, b.identity)

    def relatives(self, model: CataloguedModel) -> Iterator[Relative]:
        """The others that have its weights, and those that a comparison found to be related."""
        for other in self._by_identity.get(model.identity, ()):
            if other.number != model.number and model.reading.weights is not None:
                yield relative_of(model, other, None)
        for identity, pair in self._measured.of(model.identity):
            if isinstance(pair, PairRecord):
                # One of several copies stands for them: they are each other's relatives.
                for other in self._by_identity.get(identity, ())[:1]:
                    relative = relative_of(model, other, pair)
                    if is_relative(relative):
                        yield relative

    def compared(self, model: CataloguedModel) -> Iterator[str]:
        """Identities of what it was compared with."""
        for identity, pair in self._measured.of(model.identity):
            if isinstance(pair, PairRecord):
                yield identity

    def failed(self, model: CataloguedModel) -> Iterator[tuple[str, str]]:
        """Comparisons that ended in an error, as (the other model, why)."""
        for identity, why in self._measured.of(model.identity):
            if isinstance(why, str):
                for other in self._by_identity.get(identity, ())[:1]:
                    yield other.name, why

    def claims(
        self, model: CataloguedModel, relatives: Sequence[Relative]
    ) -> Iterator[ClaimRecord]:
        """What the model claims, each with its verdict."""
        matches = self._declared.matches[model.number]
        parents = len({claim.parent.casefold() for claim in model.reading.claims})
        for claim, match in zip(model.reading.claims, matches, strict=True):
            verdict, why = self._verdict(model, claim, match, relatives, parents)
            yield ClaimRecord(
                parent=claim.parent,
                relation=claim.relation,
                source=claim.source,
                line=claim.line,
                verdict=verdict,
                why=why,
                matched=match.models[0].name if match.models else None,
            )

    def undeclared(self, model: CataloguedModel, relative: Relative) -> bool:
        """Whether nothing that the two declare explains why they are related.

        Copies by digest are a rule of their own, and so are revisions of one repository. Where the
        weights are consistent with this model having come first, it has nothing to declare.
        """
        other = relative.other
        if not is_relative(relative) or relative.pair is None:
            return False
        if relative.record.arrow == "b->a" or _repository(model) == _repository(other):
            return False
        return not self._declared.related(model.number, other.number)

    def _verdict(
        self,
        model: CataloguedModel,
        claim: Claim,
        match: Match,
        relatives: Sequence[Relative],
        parents: int,
    ) -> tuple[ClaimVerdict, str]:
        if not match.models:
            return "unverifiable", match.why
        parent = match.models[0]
        if model.adapter:
            return _adapter(model, parent)
        if model.identity == parent.identity and model.reading.weights is not None:
            return "confirmed", "all weight files have the same SHA-256"
        for one, which in ((model, "the model"), (parent, "the parent")):
            if one.reading.signature is None:
                return "unverifiable", f"the weights of {which} were not read"
        pair = self.between(model, parent)
        if pair is None:
            return "unverifiable", "the two were not compared"
        if isinstance(pair, str):
            return "unverifiable", f"the comparison ended in an error: {pair}"
        relative = relative_of(model, parent, pair)
        if is_relative(relative):
            if relative.shares_only:
                return "unverifiable", f"the two are related by parts only: {pair.relation}"
            return "confirmed", _confirmed(relative)
        if pair.verdict == "independent":
            if (claim.relation or "finetune") in _WHOLE and parents == 1:
                return "contradicted", (
                    "every criterion that sees relatives in whatever basis ran on the two and "
                    f"shows nothing: {'; '.join(pair.reasons)}"
                )
            return "unverifiable", (
                "the two are independent by every criterion, but of a merge, or of one parent "
                "among several, too little may be left to be seen"
            )
        other = self._other_root(parent, relatives)
        if other is not None:
            return "contradicted", (
                f"beside {other.other.name} it is {_words(other)}, and that model is independent "
                "of the claimed parent"
            )
        return "unverifiable", f"{pair.verdict}: {'; '.join(pair.reasons) or 'no reason given'}"

    def _other_root(
        self, parent: CataloguedModel, relatives: Sequence[Relative]
    ) -> Relative | None:
        """A relative that is independent of the claimed parent."""
        for relative in relatives:
            if not is_relative(relative) or relative.shares_only:
                continue
            pair = self.between(relative.other, parent)
            if isinstance(pair, PairRecord) and pair.verdict == "independent":
                return relative
        return None


def _adapter(model: CataloguedModel, parent: CataloguedModel) -> tuple[ClaimVerdict, str]:
    misfit = next((s for s in model.reading.stumbles if s.kind in ("values", "container")), None)
    if model.reading.facts is None and misfit is not None:
        return "contradicted", f"it cannot be merged onto {parent.name}: {misfit.message}"
    if model.reading.facts is None:
        return "unverifiable", "the adapter was not merged onto the parent"
    return "unverifiable", (
        "its matrices fit the parent's shapes; on which weights of these shapes they were "
        "trained an adapter alone does not show"
    )


def _confirmed(relative: Relative) -> str:
    said = f"beside the parent it is {_words(relative)}"
    if relative.record.arrow == "b->a":
        said += "; but the weights are rather consistent with the parent having come second"
    return said


def _words(relative: Relative) -> str:
    verdict, relation = relative.record.verdict, relative.record.relation
    return f"{verdict} ({relation})" if relation else str(verdict)


def _undeclared_claim(relative: Relative) -> ClaimRecord:
    return ClaimRecord(
        parent=relative.other.name,
        relation=relative.record.relation,
        source="weights",
        verdict="undeclared relative",
        why="; ".join(relative.record.evidence),
        matched=relative.other.name,
    )


def _repository(model: CataloguedModel) -> tuple[str, str]:
    return model.store, model.name.partition("@")[0]
