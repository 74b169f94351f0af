"""The result of `audit`: many models, what they claim, what their weights show, what is wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ckptforensics.results.comparison import Arrow, Relation, Shares, Verdict
from ckptforensics.results.records import Document, Finite, Frozen, Name, Sha256, Skipped

Severity = Literal["error", "warning", "note"]
# The gravest first.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ClaimVerdict = Literal["confirmed", "contradicted", "undeclared relative", "unverifiable"]
# How much of a model was read: its weights, its headers only, nothing, or it is gone.
State = Literal["signed", "headers", "unread", "vanished"]
FileRole = Literal["weights", "configuration", "tokenizer", "card", "adapter", "other"]
FindingId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
RuleId = Annotated[str, Field(pattern=r"^CKPT\d{3}$")]


class AuditedFile(Frozen):
    """One file of a model: `stated_sha256` is the store's word, `sha256` what was computed."""

    name: Name
    role: FileRole
    bytes: int
    stated_sha256: Sha256 | None = None
    sha256: Sha256 | None = None


class AuditedLayer(Frozen):
    """A layer's leading singular values of L and their gap, and its label, as `sign` finds them."""

    layer: int
    sigma: tuple[Finite, Finite]
    gap: Finite
    label: Literal["explosion", "decay"] | None = None


class ClaimRecord(Frozen):
    """A parent that a model names, or that it does not name and its weights show.

    `source` is the file that makes the claim and `line` where, from 1; the source of an undeclared
    relative is `weights`. `relation` is as claimed, null where the claim does not say. `matched` is
    the audited model that the parent's name was found to mean, null where none is.
    """

    parent: Name
    relation: Name | None
    source: Name
    verdict: ClaimVerdict
    why: str
    line: int | None = None
    matched: Name | None = None


class RelativeRecord(Frozen):
    """Another audited model, and what `compare` says of this one (as B) beside it (as A).

    `verdict` may also be `same weights`, by their digests. `arrow` is the direction that the
    weights are consistent with, `a->b` where the other came first. `evidence` are the sentences
    that carried the verdict.
    """

    name: Name
    verdict: Verdict | Literal["same weights"]
    relation: Relation | Shares | None
    arrow: Arrow
    evidence: tuple[str, ...]


class AuditedModel(Frozen):
    """One model of a registry.

    `name` is unique among the models of a document, `source` says which store it was found in
    (`directory`, `huggingface`, `ollama`, `lmstudio`, `hub`, `url`) and `path` where. `family` and
    the sizes are null where nothing could be read. `not_read` says what was not, and why.
    """

    name: Name
    source: str
    path: Name
    state: State
    files: tuple[AuditedFile, ...] = ()
    commit: str | None = None
    licence: Name | None = None
    family: str | None = None
    family_source: Literal["config", "gguf", "inferred"] | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    fingerprint: str | None = None
    layers: tuple[AuditedLayer, ...] = ()
    claims: tuple[ClaimRecord, ...] = ()
    relatives: tuple[RelativeRecord, ...] = ()
    not_read: tuple[Skipped, ...] = ()

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(file.bytes for file in self.files)


class Location(Frozen):
    """Where a finding is: a file, and the line and tensor in it where there is one."""

    file: Name
    line: int | None = None
    tensor: Name | None = None


class FindingRecord(Frozen):
    """What a rule says of a model.

    `id` stays the same from run to run while the finding does: it is a digest of the rule, the
    model's name and what the finding is about. `suppressed` is the reason that the policy gives
    for not counting it, `known` that the baseline has it; neither counts for `--fail-on`. `checked`
    is false where a run before found it and this one could not read what it rests on.
    """

    id: FindingId
    rule: RuleId
    severity: Severity
    model: Name
    location: Location
    message: str
    evidence: tuple[str, ...] = ()
    suppressed: str | None = None
    known: bool = False
    checked: bool = True

    @property
    def counts(self) -> bool:
        """Whether it counts for `--fail-on`."""
        return self.suppressed is None and not self.known


class RuleRecord(Frozen):
    """A rule: its name, what it finds in a sentence, and its page as Markdown."""

    id: RuleId
    name: str
    severity: Severity
    summary: str
    page: str


class Coverage(Frozen):
    """How much of what was named was read.

    `models` counts all that were found; the next four add up to it. `reused` are the models whose
    results are those of a run before, as nothing of them or of the tool changed. `pairs` counts the
    pairs of models that were compared, `pairs_left` those that should have been and were not.
    `bytes` is what all files take, `not_read` says what of the sources themselves was not.
    """

    models: int
    signed: int
    headers: int
    unread: int
    vanished: int
    reused: int
    files: int
    bytes: int
    pairs: int
    pairs_left: int
    not_read: tuple[Skipped, ...] = ()


class AuditRun(Frozen):
    """One run over the sources: times in UTC (ISO 8601); `ended` is null while it is unfinished."""

    number: int
    started: str
    ended: str | None
    tool_version: str
    sources: tuple[Name, ...]
    seconds: Finite | None


class AuditDocument(Document):
    """The result of `audit`.

    `findings` are in order of severity, then rule and model; those of `--baseline` and suppressed
    ones are among them and marked. `rules` are those that were applied. `runs` are the last runs
    over the same sources, this one first.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["audit"] = "audit"
    coverage: Coverage
    models: tuple[AuditedModel, ...]
    findings: tuple[FindingRecord, ...]
    rules: tuple[RuleRecord, ...]
    runs: tuple[AuditRun, ...]

    @property
    def worst(self) -> Severity | None:
        """The gravest severity among the findings that count, None if none does."""
        counting = {finding.severity for finding in self.findings if finding.counts}
        return next((severity for severity in SEVERITIES if severity in counting), None)
