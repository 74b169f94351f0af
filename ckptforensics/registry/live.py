"""The document of an audit, made again from the catalog as it is now.

After an audit has ended it is what the audit wrote. While one runs, models are in it as soon as
they are catalogued, and the document says that it is not whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.catalog.reader import Audited, CatalogReader
from ckptforensics.registry.conclusion import Conclusion, conclude
from ckptforensics.registry.judge import judge
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.relations import CHANGES_KEPT, Measured
from ckptforensics.registry.rules.table import in_order
from ckptforensics.registry.settings import Left, Settings, codes_of
from ckptforensics.results.audit import AuditDocument, AuditRun
from ckptforensics.results.comparison import ComparisonDocument, Level, TreeEdge
from ckptforensics.results.records import ModelRecord, Skipped


@dataclass(frozen=True)
class LiveAudit:
    """An audit as the catalog has it.

    Attributes
    ----------
    audited : its runs, and what they go by
    level : of its comparisons
    numbers : of its models in the catalog, in the order of the document
    document : of all of it
    """

    audited: Audited
    level: Level
    conclusion: Conclusion
    runs: tuple[AuditRun, ...]
    numbers: tuple[int, ...]
    document: AuditDocument

    def part(self, of: Collection[int], findings: Iterable[str] | None = None) -> AuditDocument:
        """The document of some models by their numbers, and of these findings on them."""
        return self.conclusion.document(
            self.runs, of=of, findings=findings, tool_version=self.audited.tool_version
        )

    def comparison(self, one: int, other: int) -> ComparisonDocument | None:
        """What `compare` said of two of its models; None where it did not find them related."""
        of = self.conclusion.judged[one]
        relative = next((r for r in of.relatives if r.other.number == other), None)
        if relative is None or relative.pair is None:
            return None
        models = sorted((of.model, relative.other), key=lambda model: model.identity)
        a, b = (model.name for model in models)
        pair = relative.pair.model_copy(update={"a": a, "b": b})
        tree = TreeEdge(
            a=a,
            b=b,
            directed=pair.direction.arrow != "unknown",
            relation=pair.relation,
            length=pair.distance_deg,
        )
        if pair.direction.arrow == "b->a":
            tree = tree.model_copy(update={"a": b, "b": a})
        return ComparisonDocument(
            tool_version=self.audited.tool_version,
            level=self.level,
            models=tuple(_record(model) for model in models),
            pairs=(pair,),
            matrix_deg=((0.0, pair.distance_deg), (pair.distance_deg, 0.0)),
            clusters=((a, b),),
            tree=(tree,),
            left_out=(f"of the changed tensors all but the {CHANGES_KEPT} most changed",),
        )


def live_audit(catalog: CatalogReader, audited: Audited) -> LiveAudit:
    """What the catalog has of an audit; one of `CatalogReader.audits`."""
    settings = audited.settings or Settings(level="default", codes=codes_of("default"))
    left = audited.left or Left()
    models, own = catalog.models(), catalog.models(audited.run)
    declared = Declared(models)
    relations = catalog.relations(settings.codes)
    for a, b, by_signature, why in left.failed:
        relations.add(a, b, Measured(why, by_signature))
    judged = judge(models, own, declared, relations, settings.policy)
    left = left.model_copy(update={"not_read": (*left.not_read, *_unfinished(audited))})
    if audited.settings is not None:
        found = conclude(judged, declared, settings, left, catalog.findings_of)
    else:
        found = Conclusion(judged, in_order(catalog.findings_of(judged)), (), left)
    runs = catalog.runs(audited.run)
    document = found.document(runs, tool_version=audited.tool_version)
    return LiveAudit(audited, settings.level, found, runs, tuple(judged), document)


def _record(model: CataloguedModel) -> ModelRecord:
    """The model as far as its headers were kept; weights that were compared had some."""
    facts = model.reading.facts
    assert facts is not None
    return ModelRecord(
        path=model.name,
        family=facts.family,
        family_source=facts.family_source,
        hidden_size=facts.hidden_size,
        num_layers=facts.num_layers,
        files=(),
        commit=model.commit,
        notes=facts.notes,
        damage=model.reading.damage,
    )


def _unfinished(audited: Audited) -> list[Skipped]:
    """Why the document is not that of a whole audit."""
    rows = []
    if audited.settings is None:
        rows.append(
            Skipped(
                what="findings of this version",
                reason="these models were added by 'ckpt catalog add', or audited by another "
                "version: 'ckpt audit' judges them",
            )
        )
    if audited.ended is None:
        rows.append(
            Skipped(
                what="the rest of the audit",
                reason=f"run {audited.run} has not ended: models may be missing, and comparisons",
            )
        )
    return rows
