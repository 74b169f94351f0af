"""Compare models: run the tests on every pair, decide, and put all models into one tree."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.compute import buffers
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NotApplicable, UsageError
from ckptforensics.findings.cache.store import SignatureCache
from ckptforensics.lineage.changes import merges, parts, relations
from ckptforensics.lineage.configuration import differing_settings
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.hiding import what_hides
from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.correspondence.matched_layers import undone
from ckptforensics.lineage.correspondence.neurons import expert_count, unit_width
from ckptforensics.lineage.criteria import (
    assignments,
    description,
    directions,
    neurons,
    robust,
)
from ckptforensics.lineage.criteria.criterion import Criterion, Outcome, skip
from ckptforensics.lineage.criteria.equivalence import Equivalence, same_function
from ckptforensics.lineage.effort import EFFORTS, Effort
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.overflow import overflow_refused
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.tree import (
    clusters_of,
    distance_matrix,
    linkage_of,
    through_others,
    tree_of,
)
from ckptforensics.lineage.verdict import EXACT_LOG10_P, Decision, Evidence, decide
from ckptforensics.progress import Progress, Silent, running
from ckptforensics.results import (
    AlignmentRecord,
    ChangeRecord,
    ComparisonDocument,
    CriterionRecord,
    MergeRecord,
    PairRecord,
    Signature,
    holds_signature,
    load_result,
)
from ckptforensics.results.comparison import RELATIVES, Arrow, DirectionRecord, Level
from ckptforensics.sources import IsAdapter, container_by_content, is_hub_id, is_url
from ckptforensics.version import __version__

CRITERIA: tuple[Criterion, ...] = (
    *directions.CRITERIA,
    *assignments.CRITERIA,
    *neurons.CRITERIA,
    *robust.CRITERIA,
    *description.CRITERIA,
)
# Candidates among which the parents of a merged model are looked for.
_MOST_PARENTS = 5


def open_model(
    model: str | Path,
    *,
    config: str | Path | None = None,
    base: str | Path | None = None,
    offline: bool = False,
    strict: bool = False,
) -> Model:
    """A model of a comparison: what `open_checkpoint` takes, or a saved signature.

    Parameters
    ----------
    config : of the model if it has none of its own beside the weights, as `lacks_config` says
    base : what the model is merged onto if it is an adapter

    Raises
    ------
    CkptError
        as `open_checkpoint` and `load_result`.
    """
    if holds_signature(model):
        signature = load_result(model)
        assert isinstance(signature, Signature)
        return Model(str(model), None, signature=signature)
    options: dict[str, Any] = {"offline": offline, "strict": strict}
    own = config if lacks_config(model) else None
    try:
        checkpoint = open_checkpoint(model, config=own, **options)
    except IsAdapter:
        if base is None:
            raise
        own = config if lacks_config(base) else None
        checkpoint = open_checkpoint(model, config=own, base=base, **options)
    return Model(str(model), checkpoint)


def lacks_config(model: str | Path) -> bool:
    """Whether a local model has no configuration of its own: GGUF files hold theirs."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    if is_hub_id(model) or is_url(model) or container_by_content(path) == "gguf":
        return False
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
        return False
    return not (folder / "config.json").exists()


