"""Clusters, dendrogram and tree of three and more models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import squareform

from ckptforensics.lineage.tree import (
    clusters_of,
    distance_matrix,
    linkage_of,
    through_others,
    tree_of,
)
from ckptforensics.results import AlignmentRecord, PairRecord
from ckptforensics.results.comparison import DirectionRecord
from tests.support.comparisons import a_test

NAMES = ["base", "tuned", "tuned-more", "other", "other-tuned"]


def pair(a, b, verdict, distance=None, direction="unknown", relation=None):
    return PairRecord(
        a=a,
        b=b,
        verdict=verdict,
        relation=relation,
        direction=DirectionRecord.of_weights(direction, "zeros"),
        distance_deg=distance,
        layer=None if distance is None else 1,
        angles_deg=(distance,),
        layer_map=((1, 1),),
        alignment=AlignmentRecord(kind="none", held_out_fit=None),
        tests=(),
        reasons=("because",),
    )


def every_pair(related):
    """A pair of each two models; `related` has those that are, with their direction."""
    pairs = []
    for i, a in enumerate(NAMES):
        for b in NAMES[i + 1 :]:
            verdict = "derived" if (a, b) in related else "independent"
            pairs.append(pair(a, b, verdict, 80.0, related.get((a, b), "unknown")))
    return pairs


def test_clusters_are_joined_through_a_third_model_and_keep_the_order():
    pairs = every_pair({("base", "tuned"): "unknown", ("tuned", "tuned-more"): "unknown"})
    assert clusters_of(NAMES, pairs) == (
        ("base", "tuned", "tuned-more"),
        ("other",),
        ("other-tuned",),
    )


@pytest.mark.parametrize("verdict", ["inconclusive", "not comparable", "independent"])
def test_what_is_not_known_to_be_related_joins_nothing(verdict):
    assert clusters_of(["a", "b"], [pair("a", "b", verdict, 0.0)]) == (("a",), ("b",))
    assert tree_of([pair("a", "b", verdict, 0.0)], {("a", "b"): 0.0}) == ()


def test_the_tree_is_scipys_minimum_spanning_tree():
    generator = np.random.default_rng(0)
    lengths, weights = {}, np.zeros((5, 5))
    for i, a in enumerate(NAMES):
        for j in range(i + 1, 5):
            lengths[a, NAMES[j]] = weights[i, j] = generator.uniform(0.1, 1)
    pairs = [pair(a, b, "derived", 1.0) for a, b in lengths]
    expected = minimum_spanning_tree(csr_array(weights)).toarray()
    found = {frozenset((edge.a, edge.b)) for edge in tree_of(pairs, lengths)}
    assert found == {frozenset((NAMES[i], NAMES[j])) for i, j in np.argwhere(expected)}


def test_an_edge_points_from_the_older_model():
    pairs = [pair("new", "old", "derived", 3.0, "b->a", "quantized")]
    (edge,) = tree_of(pairs, {("new", "old"): 0.1})
    assert (edge.a, edge.b, edge.directed, edge.relation) == ("old", "new", True, "quantized")
    (edge,) = tree_of([pair("a", "b", "related", 3.0)], {("a", "b"): 0.1})
    assert (edge.a, edge.b, edge.directed) == ("a", "b", False)


def test_explained_edges_go_before_ties_with_a_near_copy():
    """base led to its GGUF copy, to pruned and to tuned; the copy is as near to both as it is."""
    pairs = [
        pair("base", "gguf", "derived", 1.0, "a->b", "quantized"),
        pair("base", "pruned", "derived", 4.0, "a->b", "pruned"),
        pair("base", "tuned", "derived", 4.0, "a->b", "adapter"),
        pair("gguf", "pruned", "derived", 4.0, relation="quantized"),
        pair("gguf", "tuned", "derived", 4.0, relation="quantized"),
        pair("pruned", "tuned", "related", 9.0),
    ]
    lengths = dict(
        zip([(p.a, p.b) for p in pairs], (0.001, 0.1, 0.1, 0.09, 0.09, 0.2), strict=True)
    )
    edges = tree_of(pairs, lengths)
    assert {(e.a, e.b, e.directed, e.relation) for e in edges} == {
        ("base", "gguf", True, "quantized"),
        ("base", "pruned", True, "pruned"),
        ("base", "tuned", True, "adapter"),
    }
    # far away it explains less than what is near
    lengths["base", "tuned"] = 0.3
    assert ("gguf", "tuned") in {(e.a, e.b) for e in tree_of(pairs, lengths)}


def test_distances_and_linkage():
    generator = np.random.default_rng(1)
    full = squareform(generator.uniform(1, 90, 10))
    pairs = [
        pair(NAMES[i], NAMES[j], "independent", float(full[i, j]))
        for i in range(5)
        for j in range(i + 1, 5)
    ]
    matrix = distance_matrix(NAMES, pairs)
    np.testing.assert_allclose(np.array(matrix, float), full)
    np.testing.assert_allclose(linkage_of(matrix), linkage(squareform(full), "average"))


def test_models_without_a_distance_are_farthest_and_two_make_no_dendrogram():
    pairs = [pair("a", "b", "independent", 5.0), pair("a", "c", "independent")]
    pairs.append(pair("b", "c", "independent"))
    matrix = distance_matrix(["a", "b", "c"], pairs)
    assert matrix[0][2] is None
    first, second = linkage_of(matrix)
    assert (first[0], first[1], second[2]) == (0, 1, 90.0)
    assert linkage_of(((0.0, 5.0), (5.0, 0.0))) == ()


def test_no_relative_stands_apart_in_the_dendrogram():
    """A copy in another basis, and one of another width."""
    pairs = [pair("a", "b", "re-parameterised", 88.0), pair("a", "c", "derived")]
    pairs.append(pair("b", "c", "independent", 85.0))
    aligned = a_test("aligned angles", "correspondence", profile=(0.5,))
    pairs[0] = pairs[0].model_copy(update={"tests": (aligned,)})
    matrix = distance_matrix(["a", "b", "c"], pairs, drawn=True)
    assert (matrix[0][1], matrix[0][2], matrix[1][2]) == (0.5, 0.0, 85.0)
    assert distance_matrix(["a", "b", "c"], pairs)[0][1] == 88.0


def triple(direction="unknown", lengths=(0.3, 0.2, 0.12)):
    """Base, and two models whose squared distances to it nearly add up to their own."""
    pairs = [
        pair("a", "b", "derived", 5.0, direction),
        pair("a", "base", "derived", 4.0),
        pair("base", "b", "derived", 3.0),
    ]
    keys = [("a", "b"), ("a", "base"), ("base", "b")]
    return pairs, dict(zip(keys, lengths, strict=True))


def test_a_third_model_between_two_makes_them_related():
    first, *others = through_others(*triple())
    assert (first.verdict, first.relation, first.direction.arrow) == ("related", None, "unknown")
    assert "base lies between" in first.reasons[-1]
    assert [other.verdict for other in others] == ["derived", "derived"]


@pytest.mark.parametrize(
    "lengths",
    [(0.15, 0.2, 0.12), (0.3, 0.28, 0.27), (0.3, 0.31, 0.01)],
    ids=["farther than the two", "siblings of the two", "farther than one"],
)
def test_a_third_model_elsewhere_changes_nothing(lengths):
    pairs, squares = triple(lengths=lengths)
    assert through_others(pairs, squares)[0] == pairs[0]


def test_an_identical_third_model_lies_between_nothing():
    pairs, squares = triple(lengths=(0.3, 0.29, 0.01))
    pairs[1] = pairs[1].model_copy(update={"verdict": "identical"})
    assert through_others(pairs, squares)[0] == pairs[0]


def test_what_the_weights_show_and_what_is_mixed_is_left_alone():
    pairs, squares = triple("a->b")
    assert through_others(pairs, squares) == pairs
    pairs, squares = triple()
    assert through_others(pairs, squares, ["base"]) == pairs
    pairs[1] = pair("a", "base", "derived", 4.0, "a->b")  # base came from a
    assert through_others(pairs, squares)[0] == pairs[0]


def test_two_that_both_came_from_a_third_are_siblings_whatever_they_look_like():
    pairs, squares = triple("a->b", lengths=(1.0, 0.01, 1.0))
    pairs[1] = pair("a", "base", "derived", 4.0, "b->a")
    pairs[2] = pair("base", "b", "derived", 3.0, "a->b")
    assert through_others(pairs, squares)[0].verdict == "related"
