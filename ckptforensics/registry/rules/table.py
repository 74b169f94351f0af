"""All rules, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date

from ckptforensics.registry.judged import Judged, World
from ckptforensics.registry.policy import Policy
from ckptforensics.registry.rules import content, lineage
from ckptforensics.registry.rules.rule import Draft, Rule
from ckptforensics.results.audit import SEVERITIES, FindingRecord, RuleRecord


def _of_policy(judged: Judged, world: World) -> Iterator[Draft]:
    """Nothing of a model: suppressions are looked at once for all, in `apply_rules`."""
    yield from ()


RULES: tuple[Rule, ...] = (
    Rule(
        "CKPT001",
        "wrong parent",
        "error",
        "The weights contradict the parent that the model claims.",
        lineage.wrong_parent,
    ),
    Rule(
        "CKPT002",
        "wrong relation",
        "warning",
        "The claimed parent is confirmed, by another relation than the claimed one.",
        lineage.wrong_relation,
    ),
    Rule(
        "CKPT003",
        "undeclared parent",
        "warning",
        "The weights are related to a model that nothing declares.",
        lineage.undeclared_parent,
    ),
    Rule(
        "CKPT004",
        "hidden copy",
        "error",
        "The weights are those of another model in another basis or order of units.",
        lineage.hidden_copy,
    ),
    Rule(
        "CKPT005",
        "same weights",
        "note",
        "The weights are those of a model of another name.",
        lineage.same_weights,
    ),
    Rule(
        "CKPT006",
        "looser licence",
        "warning",
        "The licence has fewer conditions than that of a model this one comes from.",
        lineage.looser_licence,
    ),
    Rule(
        "CKPT007",
        "other tokenizer or template",
        "error",
        "Tokenizer or chat template are unlike those of the model whose weights it shares.",
        lineage.other_tokenizer,
    ),
    Rule(
        "CKPT008",
        "content unlike its name",
        "warning",
        "A file is of another kind, quantization or size than its name says.",
        content.content_unlike_name,
    ),
    Rule(
        "CKPT009",
        "remote code",
        "warning",
        "The configuration asks loaders to import code from the repository.",
        content.remote_code,
    ),
    Rule(
        "CKPT010",
        "code in a chat template",
        "error",
        "A chat template reaches for Python's own objects.",
        content.template_code,
    ),
    Rule(
        "CKPT011",
        "unsafe pickle",
        "error",
        "A pickle names or calls what no state dict needs.",
        content.unsafe_pickle,
    ),
    Rule(
        "CKPT012",
        "not fetched",
        "warning",
        "Only a pointer or a part of the weights is there.",
        content.not_fetched,
    ),
    Rule(
        "CKPT013",
        "damaged weights",
        "error",
        "The weights hold what training does not leave: zeros, copies, NaN or infinities.",
        content.damaged,
    ),
    Rule(
        "CKPT014",
        "family not stated",
        "note",
        "The family is only inferred, or not known.",
        content.family_inferred,
    ),
    Rule(
        "CKPT015",
        "weights not read",
        "warning",
        "No weights of the model were read.",
        content.nothing_read,
    ),
    Rule(
        "CKPT016",
        "content unlike its digest",
        "error",
        "The content is not what a content-addressed name or a server states.",
        content.other_digest,
    ),
    Rule(
        "CKPT017",
        "file that cannot be read",
        "error",
        "A file breaks its format, leads out of its store, or needed more than the limits.",
        content.unreadable,
    ),
    Rule(
        "CKPT018",
        "suppression out of use",
        "warning",
        "A suppression of the policy has expired, or suppresses nothing.",
        _of_policy,
    ),
    Rule(
        "CKPT019",
        "format not allowed",
        "warning",
        "The weights are in a format that the policy does not allow.",
        content.format_not_allowed,
    ),
    Rule(
        "CKPT020",
        "claim that cannot be followed",
        "note",
        "A claimed parent is the model itself, a circle, or several models.",
        lineage.claim_not_followed,
    ),
)
BY_ID = {rule.id: rule for rule in RULES}
_SUPPRESSIONS, _NOT_READ = BY_ID["CKPT018"], BY_ID["CKPT015"]


def rule_records(policy: Policy) -> tuple[RuleRecord, ...]:
    """The rules that the policy applies."""
    return tuple(rule.record(policy.severity.get(rule.id)) for rule in _applied(policy))


def apply_rules(
    world: World,
    known: frozenset[str],
    today: date,
    before: Iterable[tuple[int, FindingRecord]] = (),
) -> list[tuple[int | None, FindingRecord]]:
    """All findings, each with its model's number: in order of severity, rule and model.

    Those of the policy itself have no model and come among the others.

    Parameters
    ----------
    known : identifiers of the findings that a baseline has
    today : by which suppressions expire
    before : findings of runs before on models that could not be read as then: they stand
    """
    policy = world.policy
    found = {f.id: (number, f) for number, f in _found(world)}
    for number, finding in before:
        if finding.id not in found and policy.applies(finding.rule):
            found[finding.id] = number, _not_checked(finding, policy)
    rows: list[tuple[int | None, FindingRecord]] = []
    used: set[int] = set()
    for number, finding in found.values():
        covering = [
            i
            for i, one in enumerate(policy.suppressions)
            if one.covers(finding.rule, finding.model)
        ]
        used.update(covering)
        live = [i for i in covering if today <= policy.suppressions[i].expires]
        reason = policy.suppressions[live[0]].reason if live else None
        rows.append((number, finding.model_copy(update={"suppressed": reason})))
    if policy.applies(_SUPPRESSIONS.id):
        rows += [(None, finding) for finding in _out_of_use(policy, used, today)]
    rows = [(n, f.model_copy(update={"known": f.id in known})) for n, f in rows]
    return in_order(rows)


def in_order(
    findings: Iterable[tuple[int | None, FindingRecord]],
) -> list[tuple[int | None, FindingRecord]]:
    """Findings, each with its model's number, in the order of `apply_rules`."""

    def place(row: tuple[int | None, FindingRecord]) -> tuple[int, str, str, str]:
        finding = row[1]
        return SEVERITIES.index(finding.severity), finding.rule, finding.model, finding.id

    return sorted(findings, key=place)


