"""What looks lost can be added by whoever comes second: such a copy has no direction."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.lineage.changes.lost import gap_below
from ckptforensics.lineage.changes.merges import find_merge
from ckptforensics.lineage.changes.relations import find_relation
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import adapted, pair_of
from tools import transforms
from tools.transforms import EMBEDDING, HEAD, weight
from tools.zoo import ZOO


@pytest.fixture(scope="module")
def model():
    return transforms.read(ZOO / "seed0")


def told(folder, a, b, dtypes=("BF16", "BF16")):
    pair = pair_of(folder, a, b, dtypes=dtypes)
    return find_relation(pair)[0], find_relation(Pair(pair.b, pair.a))[0]


def drawn(shape, size):
    return size * np.random.default_rng(1).standard_normal(shape)


def wider(model, writes):
    """With 64 random units a layer, which write so much of what others write."""
    changed = {}
    for layer in range(model.layers):
        for part, axis in (("gate", 0), ("up", 0), ("down", 1)):
            name = weight(layer, f"mlp.{part}_proj")
            t = model.tensors[name]
            shape = (64, t.shape[1]) if axis == 0 else (t.shape[0], 64)
            more = drawn(shape, t.std() * (writes if axis else 1))
            changed[name] = np.float32(np.concatenate([t, more], axis))
    size = model.config["intermediate_size"] + 64
    return model.change(changed, intermediate_size=size)


def deeper(model, writes):
    """With a random layer at the end, which writes so much of what others write."""
    grown = transforms.stack(*((model, i) for i in (*range(model.layers), model.layers - 1)))
    prefix = f"model.layers.{model.layers}."
    return grown.change(
        {
            n: np.float32(drawn(t.shape, t.std() * (writes if n.endswith(WRITE) else 1)))
            for n, t in grown.tensors.items()
            if n.startswith(prefix) and t.ndim == 2
        }
    )


WRITE = ("o_proj.weight", "down_proj.weight")


@pytest.mark.parametrize("add", [wider, deeper])
@pytest.mark.parametrize("writes", [0.01, 1.0])
def test_units_and_layers_that_were_added_are_not_taken_for_lost_ones(add, writes, model, tmp_path):
    for found in told(tmp_path, model, add(model, writes)):
        assert found.relation == ("width-changed" if add is wider else "depth-changed")
        assert found.direction == "unknown"
        assert "next to nothing" in found.why if writes < 1 else "random" in found.why


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_layer_removed_from_a_trained_model(layer, model, tmp_path):
    first, turned = told(tmp_path, model, transforms.drop_layer(model, layer))
    assert (first.relation, first.direction) == ("depth-changed", "a->b")
    assert turned.direction == "b->a"
    assert "to forge it" in first.why


def test_units_removed_from_a_trained_model(model, tmp_path):
    first, turned = told(tmp_path, model, transforms.narrow_ffn(model))
    assert (first.relation, first.direction) == ("width-changed", "a->b")
    assert turned.direction == "b->a"


@pytest.mark.parametrize("prune", [transforms.prune, transforms.prune_2_of_4])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_zeros_that_were_filled(prune, size, model, tmp_path):
    pruned = prune(model)
    filled = pruned.map(
        lambda _, t: np.float32(np.where(t == 0, drawn(t.shape, size * t.std()), t))
    )
    for found in told(tmp_path, pruned, filled):
        assert (found.relation, found.direction) == ("pruned", "unknown")
        assert "gap" in found.why


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_pruned_copy_keeps_its_direction(share, model, tmp_path):
    first, turned = told(tmp_path, model, transforms.prune(model, share))
    assert (first.direction, turned.direction) == ("a->b", "b->a")


@pytest.mark.parametrize("name", ["standard_normal", "standard_cauchy", "laplace"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_no_gap_below_what_any_pruning_left(name, share):
    generator = np.random.default_rng(2)
    x = np.abs(np.float32(getattr(generator, name)(size=40_000)))
    by_size = x < np.quantile(x, share)
    by_chance = generator.random(x.size) < share
    for mask in (by_size, by_chance):
        assert not gap_below(x[mask], x[~mask])
        assert gap_below(x[mask] * np.float32(1e-3), x[~mask])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_digits_that_round_away(share, model, tmp_path):
    """Of a whole interval they are as the digits that rounding takes; of a part they are not."""
    from ckptforensics.lineage.changes.lattices import round_to, spacing

    generator = np.random.default_rng(3)

    def more(t):
        half = spacing(t, "BF16") / 2 * share * 0.999
        x = np.float32(t + half * generator.uniform(-1, 1, t.shape))
        return np.where(round_to(x, "BF16") == t, x, t)

    full = model.map(lambda _, t: more(t))
    first, turned = told(tmp_path, full, model, ("F32", "BF16"))
    expected = ("a->b", "b->a") if share == 1 else ("unknown", "unknown")
    assert first.what == "rounding"
    assert (first.direction, turned.direction) == expected
    assert "digits" in first.why


@pytest.mark.parametrize("rows", [4, 64])
def test_a_vocabulary_that_was_cut(rows, model, tmp_path):
    cut = model.change(
        {n: model.tensors[n][:-rows] for n in (EMBEDDING, HEAD) if n in model.tensors},
        vocab_size=model.config["vocab_size"] - rows,
    )
    for found in told(tmp_path, model, cut):
        assert (found.what, found.direction) == ("vocabulary", "unknown")


def test_an_expert_taken_out(model, tmp_path):
    upcycled = transforms.upcycle(model, 4, 0)
    trained = upcycled.change(
        {
            n: np.float32(t + drawn(t.shape, 0.1 * t.std()))
            for n, t in upcycled.tensors.items()
            if ".experts." in n and ".experts.0." not in n
        }
    )
    for found in told(tmp_path, trained, model):
        assert (found.relation, found.direction) == ("upcycled", "unknown")
        assert "taken out" in found.reason


@pytest.mark.parametrize("sizes", [(0.05, 0.05), (0.02, 0.3)])
def test_adapters_of_one_base_have_no_direction(sizes, model, tmp_path):
    one, other = (adapted(model, 4, size, seed) for seed, size in enumerate(sizes))
    assert {found.direction for found in told(tmp_path, one, other)} == {"unknown"}


@pytest.mark.parametrize("kind", ["average", "extrapolated", "adapter"])
def test_a_mixture_is_told_from_its_extrapolated_parent(kind, model, tmp_path):
    """Three models on one line: only a mean that was rounded last shows which of them is it."""
    tuned = transforms.read(ZOO / ("lora" if kind == "adapter" else "finetune"))
    far = model.change({n: 2 * tuned.tensors[n] - t for n, t in model.tensors.items()})
    if kind == "average":
        far = transforms.read(ZOO / "finetune-long")
        tuned = transforms.average(model, far)
    ends = pair_of(tmp_path, model, far)
    middle = pair_of(tmp_path / "m", tuned, tuned).a
    merge = find_merge(middle, ends.models, EFFORTS["default"])
    assert merge is not None
    assert merge.only is (kind == "average")
