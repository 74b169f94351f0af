"""Audit the models of a registry: list, read, compare, judge.

Everything that is measured is in the catalog as soon as it is, under digests of what it was
measured of and by, so that a run that is killed goes on where it stopped and the next night reads
only what is new. Verdicts and findings are made afresh from the catalog every time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ckptforensics.progress import Progress
from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.catalog.writer import Work, open_writer
from ckptforensics.registry.comparisons import compare_models
from ckptforensics.registry.found import Listing
from ckptforensics.registry.judge import judge
from ckptforensics.registry.judged import Judged, World
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.reads import read_models
from ckptforensics.registry.rules.table import apply_rules, rule_records
from ckptforensics.registry.stores.listing import list_models
from ckptforensics.results.audit import (
    AuditDocument,
    AuditedFile,
    AuditedModel,
    Coverage,
)
from ckptforensics.results.records import Skipped
from ckptforensics.version import __version__


def audit(
    sources: Sequence[str], options: AuditOptions, *, progress: Progress | None = None
) -> AuditDocument:
    """Audit all models of the sources, and put what is found into the catalog.

    Parameters
    ----------
    sources : as `stores.listing.list_models` takes them
    progress : told of each model and each pair

    Raises
    ------
    UsageError
        if a source does not exist, or another process writes to the catalog.
    CkptError
        if the catalog cannot be read or written. A model that cannot be read is a finding.
    """
    began = time.monotonic()
    listing = list_models(sources, offline=options.offline)
    with open_writer(options.catalog) as catalog:
        run = catalog.begin_run(sources)
        work = Work()
        reused = read_models(catalog, listing, run, options, work, progress)
        catalog.mark_vanished(run)
        models, own = catalog.models(), catalog.models(run)
        declared = Declared(models)
        relations, left = compare_models(catalog, models, own, declared, options, work, progress)
        judged = judge(models, own, declared, relations, options.policy)
        world = World(judged, declared, options.policy)
        unchecked = {m.number for m in own if m.state != "signed" or judged[m.number].failed}
        before = catalog.findings_of(unchecked)
        findings = apply_rules(world, options.known, options.today, before)
        work.seconds = time.monotonic() - began
        catalog.end_run(run, findings, unchecked, work)
        return AuditDocument(
            tool_version=__version__,
            coverage=_coverage(listing, judged, reused, left),
            models=tuple(_audited(one, left.get(number, 0)) for number, one in judged.items()),
            findings=tuple(finding for _, finding in findings),
            rules=rule_records(options.policy),
            runs=catalog.runs(run),
        )


@dataclass(frozen=True)
class Added:
    """Models that were looked at, how many have a sketch, and why the others have none."""

    models: int
    sketched: int
    failed: list[tuple[str, str]]


def add_models(
    sources: Sequence[str], options: AuditOptions, *, progress: Progress | None = None
) -> Added:
    """Put all models of the sources into the catalog, to be found; errors as `audit`."""
    listing = list_models(sources, offline=options.offline)
    with open_writer(options.catalog) as catalog:
        # Not a run over the same sources as an audit's: what it does not see has not vanished.
        run = catalog.begin_run(("catalog add", *sources))
        work = Work()
        read_models(catalog, listing, run, options, work, progress)
        models = catalog.models(run)
        catalog.end_run(run, (), (), work)
    failed = [(what, why) for what, why in listing.not_read]
    failed += [(m.name, _why_not(m)) for m in models if m.sketch is None]
    return Added(len(models), sum(m.sketch is not None for m in models), failed)


def _why_not(model: CataloguedModel) -> str:
    stumbles = [stumble.message for stumble in model.reading.stumbles]
    return stumbles[-1] if stumbles else "it has neither token embeddings nor heads"


def _coverage(
    listing: Listing, judged: dict[int, Judged], reused: set[str], left: dict[int, int]
) -> Coverage:
    models = [one.model for one in judged.values()]
    states = [model.state for model in models]
    compared = {
        frozenset((one.model.identity, identity))
        for one in judged.values()
        for identity in one.compared
    }
    failed = {
        frozenset((one.model.name, name)) for one in judged.values() for name, _ in one.failed
    }
    return Coverage(
        models=len(models),
        signed=states.count("signed"),
        headers=states.count("headers"),
        unread=states.count("unread"),
        vanished=states.count("vanished"),
        reused=sum(model.place in reused for model in models),
        files=sum(len(model.reading.files) for model in models),
        bytes=sum(file.bytes for model in models for file in model.reading.files),
        pairs=len(compared),
        pairs_left=len(failed) + sum(left.values()),
        not_read=tuple(Skipped(what=what, reason=why) for what, why in listing.not_read),
    )


def _audited(judged: Judged, left: int) -> AuditedModel:
    model, reading = judged.model, judged.model.reading
    facts, signature = reading.facts, reading.signature
    return AuditedModel(
        name=model.name,
        source=model.store,
        path=model.path,
        state=model.state,
        files=tuple(
            AuditedFile(
                name=file.name,
                role=file.role,
                bytes=file.bytes,
                stated_sha256=_sha256_in(file.stated),
                sha256=file.sha256,
            )
            for file in reading.files
        ),
        commit=model.commit,
        licence=None if reading.licence is None else reading.licence.id,
        family=None if facts is None else facts.family,
        family_source=None if facts is None else facts.family_source,
        hidden_size=None if facts is None else facts.hidden_size,
        num_layers=None if facts is None else facts.num_layers,
        fingerprint=None if signature is None else signature.fingerprint,
        layers=() if signature is None else signature.layers,
        claims=judged.claims,
        relatives=tuple(relative.record for relative in judged.relatives),
        not_read=tuple(_not_read(judged, model, left)),
    )


def _not_read(judged: Judged, model: CataloguedModel, left: int) -> list[Skipped]:
    rows = [Skipped(what=s.file or "weights", reason=s.message) for s in model.reading.stumbles]
    rows += [Skipped(what=f"comparison with {name}", reason=why) for name, why in judged.failed]
    if left:
        reason = f"{left} more families of models have near signatures; raise --neighbours"
        rows.append(Skipped(what="comparisons", reason=reason))
    return rows


def _sha256_in(stated: str | None) -> str | None:
    kind, _, digits = (stated or "").partition(":")
    return digits if kind == "sha256" else None
