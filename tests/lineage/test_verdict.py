"""The rules that make a verdict of criteria, each against what docs/lineage.md promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.criteria.equivalence import Equivalence
from ckptforensics.lineage.verdict import Evidence, decide
from ckptforensics.results import CriterionRecord


def record(name="gate rows", group="exact", statistic=1.0, log10_p=None, skipped=None):
    return CriterionRecord(
        name=name,
        group=group,
        statistic=None if skipped else statistic,
        log10_p=log10_p,
        floor=False,
        invariant_to=(),
        seconds=0.1,
        bytes_read=0,
        skipped=skipped,
    )


INDEPENDENT = Evidence(
    level="default",
    tests=(record(log10_p=-0.2), record("neuron agreement on tokens", "agreement", 0.01)),
    exact_log10_p=0.0,
    agreement=0.01,
    agreement_name="neuron agreement on tokens",
    identical=False,
    equivalence=Equivalence(False, "the embeddings differ"),
    settings=(),
    findings=(),
    map_found=(),
)
TUNED = Finding("finetune", "unknown", "all matrices changed a little", 50)
PRUNED = Finding("pruned", "a->b", "half of the entries of B are 0", 35)


def given(**changes):
    return decide(replace(INDEPENDENT, **changes))


def test_independent_models_are_independent_and_told_why():
    found = decide(INDEPENDENT)
    assert (found.verdict, found.relation, found.direction) == ("independent", None, "unknown")
    assert any("1.0%" in reason for reason in found.reasons)
    assert found.otherwise


def test_equal_bytes_are_identical_whatever_the_tests_say():
    assert given(identical=True).verdict == "identical"


@pytest.mark.parametrize("evidence", [{"exact_log10_p": -9.0}, {"agreement": 0.5}])
def test_either_tier_alone_shows_a_relation(evidence):
    tests = (record(log10_p=evidence.get("exact_log10_p", -0.1)), INDEPENDENT.tests[1])
    assert given(**evidence, tests=tests).verdict == "related"
    found = given(**evidence, tests=tests, findings=(PRUNED, TUNED))
    assert (found.verdict, found.relation, found.direction) == ("derived", "pruned", "a->b")
    assert PRUNED.reason in found.reasons


def test_a_change_without_a_kind_of_its_own_is_derived_too():
    rows = Finding(None, "a->b", "64 rows were appended", 20, "vocabulary")
    found = given(agreement=1.0, findings=(rows,))
    assert (found.verdict, found.relation, found.direction) == ("derived", None, "a->b")


def test_a_witness_behind_a_map_counts():
    witness = record("neuron order", "correspondence", 1500.0, -4000.0)
    assert given(tests=(*INDEPENDENT.tests, witness)).verdict == "related"
    described = record("aligned angles", "correspondence", 1.0)
    assert given(tests=(*INDEPENDENT.tests, described)).verdict == "independent"


def test_the_same_function_is_re_parameterised_and_the_map_is_named():
    same = (True, "units and heads agree")
    found = given(equivalence=Equivalence(*same), agreement=1.0, map_found=("a rotation",))
    assert found.verdict == "re-parameterised"
    assert "a rotation" in found.reasons[0]


@pytest.mark.parametrize(
    ("agreement", "verdict"),
    [(0.149, "independent"), (0.15, "inconclusive"), (0.499, "inconclusive"), (0.5, "related")],
)
def test_the_limits_of_neuron_agreement(agreement, verdict):
    assert given(agreement=agreement).verdict == verdict


@pytest.mark.parametrize(
    ("log10_p", "verdict"),
    [(-2.9, "independent"), (-3.0, "inconclusive"), (-5.9, "inconclusive"), (-6.0, "related")],
)
def test_the_limits_of_exact_tests(log10_p, verdict):
    tests = (record(log10_p=log10_p), INDEPENDENT.tests[1])
    assert given(exact_log10_p=log10_p, tests=tests).verdict == verdict


def test_without_neuron_agreement_nothing_is_called_independent():
    """A copy in another basis would look the same, and --fast does not look."""
    unseen = record("neuron agreement on tokens", "agreement", skipped="no shared tokens")
    found = given(agreement=None, agreement_name="", tests=(INDEPENDENT.tests[0], unseen))
    assert found.verdict == "inconclusive"
    assert any("no shared tokens" in words for words in found.otherwise)
    fast = given(agreement=None, agreement_name="", level="fast", tests=INDEPENDENT.tests[:1])
    assert fast.verdict == "inconclusive"
    assert any("--fast" in words for words in fast.otherwise)


def test_where_nothing_runs_nothing_is_said():
    skipped = (record(skipped="the widths differ: 64 and 96"),)
    found = given(exact_log10_p=None, agreement=None, agreement_name="", tests=skipped)
    assert found.verdict == "not comparable"
    assert found.reasons == ("the widths differ: 64 and 96",)


def test_an_unknown_direction_says_what_would_show_it():
    found = given(agreement=1.0, findings=(TUNED,))
    assert (found.verdict, found.relation, found.direction) == ("derived", "finetune", "unknown")
    assert any("third relative" in words for words in found.otherwise)


def test_what_could_not_be_compared_is_told_by_its_weight():
    tied = record("signs", "correspondence", skipped="LayerNorm's mean ties the signs")
    widths = [record(name, skipped="the widths differ: 64 and 96") for name in ("max", "sum")]
    tokens = record("neurons", "agreement", skipped="no token is shared")
    found = given(tests=(tied, tokens, *widths), exact_log10_p=None, agreement=None)
    assert found.verdict == "not comparable"
    assert found.reasons == (widths[0].skipped, tokens.skipped, tied.skipped)
