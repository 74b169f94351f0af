"""From tests to a verdict, by rules that are written here and nowhere else.

docs/lineage.md states them in words with the measurements behind the limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.criteria.equivalence import Equivalence
from ckptforensics.results import CriterionRecord
from ckptforensics.results.comparison import Arrow, Group, Level, Verdict

# Exact tests: one independent pair in a million is called related. Between this and the weaker
# limit the answer is 'inconclusive'.
EXACT_LOG10_P = -6.0
WEAK_LOG10_P = -3.0
# What points the other way though nothing shows a shared run: cosine of embeddings after the map,
# median angle of directions after it in degrees, neuron agreement of one layer.
_FITS, _ALIGNED_DEG, _ONE_LAYER = 0.95, 30.0, 0.5
# How a statistic that decides is told.
_TOLD = {
    "functions behind gates": "what all neurons behind one gate compute is alike to {:.2f}",
    "head spectra": "{:.0%} of the heads have the singular values of a head of the other model",
    "space of embeddings": "the embeddings span one space to {:.2f}",
    "equal parts": "{:.0%} of the rows or columns of one matrix are equal bit by bit",
}
_NEURONS = "{:.0%} of the neurons agree"

_STORED = "the stored basis"


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    Attributes
    ----------
    level : how far the models were compared
    tests : all that ran or were skipped
    exact_log10_p : of all exact tests together; None if none ran
    identical : whether every tensor has the same name, type, shape and bytes
    equivalence : whether the models are one function in other weights, and what that rests on
    settings : what the configurations say otherwise though it changes the function, in words
    findings : what changed, strongest first
    map_found : words for the map that was undone, empty where nothing had to be
    shared : the parts that are shared where the rest has nothing in common
    equal : which matrices are equal bit by bit, in words
    hiding : what would hide a copy from the tests, in words; looked at where none shows one
    """

    level: Level
    tests: Sequence[CriterionRecord]
    exact_log10_p: float | None
    identical: bool
    equivalence: Equivalence
    settings: tuple[str, ...]
    findings: Sequence[Finding]
    map_found: Sequence[str]
    shared: tuple[str, ...] = ()
    equal: str | None = None
    hiding: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """A verdict, what carried it, and what would have changed it."""

    verdict: Verdict
    relation: str | None
    direction: Arrow
    reasons: tuple[str, ...]
    otherwise: tuple[str, ...] = ()
    # What shows the direction and what would forge it, or why there is none.
    why: str = "nothing in the weights shows who came first"


def decide(evidence: Evidence) -> Decision:
    """The verdict on two models, by the rules of docs/lineage.md."""
    if evidence.identical:
        reason = "every tensor has the same name, type, shape and bytes"
        settings = [f"but the configurations differ: {words}" for words in evidence.settings]
        equal = "equal files show nothing of who came first"
        return Decision("identical", None, "unknown", (reason, *settings), why=equal)
    reasons = _positive(evidence)
    if evidence.equivalence.same:
        return _same(evidence, reasons)
    if reasons:
        return _relatives(evidence, reasons)
    return _negative(evidence)


def _positive(evidence: Evidence) -> list[str]:
    """What shows a shared training run, in words; empty if nothing does."""
    reasons = []
    p = evidence.exact_log10_p
    if p is not None and p <= EXACT_LOG10_P:
        carried = min(_with_p(evidence.tests, "exact"), key=lambda t: t.log10_p or 0.0)
        reasons.append(
            f"exact tests in {_STORED} have p <= {_power(p)} together; the strongest is "
            f"'{carried.name}'"
        )
    reasons += [
        f"{_told(test)} ('{test.name}'); {test.limits[1]:g} shows a shared training run"
        for test in evidence.tests
        if test.shows_relatives and test.limits is not None
    ]
    for witness in _with_p(evidence.tests, "correspondence"):
        assert witness.log10_p is not None
        if witness.log10_p <= EXACT_LOG10_P:
            reasons.append(f"'{witness.name}' has p <= {_power(witness.log10_p)}")
    return reasons


def _same(evidence: Evidence, reasons: list[str]) -> Decision:
    words = [evidence.equivalence.told, *reasons]
    if evidence.map_found:
        words.insert(0, "undone: " + "; ".join(evidence.map_found))
    otherwise = ("a change of the weights beyond rounding would make it 'derived'",)
    why = "what was only rounded or rewritten may have been written the other way round as well"
    return Decision("re-parameterised", None, "unknown", tuple(words), otherwise, why)


def _relatives(evidence: Evidence, reasons: list[str]) -> Decision:
    if evidence.map_found:
        reasons = [*reasons, "undone: " + "; ".join(evidence.map_found)]
    if evidence.equal is not None:
        reasons = [*reasons, evidence.equal]
    if evidence.shared:
        relation = f"shares: {', '.join(evidence.shared)}"
        reasons = [*reasons, f"beyond {' and '.join(evidence.shared)} nothing in common was found"]
        either = (
            "parts can be taken over from one to the other, or both from a third; or one is a copy "
            "of which the rest is hidden, as by splitting neurons or heads"
        )
        return Decision("related", relation, "unknown", tuple(reasons), (either,))
    equivalence = evidence.equivalence
    if equivalence.compared:  # units and heads are the same, and something else is not
        reasons = [*reasons, f"not one function in other weights, though alike: {equivalence.told}"]
    if not evidence.findings:
        otherwise = ["nothing shows how they are related or who came first"]
        if evidence.level == "fast":
            otherwise = ["what changed is not looked at with --fast"]
        return Decision("related", None, "unknown", tuple(reasons), tuple(otherwise))
    first = evidence.findings[0]
    reasons = [*reasons, *(finding.reason for finding in evidence.findings)]
    if evidence.settings and not any("configurations differ" in reason for reason in reasons):
        reasons.append(f"the configurations differ: {'; '.join(evidence.settings)}")
    otherwise = []
    if first.direction == "unknown":
        otherwise.append(
            "a third relative may show who came first, or that both come from another model"
        )
    told = (first.relation, first.direction, tuple(reasons), tuple(otherwise))
    return Decision("derived", *told, first.why)


