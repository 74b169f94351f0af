"""The rules that make a verdict of criteria, each against what docs/lineage.md promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.criteria.equivalence import Equivalence
from ckptforensics.lineage.verdict import Evidence, decide
from ckptforensics.results import CriterionRecord


def record(name="gate rows", group="exact", statistic=1.0, log10_p=None, skipped=None, limits=None):
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
        limits=limits,
    )


CHANNELS = {
    "neuron agreement on tokens": (0.15, 0.5),
    "functions behind gates": (0.15, 0.3),
    "head spectra": (0.3, 0.6),
    "space of embeddings": (0.6, 0.9),
    "equal parts": (0.02, 0.2),
}


def channels(**values):
    """All that decide by their statistic, silent unless another value is given by name."""
    given = {name.replace("_", " "): value for name, value in values.items()}
    return tuple(
        record(
            name,
            "agreement",
            given.get(name, 0.01),
            skipped="it cannot be told" if given.get(name, 0) is None else None,
            limits=limits,
        )
        for name, limits in CHANNELS.items()
    )


INDEPENDENT = Evidence(
    level="default",
    tests=(record(log10_p=-0.2), *channels()),
    exact_log10_p=0.0,
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
    for name in CHANNELS:
        assert any(name in reason for reason in found.reasons)
    assert found.otherwise


def test_equal_bytes_are_identical_whatever_the_tests_say():
    assert given(identical=True).verdict == "identical"


@pytest.mark.parametrize("p", [-9.0, 0.0])
def test_either_tier_alone_shows_a_relation(p):
    tests = (record(log10_p=p), *channels(head_spectra=0.6 if p == 0 else 0.01))
    assert given(exact_log10_p=p, tests=tests).verdict == "related"
    found = given(exact_log10_p=p, tests=tests, findings=(PRUNED, TUNED))
    assert (found.verdict, found.relation, found.direction) == ("derived", "pruned", "a->b")
    assert PRUNED.reason in found.reasons


def test_a_change_without_a_kind_of_its_own_is_derived_too():
    rows = Finding(None, "a->b", "64 rows were appended", 20, "vocabulary")
    found = given(tests=channels(equal_parts=1.0), findings=(rows,))
    assert (found.verdict, found.relation, found.direction) == ("derived", None, "a->b")


def test_a_witness_behind_a_map_counts():
    witness = record("neuron order", "correspondence", 1500.0, -4000.0)
    assert given(tests=(*INDEPENDENT.tests, witness)).verdict == "related"
    described = record("aligned angles", "correspondence", 1.0)
    assert given(tests=(*INDEPENDENT.tests, described)).verdict == "inconclusive"


def test_the_same_function_is_re_parameterised_and_the_map_is_named():
    same = (True, "units and heads agree")
    found = given(equivalence=Equivalence(*same), map_found=("a rotation",))
    assert found.verdict == "re-parameterised"
    assert "a rotation" in found.reasons[0]


@pytest.mark.parametrize("name", CHANNELS)
def test_the_limits_of_each_channel(name):
    low, high = CHANNELS[name]
    for value, verdict in (
        (low - 1e-3, "independent"),
        (low, "inconclusive"),
        (high - 1e-3, "inconclusive"),
        (high, "related"),
    ):
        assert given(tests=channels(**{name.replace(" ", "_"): value})).verdict == verdict


@pytest.mark.parametrize("name", CHANNELS)
def test_independent_needs_every_channel(name):
    """What was not measured is never counted as independent."""
    found = given(tests=channels(**{name.replace(" ", "_"): None}))
    assert found.verdict == "inconclusive"
    assert any(f"'{name}'" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("embedding fit", {"statistic": 0.96}),
        ("aligned angles", {"statistic": 12.0}),
    ],
)
def test_what_points_the_other_way_is_not_overruled(name, values):
    found = given(tests=(*INDEPENDENT.tests, record(name, "correspondence", **values)))
    assert found.verdict == "inconclusive"


def test_one_layer_whose_neurons_agree_is_not_overruled():
    one = channels()[0].model_copy(update={"profile": (None, 0.01, 0.7, None)})
    assert given(tests=(one, *channels()[1:])).verdict == "inconclusive"


def test_relatives_that_share_parts_only_are_named_by_them():
    found = given(
        tests=channels(equal_parts=1.0),
        findings=(TUNED,),
        shared=("attention", "layers 3-7"),
        equal="8 of 29 matrices are equal",
    )
    assert (found.verdict, found.relation) == ("related", "shares: attention, layers 3-7")
    assert "8 of 29 matrices are equal" in found.reasons
    assert TUNED.reason not in found.reasons


@pytest.mark.parametrize(
    ("log10_p", "verdict"),
    [(-2.9, "independent"), (-3.0, "inconclusive"), (-5.9, "inconclusive"), (-6.0, "related")],
)
def test_the_limits_of_exact_tests(log10_p, verdict):
    tests = (record(log10_p=log10_p), *channels())
    assert given(exact_log10_p=log10_p, tests=tests).verdict == verdict


def test_without_channels_nothing_is_called_independent():
    """A copy in another basis would look the same, and --fast does not look."""
    none = dict.fromkeys(name.replace(" ", "_") for name in CHANNELS)
    found = given(tests=(record(log10_p=-0.2), *channels(**none)))
    assert found.verdict == "inconclusive"
    assert any("it cannot be told" in words for words in found.otherwise)
    fast = given(level="fast", tests=INDEPENDENT.tests[:1])
    assert fast.verdict == "inconclusive"
    assert any("--fast" in words for words in fast.otherwise)


def test_where_nothing_runs_nothing_is_said():
    skipped = (record(skipped="the widths differ: 64 and 96"),)
    found = given(exact_log10_p=None, tests=skipped)
    assert found.verdict == "not comparable"
    assert found.reasons == ("the widths differ: 64 and 96",)


def test_an_unknown_direction_says_what_would_show_it():
    found = given(tests=channels(equal_parts=1.0), findings=(TUNED,))
    assert (found.verdict, found.relation, found.direction) == ("derived", "finetune", "unknown")
    assert any("third relative" in words for words in found.otherwise)


def test_what_could_not_be_compared_is_told_by_its_weight():
    tied = record("signs", "correspondence", skipped="LayerNorm's mean ties the signs")
    widths = [record(name, skipped="the widths differ: 64 and 96") for name in ("max", "sum")]
    tokens = record("neurons", "agreement", skipped="no token is shared")
    found = given(tests=(tied, tokens, *widths), exact_log10_p=None)
    assert found.verdict == "not comparable"
    assert found.reasons == (widths[0].skipped, tokens.skipped, tied.skipped)