def _found(world: World) -> Iterator[tuple[int, FindingRecord]]:
    """What the rules find of each model; of one that is gone, only that."""
    policy = world.policy
    for number, judged in world.judged.items():
        model = judged.model
        gone = model.state == "vanished"
        for rule in _applied(policy):
            if not gone or rule is _NOT_READ:
                for draft in rule.check(judged, world):
                    yield number, rule.finding(draft, model.name, model.path, policy)


def _not_checked(finding: FindingRecord, policy: Policy) -> FindingRecord:
    """A finding of a run before, whose model could not be read again."""
    told = ("found by a run before, and not checked in this one", *finding.evidence)
    severity = policy.severity.get(finding.rule, finding.severity)
    return finding.model_copy(
        update={"checked": False, "evidence": tuple(dict.fromkeys(told)), "severity": severity}
    )


def _out_of_use(policy: Policy, used: set[int], today: date) -> Iterator[FindingRecord]:
    """Suppressions that have expired, or that nothing was suppressed by."""
    place = str(policy.path or "")
    for i, one in enumerate(policy.suppressions):
        if today > one.expires:
            why = f"expired on {one.expires}"
        elif i not in used:
            why = "suppresses nothing"
        else:
            continue
        draft = Draft(
            about=f"{one.rule}:{one.model}",
            message=f"the suppression of {one.rule} for {one.model} {why}",
            evidence=(f"its reason: {one.reason}",),
        )
        yield _SUPPRESSIONS.finding(draft, place, place, policy)


def _applied(policy: Policy) -> list[Rule]:
    return [rule for rule in RULES if policy.applies(rule.id)]
