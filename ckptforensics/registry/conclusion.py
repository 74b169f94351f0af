"""What an audit concludes of its models, and its document, of all of them or of some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptforensics.registry.judged import Judged, World
from ckptforensics.registry.pairs import Declared
from ckptforensics.registry.rules.table import apply_rules, rule_records
from ckptforensics.registry.settings import Left, Settings
from ckptforensics.results.audit import (
    AuditDocument,
    AuditedFile,
    AuditedModel,
    AuditRun,
    Coverage,
    FindingRecord,
    RuleRecord,
)
from ckptforensics.results.records import Skipped
from ckptforensics.version import __version__


@dataclass(frozen=True)
class Conclusion:
    """What an audit concludes.

    Attributes
    ----------
    judged : its models by number, in the order of the document
    findings : each with its model's number, None for those of the policy
    rules : those that were applied
    left : what is in no table
    """

    judged: Mapping[int, Judged]
    findings: Sequence[tuple[int | None, FindingRecord]]
    rules: tuple[RuleRecord, ...]
    left: Left

    @property
    def unchecked(self) -> set[int]:
        """Numbers of models of which less was read than findings before rest on."""
        return unchecked(self.judged)

    def document(
        self,
        runs: tuple[AuditRun, ...],
        *,
        of: Collection[int] | None = None,
        findings: Iterable[str] | None = None,
        tool_version: str = __version__,
    ) -> AuditDocument:
        """The audit's document, or that of some of its models: its coverage is of them then.

        Parameters
        ----------
        of : numbers of the models; None for all, and the policy's own findings
        findings : identifiers of the findings that are wanted; None for all of these models
        """
        judged = self.judged if of is None else {n: self.judged[n] for n in self.judged if n in of}
        wanted = None if findings is None else set(findings)
        return AuditDocument(
            tool_version=tool_version,
            coverage=_coverage(judged, self.left, whole=of is None),
            models=tuple(_audited(one, self.left) for one in judged.values()),
            findings=tuple(
                finding
                for number, finding in self.findings
                if (of is None or number in judged or (number is None and wanted is not None))
                and (wanted is None or finding.id in wanted)
            ),
            rules=self.rules,
            runs=runs,
        )


def conclude(
    judged: Mapping[int, Judged],
    declared: Declared,
    settings: Settings,
    left: Left,
    before: Callable[[Iterable[int]], Iterable[tuple[int, FindingRecord]]],
) -> Conclusion:
    """Apply the rules to what was judged.

    Parameters
    ----------
    before : the findings of runs before on models of these numbers
    """
    world = World(judged, declared, settings.policy)
    earlier = before(unchecked(judged))
    findings = apply_rules(world, settings.known, settings.today, earlier)
    return Conclusion(judged, findings, rule_records(settings.policy), left)


def unchecked(judged: Mapping[int, Judged]) -> set[int]:
    """Numbers of models that were not read whole, or not compared as they should have been."""
    return {n for n, one in judged.items() if one.model.state != "signed" or one.failed}


def _coverage(judged: Mapping[int, Judged], left: Left, *, whole: bool) -> Coverage:
    models = [one.model for one in judged.values()]
    places = {model.place for model in models}
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
        reused=sum(model.place in left.reused for model in models),
        files=sum(len(model.reading.files) for model in models),
        bytes=sum(file.bytes for model in models for file in model.reading.files),
        pairs=len(compared),
        pairs_left=len(failed)
        + sum(n for place, n in left.near.items() if whole or place in places),
        # What of the sources was not listed is of no model.
        not_read=left.not_read if whole else (),
    )


def _audited(judged: Judged, left: Left) -> AuditedModel:
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
        not_read=tuple(_not_read(judged, left.near.get(model.place, 0))),
    )


def _not_read(judged: Judged, left: int) -> list[Skipped]:
    stumbles = judged.model.reading.stumbles
    rows = [Skipped(what=s.file or "weights", reason=s.message) for s in stumbles]
    rows += [Skipped(what=f"comparison with {name}", reason=why) for name, why in judged.failed]
    if left:
        reason = f"{left} more families of models have near signatures; raise --neighbours"
        rows.append(Skipped(what="comparisons", reason=reason))
    return rows


def _sha256_in(stated: str | None) -> str | None:
    kind, _, digits = (stated or "").partition(":")
    return digits if kind == "sha256" else None
