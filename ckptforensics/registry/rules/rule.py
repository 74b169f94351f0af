"""What a rule is, and what it says of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from ckptforensics.registry.judged import Judged, World
from ckptforensics.registry.policy import Policy
from ckptforensics.results.audit import FindingRecord, Location, RuleRecord, Severity


@dataclass(frozen=True)
class Draft:
    """What a rule found.

    Attributes
    ----------
    about : what of the model it is about; together with rule and model it makes the stable id
    message : one sentence
    file, line, tensor : where; the model itself where there is no file
    evidence : sentences
    severity : where it is not the rule's own
    """

    about: str
    message: str
    file: str = ""
    line: int | None = None
    tensor: str | None = None
    evidence: tuple[str, ...] = ()
    severity: Severity | None = None


Check = Callable[[Judged, World], Iterator[Draft]]


@dataclass(frozen=True)
class Rule:
    """One rule: `CKPT001` and so on, a name in words, and the function that looks."""

    id: str
    name: str
    severity: Severity
    summary: str
    check: Check

    @property
    def page(self) -> str:
        """Its page as Markdown."""
        folder = files("ckptforensics.registry.rules") / "pages"
        return (folder / f"{self.id}.md").read_text("utf-8")

    def record(self, severity: Severity | None = None) -> RuleRecord:
        """The rule as a document has it, with the policy's severity if that is another."""
        return RuleRecord(
            id=self.id,
            name=self.name,
            severity=severity or self.severity,
            summary=self.summary,
            page=self.page,
        )

    def finding(self, draft: Draft, model: str, place: str, policy: Policy) -> FindingRecord:
        """What it found of the model of that name and place, with the policy's severity.

        A place may be a file itself: the model's weights, or a manifest that names its parts.
        """
        key = "\0".join((self.id, model, draft.about))
        return FindingRecord(
            id=hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:16],
            rule=self.id,
            severity=policy.severity.get(self.id) or draft.severity or self.severity,
            model=model,
            location=Location(
                file=_within(place, draft.file),
                line=draft.line,
                tensor=draft.tensor,
            ),
            message=draft.message,
            evidence=draft.evidence,
        )


def file_of(source: str) -> str:
    """The file of a claim's or a template's source, which may name a key in it too."""
    return source.partition(": ")[0]


def _within(place: str, file: str) -> str:
    """The place of a model's file, where that is not the model's place itself."""
    if not file or place.rpartition("/")[2] == file.rpartition("/")[2] or "/manifests/" in place:
        return place
    return f"{place}/{file}"
