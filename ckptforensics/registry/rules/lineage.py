"""Rules on where a model comes from: what it claims, beside what its weights show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckptforensics.registry.claims.licences import compare_licences, family_of
from ckptforensics.registry.judged import SAME, Judged, Relative, World, is_relative
from ckptforensics.registry.reading import Claim, Tokenizer
from ckptforensics.registry.rules.rule import Draft, file_of
from ckptforensics.results import PairRecord

# Relations that fit what is claimed; what is not listed fits anything.
_FITTING = {
    "finetune": {"finetune", "adapter", "merge", "upcycled"},
    "adapter": {"adapter", "finetune"},
    "quantized": {"quantized"},
    # Two models alone do not show that one is a mixture of the other and a third.
    "merge": {"merge", "finetune", "adapter"},
}
# Share of the common tokens of a sample that must have other ids for a vocabulary to be another.
_REMAPPED = 0.01
_QUOTED = 4


def wrong_parent(judged: Judged, world: World) -> Iterator[Draft]:
    """A claim that the weights contradict."""
    for claim in judged.claims:
        if claim.verdict == "contradicted":
            yield Draft(
                about=f"{claim.source}:{claim.parent}",
                message=f"it claims {claim.parent} as its parent, and its weights contradict that",
                file=file_of(claim.source),
                line=claim.line,
                evidence=(claim.why,),
            )


def wrong_relation(judged: Judged, world: World) -> Iterator[Draft]:
    """A parent that is confirmed, by another way than the one that is claimed."""
    for claim, relative in _claimed(judged):
        relation, verdict = relative.record.relation, relative.record.verdict
        fitting = _FITTING.get(claim.relation or "")
        if fitting is None:
            continue
        if relation is not None and relation not in fitting:
            shown = f"{verdict} ({relation})"
        elif relation is None and verdict in SAME and claim.relation in ("finetune", "merge"):
            shown = f"{verdict}: nothing was trained"
        else:
            continue
        yield Draft(
            about=f"{claim.source}:{claim.parent}",
            message=f"it claims to be '{claim.relation}' of {claim.parent}, and its weights show "
            f"{shown}",
            file=file_of(claim.source),
            line=claim.line,
            evidence=relative.record.evidence,
        )


def undeclared_parent(judged: Judged, world: World) -> Iterator[Draft]:
    """Relatives that nothing declared explains; hidden copies have a rule of their own."""
    open_ones = [r for r in judged.undeclared if not r.hidden and not r.same_function]
    if open_ones:
        yield Draft(
            about="undeclared",
            message=f"its weights are related to {_names(open_ones)}, which nothing declares",
            evidence=_evidence(open_ones),
        )


def hidden_copy(judged: Judged, world: World) -> Iterator[Draft]:
    """Relatives that were found only after a change of basis or of order was undone."""
    hidden = [r for r in judged.undeclared if r.hidden]
    if hidden:
        yield Draft(
            about="hidden",
            message=f"it is {_names(hidden)} in another basis or order of units, which nothing "
            "declares",
            evidence=_evidence(hidden),
        )


def same_weights(judged: Judged, world: World) -> Iterator[Draft]:
    """Other names for the same weights, in the same files or in another container."""
    model = judged.model
    if world.policy.trusts(model.name):
        return
    same = [
        r
        for r in judged.relatives
        if r.same_function
        and r.other.name.partition("@")[0] != model.name.partition("@")[0]
        and not world.declared.related(model.number, r.other.number)
    ]
    if same:
        yield Draft(
            about="same weights",
            message=f"its weights are those of {_names(same)}, which nothing declares",
            evidence=_evidence(same),
        )


def looser_licence(judged: Judged, world: World) -> Iterator[Draft]:
    """A licence with fewer conditions than that of a model it was measured to come from.

    Undeclared relatives are asked about too: what came second has to keep the conditions.
    """
    own = judged.model.reading.licence
    if own is None:
        return
    ancestors = {r.other.number: r for r in [*_ancestors(judged), *judged.undeclared]}
    groups: dict[tuple[str, str], list[Relative]] = {}
    for relative in ancestors.values():
        theirs = relative.other.reading.licence
        if theirs is not None:
            answer: str = compare_licences(own.id, theirs.id)
            groups.setdefault((answer, theirs.id), []).append(relative)
    for (answer, licence), relatives in groups.items():
        if answer not in ("conflict", "ask"):
            continue
        kinds = [getattr(family_of(one), "name", "not in the table") for one in (own.id, licence)]
        word = "has fewer conditions than" if answer == "conflict" else "may not agree with"
        yield Draft(
            about=f"licence:{licence}",
            message=f"{answer}: its licence {own.id} {word} {licence} of {_names(relatives)}, to "
            "which its weights lead",
            file=file_of(own.file),
            line=own.line,
            evidence=(
                f"{own.id}: {kinds[0]}; {licence}: {kinds[1]}; this is no legal advice",
                *_evidence(relatives),
            ),
            severity=None if answer == "conflict" else "note",
        )


def other_tokenizer(judged: Judged, world: World) -> Iterator[Draft]:
    """A vocabulary or a chat template unlike that of the parent whose weights it has."""
    model = judged.model
    for relative in [*_ancestors(judged), *_copies(judged)]:
        other = relative.other
        if model.number in world.declared.ancestors(other.number):
            continue  # what was made from it is unlike it, and not the other way round
        mine, theirs = model.reading.tokenizer, other.reading.tokenizer
        moved = _remapped(mine, theirs)
        if mine is not None and moved:
            yield Draft(
                about=f"tokenizer:{other.name}",
                message=f"tokens have other ids than in {other.name}, whose weights it shares",
                file=mine.file,
                evidence=(f"of the tokens sampled: {'; '.join(moved)}",),
            )
        own, parents = _templates(model), _templates(other)
        if own and parents and own.isdisjoint(parents):
            first = model.reading.templates[0]
            yield Draft(
                about=f"template:{other.name}",
                message=f"its chat template is none of those of {other.name}, whose weights it "
                "shares",
                file=file_of(first.file),
                line=first.line,
                evidence=(f"SHA-256 of the template: {first.sha256}",),
                severity="note",
            )


def claim_not_followed(judged: Judged, world: World) -> Iterator[Draft]:
    """A claim that names itself, a circle, or several models."""
    model = judged.model
    if model.state == "vanished":
        return
    for claim, match in zip(model.reading.claims, judged.matches, strict=True):
        if "itself" in match.why or "may mean" in match.why:
            yield _unfollowed(claim, match.why)
    if model.number in world.declared.ancestors(model.number) and model.reading.claims:
        yield _unfollowed(
            model.reading.claims[0], "following the parents leads back to the model itself"
        )


def _unfollowed(claim: Claim, why: str) -> Draft:
    return Draft(
        about=f"{claim.source}:{claim.parent}",
        message=f"the claimed parent {claim.parent} cannot be followed: {why}",
        file=file_of(claim.source),
        line=claim.line,
    )


def _claimed(judged: Judged) -> Iterator[tuple[Claim, Relative]]:
    """Claims whose parent is a relative, with it."""
    by_identity = {r.other.identity: r for r in reversed(judged.relatives)}
    for claim, match in zip(judged.model.reading.claims, judged.matches, strict=True):
        for parent in match.models[:1]:
            relative = by_identity.get(parent.identity)
            if relative is not None and not relative.shares_only:
                # Of several copies the claimed one is meant, with its card.
                record = relative.record.model_copy(update={"name": parent.name})
                yield claim, replace(relative, other=parent, record=record)


def _ancestors(judged: Judged) -> list[Relative]:
    """Relatives that it comes from: as it declares and weights confirm, or as weights show."""
    declared = {r.other.number: r for _, r in _claimed(judged)}
    shown = {
        r.other.number: r
        for r in judged.relatives
        if r.record.arrow == "a->b" and is_relative(r) and not r.shares_only
    }
    return list((declared | shown).values())


def _copies(judged: Judged) -> list[Relative]:
    """Relatives with the same weights or the same function that are not ancestors already."""
    known = {r.other.number for r in _ancestors(judged)}
    return [r for r in judged.relatives if r.record.verdict in SAME and r.other.number not in known]


def _remapped(mine: Tokenizer | None, theirs: Tokenizer | None) -> list[str]:
    """Tokens of both samples that have other ids, a few of them in words."""
    if mine is None or theirs is None or mine.sha256 == theirs.sha256:
        return []
    common = mine.sample.keys() & theirs.sample.keys()
    moved = sorted(t for t in common if mine.sample[t] != theirs.sample[t])
    if len(moved) <= _REMAPPED * len(common):
        return []
    words = [f"{t!r} is {mine.sample[t]}, was {theirs.sample[t]}" for t in moved[:_QUOTED]]
    return [*words, f"{len(moved)} of {len(common)} differ"]


def _templates(model: object) -> set[str]:
    reading = model.reading  # type: ignore[attr-defined]
    return {template.sha256 for template in reading.templates}


def _names(relatives: list[Relative]) -> str:
    names = [r.other.name for r in relatives]
    more = f" and {len(names) - _QUOTED} more" if len(names) > _QUOTED else ""
    return ", ".join(names[:_QUOTED]) + more


def _evidence(relatives: list[Relative]) -> tuple[str, ...]:
    return tuple(
        f"{r.other.name}: {_verdict(r)}: {'; '.join(r.record.evidence)}" for r in relatives
    )


def _verdict(relative: Relative) -> str:
    relation = f" ({relative.record.relation})" if relative.record.relation else ""
    pair = relative.pair
    strongest = "" if pair is None else _strongest(pair)
    return f"{relative.record.verdict}{relation}{strongest}"


def _strongest(pair: PairRecord) -> str:
    p = [t.log10_p for t in pair.tests_run if t.log10_p is not None]
    return f", p below 10^{min(p):.0f}" if p and min(p) <= -1 else ""