def compare(
    models: Sequence[Model | str | Path],
    *,
    level: Level = "default",
    cache: SignatureCache | None = None,
    progress: Progress | None = None,
    memory: int | None = None,
    digest: bool = False,
) -> ComparisonDocument:
    """Whether models share a training run, how they are related and what shows it.

    Parameters
    ----------
    models : two or more, opened or what `open_model` takes
    level : `fast` reads signatures alone, `default` samples neurons and layers of large models,
        `thorough` samples nothing
    cache : of signatures
    progress : told of each layer that is signed and of each test of each pair
    memory : bytes that signing a model may use, about; see `Scope`
    digest : also compute the SHA-256 of whole files

    Raises
    ------
    UsageError
        for fewer than two models.
    CkptError
        if one cannot be opened, decoded or analysed.
    """
    if len(models) < 2:
        raise UsageError("a comparison needs two models", hint="give another one")
    progress = progress or Silent()
    opened = [m if isinstance(m, Model) else open_model(m) for m in models]
    name_apart(opened)
    for model in opened:
        model.sign(cache, progress, memory)
    require_one_fit(opened)
    chosen = list(combinations(opened, 2))
    pairs: list[PairRecord] = []
    lengths: dict[tuple[str, str], float] = {}
    left: list[str] = []
    with all_cores(), buffers.reused(), overflow_refused(opened):
        steps = 1 + sum(level in test.levels for test in CRITERIA)
        with running(progress, "criteria", steps * len(chosen)) as done:
            for a, b in chosen:
                pair = Pair(a, b, level, progress, seed_of(a, b))
                record = compare_pair(pair)
                a.forget()
                b.forget()
                pairs.append(record)
                left += _entries_left_out(pair, record)
                lengths[record.a, record.b] = _length(pair, record)
                done("what changed")
        found = _merges(opened, pairs, lengths, EFFORTS[level]) if level != "fast" else ()
    pairs = through_others(pairs, lengths, [merge.model for merge in found])
    pairs = _with_merges(pairs, found)
    names = [model.name for model in opened]
    # At last: what was read is looked at for damage without another pass.
    records = [m.record(digest=digest, look=level != "fast", progress=progress) for m in opened]
    matrix = distance_matrix(names, pairs)
    return ComparisonDocument(
        tool_version=__version__,
        level=level,
        models=tuple(records),
        pairs=tuple(pairs),
        merges=found,
        matrix_deg=matrix,
        linkage=linkage_of(distance_matrix(names, pairs, drawn=True)),
        clusters=clusters_of(names, pairs),
        tree=tree_of(pairs, lengths),
        left_out=(*_left_out(level), *left),
    )


def seed_of(a: Model, b: Model) -> int:
    """The seed of every sample of a pair, from what both models weigh, in either order.

    Nobody can then prepare one model for what will be looked at of it beside another.
    """
    prints = sorted(model.signature.document.fingerprint or "" for model in (a, b))
    return int.from_bytes(hashlib.sha256("".join(prints).encode()).digest()[:7])


def compare_pair(pair: Pair) -> PairRecord:
    """All tests of one pair at its level, and what follows from them."""
    tests = [test for test in CRITERIA if pair.level in test.levels]
    found: dict[str, tuple[CriterionRecord, Outcome]] = {}
    # At last those with random orders, of which fewer do where another test shows more.
    for test in sorted(tests, key=lambda test: test in directions.CRITERIA):
        found[test.name] = _, outcome = _run(test, pair)
        if test.group == "exact" and (outcome.log10_p or 0.0) <= EXACT_LOG10_P:
            pair.shown = True
        pair.progress.step(test.name)
    records = [found[test.name][0] for test in tests]
    exact = assignments.combined([found[t.name][1] for t in tests if t.group == "exact"])
    looked = _Looked.at(pair) if pair.reads_weights else _Looked()
    evidence = Evidence(
        level=pair.level,
        tests=records,
        exact_log10_p=exact,
        identical=looked.identical,
        equivalence=looked.equivalence,
        settings=looked.settings,
        findings=(),
        map_found=(),
    )
    decision = decide(evidence)
    if decision.verdict == "independent":
        decision = decide(replace(evidence, hiding=what_hides(pair)))
    changes: tuple[ChangeRecord, ...] = ()
    alignment = AlignmentRecord(kind="none", held_out_fit=None)
    if decision.verdict in RELATIVES and pair.reads_weights:
        known = pair.once(find_alignment)
        other = decision.verdict not in ("identical", "re-parameterised")
        # First, since it looks at more layers than are sampled where some are in another order.
        changes = relations.find_changes(pair) if other else ()
        undone = () if decision.verdict == "identical" else _undone(pair)
        alignment = AlignmentRecord(kind=known.kind, held_out_fit=known.held_out_fit, found=undone)
        if decision.verdict != "identical":
            evidence = replace(evidence, map_found=undone)
            if other:
                evidence = replace(
                    evidence,
                    findings=relations.find_relation(pair),
                    shared=parts.shared_parts(pair, records),
                    equal=parts.equal_in_words(pair),
                )
            decision = decide(evidence)
    made = _record(pair, decision, alignment, records, changes)
    return made.model_copy(update=_rests_on(pair, made, looked.equivalence))


