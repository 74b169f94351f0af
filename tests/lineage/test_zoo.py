"""Comparisons of really trained models whose lineage is known, against what they should find.

`python -m benchmarks.lineage_zoo` compares every pair; here are enough of them that a kind, a
laundering or an independent model that is no longer recognised fails.
"""

from __future__ import annotations

import pytest

from ckptforensics.lineage.compare import compare, compare_pair, open_model
from ckptforensics.lineage.pair import Pair
from tools.zoo import ORIGINS, RELATIONS, zoo

PARENT = "seed0"
INDEPENDENT = ("seed1", "seed2", "random")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    opened = {name: open_model(path) for name, path in zoo(tmp_path_factory.mktemp("zoo")).items()}
    for name, model in opened.items():
        model.name = name
    return opened


def found(expected, models):
    a, b = models[expected.a], models[expected.b]
    others = [models[name] for name in expected.given if name not in (expected.a, expected.b)]
    if not others:
        return compare_pair(Pair(a, b))
    document = compare([a, b, *others])
    return next(pair for pair in document.pairs if (pair.a, pair.b) == (a.name, b.name))


def check(expected, models):
    record = found(expected, models)
    told = (record.verdict, record.relation, record.direction.arrow, record.reasons)
    assert record.verdict == expected.verdict, told
    if expected.kind is not None:
        assert record.relation == expected.kind, told
    if expected.direction != "unknown":
        assert record.direction.arrow == expected.direction, told


# Relatives of which neither is the older; docs/lineage-measurements.md lists those that are taken
# for parent and child.
SIBLINGS = (
    ("finetune", "finetune-long"),
    ("finetune", "vocabulary"),
    ("lora", "redrawn-embeddings"),
    ("average", "drop-layer"),
    ("experts", "upscaled"),
)


def with_parent():
    """seed0 and what was made from it, and siblings; merges have a test of their own."""
    return [
        r
        for r in RELATIONS
        if (r.a, r.b) in SIBLINGS
        or (
            PARENT in (r.a, r.b)
            and r.verdict != "independent"
            and r.kind != "merge"
            and "laundered" not in r.b
        )
    ]


@pytest.mark.parametrize("expected", with_parent(), ids=lambda r: f"{r.a}-{r.b}")
def test_what_was_made_from_a_model_is_found_with_kind_and_direction(expected, models):
    check(expected, models)


def laundered():
    return [r for r in RELATIONS if r.a in (PARENT, "finetune") and "laundered" in r.b]


@pytest.mark.parametrize("expected", laundered(), ids=lambda r: f"{r.a}-{r.b}")
def test_hidden_copies_are_found(expected, models):
    check(expected, models)


def independent():
    """Every model with one independent model: a verdict on it must not come from its change."""
    apart = [r for r in RELATIONS if r.verdict == "independent"]
    return [r for i, r in enumerate(apart) if i % 8 == 0]


@pytest.mark.parametrize("expected", independent(), ids=lambda r: f"{r.a}-{r.b}")
def test_models_of_other_seeds_are_independent(expected, models):
    record = found(expected, models)
    assert record.verdict == "independent", record.reasons
    assert record.relation is None
    assert record.direction.arrow == "unknown"


def test_a_family_makes_one_cluster_and_a_tree_through_its_base(models):
    names = ["finetune", "seed1", "seed0", "finetune-long", "int8", "seed2"]
    document = compare([models[name] for name in names])
    assert set(document.clusters) == {
        ("finetune", "seed0", "finetune-long", "int8"),
        ("seed1",),
        ("seed2",),
    }
    edges = {frozenset((edge.a, edge.b)): edge for edge in document.tree}
    assert set(edges) == {
        frozenset(("seed0", other)) for other in ("finetune", "finetune-long", "int8")
    }
    quantized = edges[frozenset(("seed0", "int8"))]
    assert (quantized.a, quantized.b, quantized.directed) == ("seed0", "int8", True)
    assert not edges[frozenset(("seed0", "finetune"))].directed


@pytest.mark.parametrize("merged", ["average", "ties", "dare"])
def test_a_merge_is_found_among_its_relatives(merged, models):
    names = [merged, *ORIGINS[merged].parents, "seed1"]
    if "seed0" not in names:
        names.append("seed0")
    document = compare([models[name] for name in names])
    (found,) = document.merges
    assert found.model == merged
    assert {"finetune", "finetune-long"} <= set(found.parents) | {"seed0"}
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-6) or merged != "average"
