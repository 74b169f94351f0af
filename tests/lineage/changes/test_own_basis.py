"""Kinds of changes that show in a model's own basis, where a map lies between two models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckptforensics.lineage.changes.lattices import find_lattice
from ckptforensics.lineage.changes.relations import find_relation
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import adapted, pair_of
from tools import launder, transforms
from tools.transforms import EMBEDDING, HEAD
from tools.zoo import ZOO


def fp8(matrix):
    scale = np.float32(np.abs(matrix).max() / 448)
    return torch.tensor(matrix / scale).to(torch.float8_e4m3fn).float().numpy() * scale


@pytest.fixture(scope="module")
def model():
    return transforms.read(ZOO / "seed0")


@pytest.fixture(scope="module")
def rotated(model):
    return launder.EXACT["rotation"](model, np.random.default_rng(7))


@pytest.mark.parametrize(
    ("change", "dtype", "relation"),
    [
        (transforms.q4, "F16", "quantized"),
        (lambda m: m.map(lambda _, t: fp8(t)), "F32", "quantized"),
        (lambda m: m.map(lambda _, t: fp8(t)), "BF16", "quantized"),
        (transforms.prune, "BF16", "pruned"),
        (lambda m: adapted(m, 4, 0.1), "F32", "adapter"),
    ],
)
def test_a_rotated_copy_that_was_changed_in_its_own_basis(
    change, dtype, relation, model, rotated, tmp_path
):
    pair = pair_of(tmp_path, model, change(rotated), dtypes=("BF16", dtype))
    first, turned = find_relation(pair)[0], find_relation(Pair(pair.b, pair.a))[0]
    assert (first.relation, turned.relation) == (relation, relation), (first, turned)
    if relation != "adapter":
        assert (first.direction, turned.direction) == ("a->b", "b->a"), (first, turned)


def test_fp8_in_one_basis(model, tmp_path):
    copy = model.map(lambda _, t: fp8(t))
    first = find_relation(pair_of(tmp_path, model, copy))[0]
    assert (first.relation, first.direction) == ("quantized", "a->b")
    assert "FP8, one scale" in first.reason


@pytest.mark.parametrize(("share", "found"), [(0.003, True), (0.007, False)])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(5, 6), slice(None)])
def test_a_grid_is_told_by_all_entries_not_by_where_those_off_it_lie(share, found, rows):
    x = torch.randn(32, 512, generator=torch.Generator().manual_seed(0))
    x = x.to(torch.float8_e4m3fn).float().numpy()
    off = x[rows].reshape(-1)
    off[: int(share * x.size)] *= 1.03
    x[rows] = off.reshape(x[rows].shape)
    told = find_lattice(x, float(np.abs(x).max()))
    assert (told is not None and told.name == "FP8, one scale") == found


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [0.02, 10.0])
def test_steps_of_float8_are_those_of_torch(kind, size):
    x = torch.tensor(np.random.default_rng(0).standard_normal((32, 64)) * size).to(kind).float()
    found = find_lattice(x.numpy(), float(x.abs().max()))
    assert found is not None
    assert found.name == "FP8, one scale"
    large = x.abs() > x.abs().median()
    above = torch.tensor(found.steps)[large].float() + x[large].abs()
    assert torch.equal(above.to(kind).float(), above)


def test_layers_in_another_order_and_layers_of_another_model(model, tmp_path):
    swapped = transforms.stack(*((model, i) for i in (0, 2, 1, 3)))
    found = find_relation(pair_of(tmp_path / "1", model, swapped))
    assert {f.relation for f in found} == {None}
    assert "2 as 3, 3 as 2" in found[0].reason
    other = transforms.read(ZOO / "seed1")
    mixed = transforms.stack((model, 0), (model, 1), (other, 2), (model, 3))
    found = find_relation(pair_of(tmp_path / "2", model, mixed))
    assert {f.relation for f in found} == {None}
    assert "nothing in common" in found[0].reason


def test_tokens_that_were_renumbered(model, tmp_path):
    order = np.random.default_rng(3).permutation(model.config["vocab_size"])
    names = [n for n in (EMBEDDING, HEAD) if n in model.tensors]
    changed = model.change({n: model.tensors[n][order] for n in names})
    (found,) = find_relation(pair_of(tmp_path, model, changed))
    assert found.relation is None
    assert "renumbered" in found.reason
