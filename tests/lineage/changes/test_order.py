"""Copies of which some layers are in another order, or spelled otherwise, and all are changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.compare import compare_pair, seed_of
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tools import launder, transforms
from tools.zoo import ZOO

SHARE = 0.02
KINDS = ("neuron_permutation", "head_permutation", "value_basis", "gain_swap", "updown_scaling")
# Kinds that leave every stored number as it is.
ORDERS = KINDS[:2]
# Layers from 0, of four.
LAYERS = ((0,), (2,), (0, 2), (1, 2, 3), (0, 1, 2, 3))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model = transforms.read(ZOO / "seed0")
    return model, transforms.write(model, tmp_path_factory.mktemp("base"), "BF16")


def compared(path, other):
    a, b = (Model(p.name, open_checkpoint(p)) for p in (path, other))
    return compare_pair(Pair(a, b, seed=seed_of(a, b)))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_another_order_are_compared_in_that_order(kind, layers, base, tmp_path):
    model, path = base
    changed = launder.noise(model, SHARE)
    whole = getattr(launder, kind)(changed, np.random.default_rng(3))
    begin = tuple(f"model.layers.{layer}." for layer in layers)
    tensors = {
        n: whole.tensors[n] if n.startswith(begin) else t for n, t in changed.tensors.items()
    }
    made = transforms.write(replace(whole, tensors=tensors), tmp_path / "made", "BF16")
    found = compared(path, made)
    assert (found.verdict, found.relation) == ("derived", "finetune")
    assert not any("nothing in common" in reason for reason in found.reasons)
    matrices = [c for c in found.changes if c.relative > 0 and "norm" not in c.tensor]
    assert len(matrices) >= 4 * len({c.layer for c in matrices if c.layer})
    # Heads, of which only products are known, change by both of their maps.
    assert max(c.relative for c in matrices) < 2 * SHARE
    assert {c.layer for c in matrices} - {None} == {1, 2, 3, 4}
    stored = all("after the map" not in c.tensor for c in found.changes)
    assert stored == (kind in ORDERS)
    assert bool(found.not_compared) == (not stored)


@pytest.mark.parametrize("kind", ORDERS)
def test_numbers_in_another_order_are_those_that_are_stored(kind, base, tmp_path):
    """So that a quantizer's grid, a mask or a rank is found in them as in others."""
    model, path = base
    coarse = transforms.q4(model)
    made = getattr(launder, kind)(coarse, np.random.default_rng(3))
    plain = compared(path, transforms.write(coarse, tmp_path / "plain", "F32"))
    found = compared(path, transforms.write(made, tmp_path / "made", "F32"))
    assert (found.relation, found.direction) == (plain.relation, plain.direction)
    assert found.relation == "quantized"
    assert {c.tensor: c.relative for c in found.changes} == pytest.approx(
        {c.tensor: c.relative for c in plain.changes}, rel=1e-5
    )
