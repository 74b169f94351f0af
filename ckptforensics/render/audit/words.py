"""The words in which every form of an audit says what its document holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from types import MappingProxyType

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted, duration, size
from ckptforensics.render.wording import relation_text
from ckptforensics.results.audit import (
    SEVERITIES,
    AuditDocument,
    Coverage,
    FindingRecord,
    Location,
    RelativeRecord,
    RuleRecord,
)

STATES: Mapping[str, str] = MappingProxyType(
    {
        "signed": "weights read",
        "headers": "headers only",
        "unread": "not read",
        "vanished": "gone",
    }
)
# Places in a sentence about two models: for the model that it is about, and for its relative.
THIS, OTHER = 0, 1
Sentence = tuple[str | int, ...]


def whole(coverage: Coverage) -> bool:
    """Whether there are models, all of them were read, and every pair that should be compared."""
    left = coverage.pairs_left or coverage.not_read
    return 0 < coverage.models == coverage.signed and not left


def gaps(coverage: Coverage) -> str:
    """What was not read, in one sentence; says so where nothing is missing."""
    if whole(coverage):
        return "nothing: every model was read and every pair compared"
    rows = (
        (coverage.unread, "model could", "models could", "not be read at all"),
        (coverage.headers, "model had its", "models had their", "headers read only"),
        (coverage.vanished, "model is", "models are", "gone since the last run"),
        (coverage.pairs_left, "pair was", "pairs were", "not compared"),
        (len(coverage.not_read), "place", "places", "of the sources could not be listed"),
    )
    said = [f"{n:,} {one if n == 1 else many} {what}" for n, one, many, what in rows if n]
    # An audit of nothing must not look like a clean one.
    none = [] if coverage.models else ["no model was found, so nothing was read"]
    return "; ".join(none + said)


def missing(document: AuditDocument) -> list[tuple[str, str]]:
    """All that was not read, of the sources first, then of the models: what, and why."""
    rows = [(gap.what, gap.reason) for gap in document.coverage.not_read]
    return rows + [
        (f"{model.name}: {gap.what}", gap.reason)
        for model in document.models
        for gap in model.not_read
    ]


def read(coverage: Coverage) -> str:
    """What was read, in one sentence."""
    of = f"the weights of {coverage.signed:,} of {counted(coverage.models, 'model')}"
    reused = f"; {counted(coverage.reused, 'model')} as a run before" if coverage.reused else ""
    return (
        f"{of}{reused}; {counted(coverage.pairs, 'pair')} compared; "
        f"{counted(coverage.files, 'file')}, {size(coverage.bytes)}"
    )


def counts(findings: Iterable[FindingRecord]) -> str:
    """How many findings count, by severity, and how many do not."""
    rows = list(findings)
    of = Counter(row.severity for row in rows if row.counts)
    said = [counted(of[severity], severity) for severity in SEVERITIES if of[severity]]
    suppressed = sum(row.suppressed is not None for row in rows)
    known = sum(row.known and row.suppressed is None for row in rows)
    more = [f"{known:,} known before"] * bool(known) + [f"{suppressed:,} suppressed"] * bool(
        suppressed
    )
    return ", ".join(said or ["none"]) + (f" (and {', '.join(more)})" if more else "")


def by_rule(
    document: AuditDocument,
) -> list[tuple[RuleRecord | None, str, list[FindingRecord]]]:
    """The findings in runs of one severity and rule: the rule if it is known, its id, the rows."""
    known = {rule.id: rule for rule in document.rules}

    def key(row: FindingRecord) -> tuple[int, str]:
        return SEVERITIES.index(row.severity), row.rule

    runs = groupby(sorted(document.findings, key=key), key)
    return [(known.get(rule), rule, list(rows)) for (_, rule), rows in runs]


def place(location: Location) -> str:
    """A file, and the line and tensor in it where there is one."""
    line = "" if location.line is None else f":{location.line}"
    tensor = "" if location.tensor is None else f", tensor {location.tensor}"
    return one_line(f"{location.file}{line}{tensor}")


def standing(finding: FindingRecord) -> str:
    """Why a finding does not count, '' where it does."""
    if finding.suppressed is not None:
        return one_line(f"suppressed: {finding.suppressed}")
    return "known before" if finding.known else ""


def relation(relative: RelativeRecord) -> Sentence:
    """What the weights show of two models, as a sentence with places for both names.

    A sentence about the direction follows wherever one is shown, with what it is worth.
    """
    how = "" if relative.relation is None else f" ({relation_text(relative.relation)})"
    older, younger = (OTHER, THIS) if relative.arrow != "b->a" else (THIS, OTHER)
    known = relative.arrow != "unknown"
    said: Sentence
    match relative.verdict:
        case "same weights":
            said = ("The weight files of ", THIS, " and ", OTHER, " have the same SHA-256 digests")
        case "identical":
            said = ("The weights of ", THIS, " and ", OTHER, f" are identical{how}")
        case "re-parameterised":
            said = (
                *("The weights of ", THIS, " and ", OTHER),
                f" are one function in other numbers (re-parameterised){how}",
            )
        case "derived" if known:
            said = ("The weights of ", younger, " are derived from those of ", older, how)
        case "derived":
            said = (
                *("The weights of one of ", THIS, " and ", OTHER),
                f" are derived from those of the other{how}; which came first is not shown",
            )
        case "related":
            said = ("The weights of ", THIS, " and ", OTHER, f" share a training run{how}")
        case "independent":
            said = ("No evidence of a shared training run of ", THIS, " and ", OTHER, " was found")
        case "inconclusive":
            said = (
                *("It was not decided whether ", THIS, " and ", OTHER),
                " share a training run",
            )
        case "not comparable":
            said = ("No test could decide about ", THIS, " and ", OTHER)
    if known:
        said = (
            *(*said, ". The weights are consistent with ", older, " having come first"),
            "; weights alone cannot prove an order of time",
        )
    return (*said, ".")


def told(sentence: Sequence[str | int], this: str, other: str) -> str:
    """A sentence with the names in their places."""
    names = (one_line(this), one_line(other))
    return "".join(names[part] if isinstance(part, int) else part for part in sentence)


def utc(time: str) -> str:
    """A time of a document as RFC 3339 in UTC, to the second, as other formats want it."""
    try:
        known = datetime.fromisoformat(time)
    except ValueError:
        return one_line(time)
    there = known if known.tzinfo else known.replace(tzinfo=UTC)
    return there.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def made(document: AuditDocument) -> str | None:
    """When the audit ended, or began where it has no end; None where no run is recorded."""
    run = document.runs[0] if document.runs else None
    return None if run is None else utc(run.ended or run.started)


def took(document: AuditDocument) -> str:
    """When the run was, how long it took, and over what."""
    if not document.runs:
        return "no run is recorded"
    run = document.runs[0]
    end = "not finished" if run.ended is None else f"to {run.ended}"
    seconds = "" if run.seconds is None else f", {duration(run.seconds)}"
    sources = ", ".join(run.sources)
    return one_line(f"run {run.number}, {run.started} {end}{seconds}, over {sources}")


def by_model(document: AuditDocument) -> dict[str, list[FindingRecord]]:
    """The findings of each audited model, in their order."""
    found: dict[str, list[FindingRecord]] = {model.name: [] for model in document.models}
    for row in document.findings:
        found.setdefault(row.model, []).append(row)
    return found


def gravest(findings: Iterable[FindingRecord]) -> int:
    """The place of the gravest severity that counts among `SEVERITIES`, their number for none."""
    places = [SEVERITIES.index(row.severity) for row in findings if row.counts]
    return min(places, default=len(SEVERITIES))
