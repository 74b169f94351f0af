"""Lay claims beside measurements: confirmed, contradicted, undeclared, or unverifiable and why.

`contradicted` needs positive evidence: a test that would have shown the claimed parent, or another
root. What was not measured is never counted against a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
    relatives_of = {m.number: tuple(judge_of.relatives(m)) for m in models}
    claims_of = {m.number: tuple(judge_of.claims(m, relatives_of[m.number])) for m in models}
    standing = _standing(models, declared, claims_of, policy)
    judged = {}
    for model in of:
        if model.state == "vanished":  # nothing is said of what is not there
            judged[model.number] = Judged(model)
            continue
        relatives, claims = relatives_of[model.number], claims_of[model.number]
        undeclared = tuple(
            r
            for r in relatives
            if judge_of.undeclared(model, r)
            and not policy.trusts(model.name)
            and not judge_of.excused(model, r, claims, standing)
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
        self._declared, self._measured = declared, measured
        self._first: dict[str, int] = {}
        for model in models:
            before = self._first.get(model.identity, model.first_run)
            self._first[model.identity] = min(before, model.first_run)
        named = Counter(
            parent.number
            for matches in declared.matches.values()
            for match in matches
            for parent in match.models
        )
        self._by_identity: dict[str, list[CataloguedModel]] = {}
        # Of several copies the one that most name as their parent stands for all.
        for model in sorted(models, key=lambda m: (-named[m.number], m.name)):
            if model.state != "vanished":
                self._by_identity.setdefault(model.identity, []).append(model)

    def between(self, a: CataloguedModel, b: CataloguedModel) -> PairRecord | str | None:
        """What was measured of two models."""
        return self._measured.between(a.identity, b.identity)

    def relatives(self, model: CataloguedModel) -> Iterator[Relative]:
        """The others that have its weights, and those that a comparison found to be related."""
        for other in self._by_identity.get(model.identity, ()):
            # What nobody could read as a model has no weights that another could have.
            read = model.reading.facts is not None and model.reading.weights is not None
            if other.number != model.number and read:
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
            verdict, why = self._careful_verdict(model, claim, match, relatives, parents)
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

    def excused(
        self,
        model: CataloguedModel,
        relative: Relative,
        claims: Sequence[ClaimRecord],
        standing: frozenset[int],
    ) -> bool:
        """Whether it is the other model that has something to declare, and this one has not.

        Where the weights do not show who came first, that is the one that this catalog has known
        for longer, and one with standing beside one without: a model that another's confirmed claim
        names, or one whose own confirmed parent is not known to be independent of the other.
        Without such a difference both have something to declare.
        """
        other = relative.other
        if relative.record.arrow == "a->b":
            return False
        # Of two that both have standing, or none, the one that was catalogued first is excused.
        senior = self._first[model.identity] < self._first[other.identity]
        if senior and (model.number in standing or other.number not in standing):
            return True
        if other.number in standing:
            return False
        if model.number not in standing:
            return False
        matches = self._declared.matches[model.number]
        parents = [
            match.models[0]
            for claim, match in zip(claims, matches, strict=False)
            if claim.verdict == "confirmed" and match.models
        ]
        pairs = [self.between(parent, other) for parent in parents]
        return not pairs or any(
            not isinstance(pair, PairRecord) or is_relative(relative_of(other, parent, pair))
            for parent, pair in zip(parents, pairs, strict=True)
        )

    def _careful_verdict(
        self,
        model: CataloguedModel,
        claim: Claim,
        match: Match,
        relatives: Sequence[Relative],
        parents: int,
    ) -> tuple[ClaimVerdict, str]:
        """The verdict; a parent that only the end of its name tells is contradicted by nothing."""
        verdict, why = self._verdict(model, claim, match, relatives, parents)
        if verdict == "contradicted" and not match.whole:
            return "unverifiable", (
                f"only the end of its name says that {match.models[0].name} is meant, and it may "
                f"be another; of that one: {why}"
            )
        return verdict, why

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


def _standing(
    models: Sequence[CataloguedModel],
    declared: Declared,
    claims: Mapping[int, Sequence[ClaimRecord]],
    policy: Policy,
) -> frozenset[int]:
    """Trusted roots, models with a confirmed claim, and those that one names as the parent."""
    found = {model.number for model in models if policy.trusts(model.name)}
    for model in models:
        matches = declared.matches[model.number]
        for claim, match in zip(claims[model.number], matches, strict=True):
            if claim.verdict == "confirmed":
                found |= {model.number, *(parent.number for parent in match.models)}
    return frozenset(found)


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
