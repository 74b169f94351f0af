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
from ckptforensics.registry.conclusion import conclude
from ckptforensics.registry.judge import judge
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.reads import read_models
from ckptforensics.registry.settings import Left, Settings
from ckptforensics.registry.stores.listing import list_models
from ckptforensics.results.audit import AuditDocument
from ckptforensics.results.records import Skipped


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
        settings = Settings.of(options)
        run = catalog.begin_run(sources, settings)
        work = Work()
        reused = read_models(catalog, listing, run, options, work, progress)
        catalog.mark_vanished(run)
        models, own = catalog.models(), catalog.models(run)
        declared = Declared(models)
        relations, near = compare_models(catalog, models, own, declared, options, work, progress)
        left = Left(
            reused=frozenset(reused),
            near={model.place: near[model.number] for model in models if model.number in near},
            failed=tuple(relations.failed()),
            not_read=tuple(Skipped(what=what, reason=why) for what, why in listing.not_read),
        )
        judged = judge(models, own, declared, relations, settings.policy)
        found = conclude(judged, declared, settings, left, catalog.findings_of)
        work.seconds = time.monotonic() - began
        catalog.end_run(run, found.findings, found.unchecked, work, left)
        return found.document(catalog.runs(run))


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