def _rests_on(
    pair: Pair, record: PairRecord, equivalence: Equivalence
) -> dict[str, tuple[str, ...]]:
    """What of the weights of relatives was compared, and what was not, with its reason."""
    if record.verdict not in RELATIVES:
        return {}
    if not pair.reads_weights:
        return {"not_compared": ("the weights: only signatures were looked at",)}
    compared, missing = list(equivalence.compared), list(equivalence.not_compared)
    if record.changes:
        compared.append(f"{len(record.changes):,} tensors entry by entry")
        missing += relations.not_compared(pair)
    return {"compared": tuple(compared), "not_compared": tuple(missing)}


@dataclass(frozen=True)
class _Looked:
    """Whether the weights are the same, or the same but for their spelling and basis."""

    identical: bool = False
    equivalence: Equivalence = field(default_factory=lambda: Equivalence(False, ""))
    settings: tuple[str, ...] = ()

    @classmethod
    def at(cls, pair: Pair) -> _Looked:
        if relations.identical(pair):
            differ, unknown = differing_settings(pair)
            compared = ("every byte of every tensor",)
            told = tuple(f"the configuration's {words}" for words in unknown)
            found = Equivalence(not differ and not unknown, "", compared, told)
            return cls(identical=True, equivalence=found, settings=differ)
        try:
            settings = differing_settings(pair, one_function=False)[0]
        except NotApplicable:
            settings = ()
        try:
            return cls(equivalence=same_function(pair), settings=settings)
        except NotApplicable as problem:
            return cls(equivalence=Equivalence(False, problem.message), settings=settings)


def _undone(pair: Pair) -> tuple[str, ...]:
    """What was undone to bring A into B's basis, as far as the layers can be compared."""
    try:
        return undone(pair)
    except NotApplicable:
        return pair.once(find_alignment).found


def _run(test: Criterion, pair: Pair) -> tuple[CriterionRecord, Outcome]:
    before = sum(model.bytes_read for model in pair.models)
    begun = time.perf_counter()
    if test.needs == "weights" and not pair.has_weights:
        outcome = skip("a saved signature has no weights")
    else:
        try:
            outcome = test.run(pair)
        except NotApplicable as problem:
            outcome = skip(problem.message)
    record = CriterionRecord(
        name=test.name,
        group=test.group,
        statistic=outcome.statistic,
        log10_p=outcome.log10_p,
        floor=outcome.floor,
        invariant_to=test.invariant_to,
        seconds=time.perf_counter() - begun,
        bytes_read=sum(model.bytes_read for model in pair.models) - before,
        skipped=outcome.skipped,
        null=test.null,
        profile=outcome.profile,
        note=outcome.note,
        scale=test.scale,
        limits=test.limits,
    )
    return record, outcome


def _record(
    pair: Pair,
    decision: Decision,
    alignment: AlignmentRecord,
    tests: Sequence[CriterionRecord],
    changes: tuple[ChangeRecord, ...],
) -> PairRecord:
    angles = directions.angles(pair)
    nearest = directions.distance(pair)
    return PairRecord(
        a=pair.a.name,
        b=pair.b.name,
        verdict=decision.verdict,
        relation=decision.relation,
        direction=DirectionRecord.of_weights(decision.direction, decision.why),
        distance_deg=None if nearest is None else nearest[0],
        layer=None if nearest is None else nearest[1],
        angles_deg=angles,
        layer_map=pair.once(map_layers),
        alignment=alignment,
        tests=tuple(tests),
        changes=changes,
        reasons=decision.reasons,
        otherwise=decision.otherwise,
    )


def require_one_fit(models: Sequence[Model]) -> None:
    """UsageError where saved signatures were made in different ways."""
    made = {(s.signature.document.fit, str(s.signature.document.fit_options)): s for s in models}
    if len(made) > 1:
        one, other = list(made.values())[:2]
        raise UsageError(
            f"{one.name} is signed with --fit {one.signature.document.fit} and {other.name} with "
            f"--fit {other.signature.document.fit}, whose directions differ",
            hint="sign both in the same way",
        )


