"""Models that are mixtures of others, and models that only look a little like one."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.changes.merges import find_merge
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Model
from tests.support.lineage import llama, rounded, tuned


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, two fine-tunes of it, a fine-tune of the first of them, and merges, opened."""
    from tools import transforms

    folder = tmp_path_factory.mktemp("merges")
    base = llama(folder)
    one, other = rounded(tuned(base, 0.05, seed=1)), rounded(tuned(base, 0.06, seed=2))
    made = {
        "base": base,
        "one": one,
        "other": other,
        "third": tuned(base, 0.05, seed=4),
        "chain": tuned(one, 0.05, seed=3),
        "average": transforms.average(one, other),
        "uneven": one.map(lambda n, t: np.float32(0.3 * t + 0.7 * other.tensors[n])),
        "ties": transforms.ties(base, (one, other)),
        "dare": transforms.dare(base, (one, other)),
    }
    return {
        name: Model(name, open_checkpoint(transforms.write(model, folder / name)))
        for name, model in made.items()
    }


def search(models, name, *candidates):
    return find_merge(models[name], [models[c] for c in candidates], EFFORTS["default"])


def test_an_average(models):
    found = search(models, "average", "base", "one", "other", "third")
    assert found is not None
    assert found.method == "average"
    assert found.parents == ("one", "other")
    assert found.weights == pytest.approx((0.5, 0.5), abs=0.01)
    assert all(low <= 0.505 and high >= 0.495 for low, high in found.interval)
    assert len(found.by_layer) == 2
    assert found.gain > 0.9


def test_uneven_weights(models):
    found = search(models, "uneven", "one", "other")
    assert found is not None
    assert found.weights == pytest.approx((0.3, 0.7), abs=0.01)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_sparse_merges(models, method):
    found = search(models, method, "base", "one", "other")
    assert found is not None
    assert found.method == method
    assert found.parents == ("base", "one", "other")
    assert sum(found.weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("one", ("base", "chain")),  # the middle of a chain
        ("one", ("base", "chain", "other")),
        ("third", ("base", "one", "other")),  # a sibling
        ("chain", ("base", "one", "other")),
        ("base", ("one", "other", "third")),
        ("one", ("average", "other", "base")),  # a parent of a merge
        ("base", ("ties", "dare", "one", "other")),
    ],
)
def test_what_is_no_merge(models, name, candidates):
    assert search(models, name, *candidates) is None


def test_a_merge_of_which_a_parent_is_missing(models):
    assert search(models, "average", "base", "one") is None