def _negative(evidence: Evidence) -> Decision:
    p, channels = evidence.exact_log10_p, _channels(evidence)
    if p is None and not channels:
        skipped = _obstacles(evidence.tests)
        return Decision("not comparable", None, "unknown", skipped or ("no test ran",))
    unclear = [
        f"{_told(test)} ('{test.name}'): more than independent models have "
        f"({test.limits[0]:g}), less than relatives ({test.limits[1]:g})"
        for test, value in channels
        if test.limits is not None and value >= test.limits[0]
    ]
    if p is not None and p <= WEAK_LOG10_P:
        unclear.append(
            f"exact tests have p <= {_power(p)} together: unlikely by chance, but a verdict "
            f"needs 10^{EXACT_LOG10_P:.0f}"
        )
    unclear += _other_way(evidence.tests)
    if unclear:
        return Decision(
            "inconclusive", None, "unknown", tuple(unclear), _what_else(evidence, unclear)
        )
    if evidence.hiding:
        return Decision("inconclusive", None, "unknown", evidence.hiding, _what_else(evidence, []))
    silent = [
        f"{_told(test)} ('{test.name}'); independent models stay below {test.limits[0]:g}"
        for test, _ in channels
        if test.limits is not None
    ]
    if p is not None:
        silent.append(f"exact tests in {_STORED} have p <= {_power(p)} together")
    blind = [test for test in evidence.tests if test.limits is not None and test.skipped]
    if not channels or blind:
        why = f"nothing in {_STORED} speaks for a shared training run"
        if channels:
            why = "nothing that could be measured speaks for a shared training run"
        unseen = "a copy whose residual basis was changed would look the same here"
        if blind and channels:
            names = ", ".join(f"'{test.name}'" for test in blind)
            unseen = (
                f"not measured: {names}; a copy that is hidden from the others would look the "
                "same here"
            )
        reasons = (why, unseen, *silent)
        return Decision("inconclusive", None, "unknown", reasons, _what_else(evidence, []))
    otherwise = ("one of these beyond the limit of relatives, or exact p <= 10^-6",)
    return Decision("independent", None, "unknown", tuple(silent), otherwise)


def _channels(evidence: Evidence) -> list[tuple[CriterionRecord, float]]:
    """The criteria that decide by their statistic and ran, with it."""
    return [
        (test, test.statistic)
        for test in evidence.tests
        if test.limits is not None and test.statistic is not None
    ]


def _told(test: CriterionRecord) -> str:
    # Not '-0%'.
    return _TOLD.get(test.name, _NEURONS).format(round(test.statistic or 0.0, 2) + 0.0)


def _other_way(tests: Sequence[CriterionRecord]) -> list[str]:
    """What contradicts independence in the criteria's own table, in words."""
    told = []
    for test in tests:
        value = test.statistic
        if value is None:
            continue
        if test.name == "embedding fit" and value >= _FITS:
            told.append(f"the embeddings fit onto each other with a cosine of {value:.2f}")
        if test.name == "aligned angles" and value <= _ALIGNED_DEG:
            told.append(f"after the map directions are {value:.0f} degrees apart in the median")
        high = [f for f in test.profile if f is not None and f >= _ONE_LAYER]
        if high and test.name.startswith("neuron agreement"):
            told.append(f"in one layer {max(high):.0%} of the neurons agree ('{test.name}')")
    return told


def _obstacles(tests: Sequence[CriterionRecord]) -> tuple[str, ...]:
    """Why tests were skipped: first what kept most of those that can decide from running."""
    weights: dict[str, list[int]] = {}
    for test in tests:
        if test.skipped is not None:
            weight = weights.setdefault(test.skipped, [0, 0])
            weight[0] += test.group in ("exact", "agreement")
            weight[1] += 1
    return tuple(sorted(weights, key=weights.__getitem__, reverse=True))


def _what_else(evidence: Evidence, unclear: list[str]) -> tuple[str, ...]:
    words = []
    if evidence.level != "thorough":
        words.append(
            "compare without --fast" if evidence.level == "fast" else "compare with --thorough"
        )
    words += [
        f"'{test.name}' was skipped: {test.skipped}"
        for test in evidence.tests
        if test.group == "agreement" and test.skipped is not None
    ]
    return tuple(words)


def _power(log10_p: float) -> str:
    """A bound on p as a power of ten, rounded up."""
    return f"10^{math.ceil(10 * log10_p) / 10:.1f}" if log10_p > -10 else f"10^{math.ceil(log10_p)}"


def _with_p(tests: Sequence[CriterionRecord], group: Group) -> list[CriterionRecord]:
    return [test for test in tests if test.group == group and test.log10_p is not None]
