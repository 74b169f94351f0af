"""The document of an audit, made again from the catalog as it is now.

After an audit has ended it is what the audit wrote. While one runs, models are in it as soon as
they are catalogued, and the document says that it is not whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ckptforensics.registry.catalog.reader import Audited, CatalogReader
from ckptforensics.registry.conclusion import Conclusion, conclude
from ckptforensics.registry.judge import judge
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.relations import Measured
from ckptforensics.registry.settings import Left, Settings, codes_of
from ckptforensics.results.audit import SEVERITIES, AuditDocument, AuditRun
from ckptforensics.results.records import Skipped


@dataclass(frozen=True)
class LiveAudit:
    """An audit as the catalog has it.

    Attributes
    ----------
    audited : its runs, and what they go by
    numbers : of its models in the catalog, in the order of the document
    document : of all of it
    """

    audited: Audited
    conclusion: Conclusion
    runs: tuple[AuditRun, ...]
    numbers: tuple[int, ...]
    document: AuditDocument

    def part(self, of: Collection[int], findings: Iterable[str] | None = None) -> AuditDocument:
        """The document of some models by their numbers, and of these findings on them."""
        return self.conclusion.document(
            self.runs, of=of, findings=findings, tool_version=self.audited.tool_version
        )


def live_audit(catalog: CatalogReader, audited: Audited) -> LiveAudit:
    """What the catalog has of an audit; one of `CatalogReader.audits`."""
    settings = audited.settings or Settings(codes=codes_of("default"))
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
        kept = sorted(
            catalog.findings_of(judged),
            key=lambda row: (
                SEVERITIES.index(row[1].severity),
                row[1].rule,
                row[1].model,
                row[1].id,
            ),
        )
        found = Conclusion(judged, kept, (), left)
    runs = catalog.runs(audited.run)
    document = found.document(runs, tool_version=audited.tool_version)
    return LiveAudit(audited, found, runs, tuple(judged), document)


def _unfinished(audited: Audited) -> list[Skipped]:
    """Why the document is not that of a whole audit."""
    rows = []
    if audited.settings is None:
        rows.append(
            Skipped(
                what="findings of this version",
                reason="these models were added by 'ckpt catalog add', or audited by an earlier "
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
