"""Verdicts on a real model and versions of it; `lineage_zoo --real` has the whole table."""

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


@pytest.fixture(scope="module")
def base(smollm2_bf16):
    model = open_model(smollm2_bf16)
    model.sign()
    return model


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_of_a_real_model(name, base, smollm2_bf16, tmp_path):
    change, expected = VERSIONS[name]
    path = transforms.write(change(transforms.read(smollm2_bf16)), tmp_path / name, "F32")
    found = compare_pair(Pair(base, open_model(path)))
    assert (found.verdict, found.relation) == expected, found.reasons
