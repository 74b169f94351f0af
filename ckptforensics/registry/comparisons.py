"""Compare planned pairs, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from ckptforensics.errors import one_line
from ckptforensics.jobs.processes import Job
from ckptforensics.progress import Progress, running
from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.catalog.writer import CatalogWriter, Work
from ckptforensics.registry.code import comparing_code
from ckptforensics.registry.judge import second_round
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.pairs import Declared, PlannedPair, as_pair, has_weights, plan_pairs
from ckptforensics.registry.relations import Measured, Relations, trimmed
from ckptforensics.registry.settings import codes_of
from ckptforensics.results import ComparisonDocument, PairRecord
from ckptforensics.results.comparison import Level

_MOST_MESSAGE = 400


def compare_models(
    catalog: CatalogWriter,
    models: Sequence[CataloguedModel],
    of: Sequence[CataloguedModel],
    declared: Declared,
    options: AuditOptions,
    work: Work,
    progress: Progress | None,
) -> tuple[Relations, dict[int, int]]:
    """Compare what is worth it and was not; all that is measured of pairs then, and `Plan.left`.

    First claimed parents and the nearest; then, where a claimed parent could be neither shown nor
    excluded, that parent beside what the model is a relative of.
    """
    relations = catalog.relations(codes_of(options.level))
    first = plan_pairs(
        models,
        [m.number for m in of],
        declared,
        catalog.near_sketches,
        most=options.neighbours,
    )
    _compare(catalog, first.pairs, relations, options, work, progress)
    for two in first.unsigned:
        # The catalog keeps none of this: the other may be signed the next time.
        unsigned = next(m for m in (two.a, two.b) if m.reading.signature is None)
        why = f"{unsigned.name} is near, and known by its sketch only: audit it, which signs it"
        relations.add(two.a.identity, two.b.identity, Measured(why, by_signature=True))
    second = {
        (pair.a.identity, pair.b.identity): pair
        for a, b in second_round(models, of, declared, relations)
        if (pair := as_pair(a, b)) is not None
    }
    _compare(catalog, second.values(), relations, options, work, progress)
    return relations, first.left


def _compare(
    catalog: CatalogWriter,
    pairs: Iterable[PlannedPair],
    relations: Relations,
    options: AuditOptions,
    work: Work,
    progress: Progress | None,
) -> None:
    """Compare what was not, and keep each pair as soon as its process has ended."""
    waiting = [
        p for p in pairs if relations.lacks(p.a.identity, p.b.identity, by_signature=p.by_signature)
    ]
    jobs = [_job(catalog, pair, options) for pair in waiting]
    pair_of = {job.key: pair for job, pair in zip(jobs, waiting, strict=True)}
    with running(progress, "pairs", len(jobs)) as step:
        for job in options.runner.run(jobs):
            pair = pair_of[job.key]
            a, b = pair.a.identity, pair.b.identity
            measured = compared(job)
            if isinstance(measured, PairRecord):
                measured = trimmed(measured, a, b)
            relations.add(a, b, Measured(measured, pair.by_signature))
            # What may be otherwise the next time is not kept.
            if isinstance(measured, PairRecord):
                code = comparing_code(options.level, by_signature=pair.by_signature)
                catalog.put_relation(a, b, code, measured)
            work.pairs += 1
            step(f"{pair.a.name}, {pair.b.name}")


def _job(catalog: CatalogWriter, pair: PlannedPair, options: AuditOptions) -> Job:
    models = (pair.a, pair.b)
    places = [_place(catalog, model) for model in models]
    nbytes = sum(file.bytes for model in models for file in model.reading.files)
    return Job(
        f"{pair.a.name}, {pair.b.name}",
        compare_arguments(places, options.level, options.share, offline=options.offline),
        options.share,
        reserved=options.share + nbytes,
        seconds=options.seconds_for(nbytes),
        # Signatures go along; models must be there.
        sends=[Path(p) for p, m in zip(places, models, strict=True) if not has_weights(m)],
        needs=[p for p, m in zip(places, models, strict=True) if has_weights(m) and _is_local(p)],
    )


def compare_arguments(
    places: Sequence[str],
    level: Level,
    memory: int,
    *,
    offline: bool,
    config: Path | None = None,
    base: Path | None = None,
) -> list[str]:
    """What `ckpt` is told to compare two models, of whose answer `compared` makes the pair."""
    flags = ["--format=json", "--no-progress", "--quiet", f"--memory={memory}"]
    if level != "default":
        flags.append(f"--{level}")
    if offline:
        flags.append("--offline")
    flags += [f"--{name}={path}" for name, path in (("config", config), ("base", base)) if path]
    return ["compare", *flags, "--", *places]


def compared(job: Job) -> PairRecord | str:
    """What a process of `compare_arguments` says of its pair, or why it says nothing."""
    if job.code == 0:
        try:
            return ComparisonDocument.model_validate_json(job.printed()).pairs[0]
        except ValidationError:
            return "what it printed is no comparison"
    if job.overdue:
        return f"it took more than {job.seconds:g} seconds"
    return one_line(job.complaint().removeprefix("ckpt: error: "))[:_MOST_MESSAGE]


def _is_local(place: str) -> bool:
    """Whether a model is a directory or a file rather than on the Hub or at a URL."""
    return os.path.isabs(place)


def _place(catalog: CatalogWriter, model: CataloguedModel) -> str:
    """The model itself, or its signature where the model is not at hand."""
    if has_weights(model):
        assert model.opens is not None
        return model.opens
    assert model.reading.signature is not None
    return str(catalog.array(model.reading.signature.sha256))
