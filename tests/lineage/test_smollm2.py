"""Verdicts on a real model's first layers; `lineage_zoo --real` has the whole table."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.lineage.compare import compare_pair, open_model
from ckptforensics.lineage.pair import Pair
from tools import launder, transforms

VERSIONS = {
    "laundered": (
        lambda model: launder.EXACT["all"](model, np.random.default_rng(5)),
        ("re-parameterised", None),
    ),
    "shortened": (transforms.drop_layer, ("derived", "depth-changed")),
    "random": (transforms.random, ("independent", None)),
}


# Layers of it: as many as the levels sample, so that the rest of it would not be looked at more.
LAYERS = 12


@pytest.fixture(scope="module")
def first(smollm2_bf16):
    """Its first layers."""
    model = transforms.read(smollm2_bf16)
    return transforms.stack(*((model, layer) for layer in range(LAYERS)))


@pytest.fixture(scope="module")
def base(first, tmp_path_factory):
    model = open_model(transforms.write(first, tmp_path_factory.mktemp("base"), "BF16"))
    model.sign()
    return model


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_of_a_real_model(name, base, first, tmp_path):
    change, expected = VERSIONS[name]
    path = transforms.write(change(first), tmp_path / name, "F32")
    found = compare_pair(Pair(base, open_model(path)))
    assert (found.verdict, found.relation) == expected, found.reasons