def name_apart(models: Sequence[Model]) -> None:
    """Give a model that is there twice a name of its own."""
    seen: dict[str, int] = {}
    for model in models:
        seen[model.name] = seen.get(model.name, 0) + 1
        if seen[model.name] > 1:
            model.name = f"{model.name} ({seen[model.name]})"


def _length(pair: Pair, record: PairRecord) -> float:
    """How far two models are apart: mean squared relative change, and one for each structure."""
    if record.verdict in ("identical", "re-parameterised"):
        return 0.0
    changes = [min(change.relative, 1.0) ** 2 for change in record.changes]
    return _structure(pair, record) + (sum(changes) / len(changes) if changes else 1.0)


def _structure(pair: Pair, record: PairRecord) -> int:
    """In how many ways the tensors of two models do not correspond: depth, width, experts."""
    if not pair.reads_weights:
        return 0
    depth = record.relation == "depth-changed" or not pair.same_depth
    experts, units = (
        [count(model, model.layers[0]) for model in pair.models]
        for count in (expert_count, unit_width)
    )
    return depth + (not pair.same_width or units[0] != units[1]) + (experts[0] != experts[1])


def _merges(
    models: Sequence[Model],
    pairs: Sequence[PairRecord],
    lengths: dict[tuple[str, str], float],
    effort: Effort,
) -> tuple[MergeRecord, ...]:
    """Models that are mixtures of others of the same comparison."""
    found = []
    for model in models:
        near = sorted(
            (lengths[pair.a, pair.b], pair.b if pair.a == model.name else pair.a)
            for pair in pairs
            if model.name in (pair.a, pair.b) and pair.verdict in ("derived", "related")
        )
        names = [name for _, name in near[:_MOST_PARENTS]]
        if len(names) < 2:
            continue
        candidates = [other for other in models if other.name in names]
        merge = merges.find_merge(model, candidates, effort)
        if merge is not None:
            found.append(merge)
    return tuple(found)


def _with_merges(pairs: Sequence[PairRecord], found: Sequence[MergeRecord]) -> list[PairRecord]:
    """The pairs of a merged model and its parents, with what the mixture shows."""
    parents = {(m.model, parent): m for m in found for parent in m.parents}
    told = []
    for pair in pairs:
        merge = parents.get((pair.a, pair.b)) or parents.get((pair.b, pair.a))
        if merge is not None:
            words = ", ".join(
                f"{weight:.2f} {parent}"
                for weight, parent in zip(merge.weights, merge.parents, strict=True)
            )
            reason = f"{merge.model} is a mixture ({merge.method}) of {words}"
            if not merge.only:
                reason += f", but {merges.EXTRAPOLATION}"
            changed: dict[str, Any] = {"reasons": (*pair.reasons, reason)}
            if merge.only or pair.relation != "adapter":
                changed |= {
                    "verdict": "derived",
                    "relation": "merge",
                    "direction": _of_mixture(merge, pair),
                    "otherwise": (),
                }
            pair = pair.model_copy(update=changed)
        told.append(pair)
    return told


def _of_mixture(merge: MergeRecord, pair: PairRecord) -> DirectionRecord:
    """Parents come first, unless one of them may be the mixture."""
    if not merge.only:
        return DirectionRecord.of_weights("unknown", merges.EXTRAPOLATION)
    arrow: Arrow = "b->a" if merge.model == pair.a else "a->b"
    return DirectionRecord.of_weights(arrow, merges.FORGED)


def _entries_left_out(pair: Pair, record: PairRecord) -> list[str]:
    """What of the weights of two relatives was not compared entry by entry, in words."""
    if not record.changes:
        return []
    words = relations.left_out(pair)
    return [] if words is None else [f"{record.a} and {record.b}: {words}"]


def _left_out(level: Level) -> tuple[str, ...]:
    """What a level does not look at, in words."""
    words = [
        f"'{test.name}' runs with --thorough"
        if "thorough" in test.levels and level == "default"
        else f"'{test.name}' is left out by --fast"
        for test in CRITERIA
        if level not in test.levels
    ]
    if level == "fast":
        words.append("--fast looks at signatures alone: copies in another basis are not seen")
    if level == "default":
        words.append("neurons are sampled, and layers of large models")
    return tuple(words)
