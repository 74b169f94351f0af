"""Layers removed or repeated, units and coordinates removed, dense FFNs copied to experts."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.lineage.changes.relations import find_relation
from ckptforensics.lineage.changes.structure import find_structure
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import llama, pair_of, tuned
from tools import attacks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Six layers, each of its own kind."""
    from tools import transforms

    folder = tmp_path_factory.mktemp("structure")
    parts = [(llama(folder, seed), layer) for seed in range(3) for layer in range(2)]
    return transforms.stack(*parts)


def expect(pair, relation, direction, *words):
    opposite = {"a->b": "b->a", "b->a": "a->b", "unknown": "unknown"}[direction]
    assert len(find_structure(pair)) == 1
    found = find_relation(pair)[0]
    assert (found.relation, found.direction) == (relation, direction), found
    assert all(word in found.reason for word in words), found.reason
    turned = find_relation(Pair(pair.b, pair.a, pair.level))[0]
    assert (turned.relation, turned.direction) == (relation, opposite), turned


def test_nothing_of_the_structure_changed(model, tmp_path):
    assert find_structure(pair_of(tmp_path, model, tuned(model))) == ()


def test_a_layer_removed(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, transforms.drop_layer(model, 2))
    expect(pair, "depth-changed", "a->b", "layers 3 of A are missing in B")


def test_layers_removed_and_all_else_tuned(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, tuned(transforms.drop_layer(model, 3)))
    expect(pair, "depth-changed", "unknown", "third model")
    assert {f.relation for f in find_relation(pair)} == {"depth-changed", "finetune"}


def test_layers_removed_and_quantized(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, transforms.int8(transforms.drop_layer(model, 3)))
    expect(pair, "depth-changed", "a->b")
    assert {f.relation for f in find_relation(pair)} == {"depth-changed", "quantized"}


def test_what_points_in_opposite_directions_has_none(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, transforms.int8(model), transforms.drop_layer(model, 3))
    expect(pair, "depth-changed", "unknown", "third")
    assert {f.relation for f in find_relation(pair)} == {"depth-changed", "quantized"}


def test_a_layer_less_does_not_relate_independent_models(model, tmp_path, tmp_path_factory):
    from tools import transforms

    other = llama(tmp_path_factory.mktemp("independent"), seed=9)
    fewer = transforms.stack(*((other, i % 2) for i in range(5)))
    assert find_relation(pair_of(tmp_path, model, fewer)) == ()


def test_layers_repeated(model, tmp_path):
    from tools import transforms

    deeper = transforms.stack(*((model, i) for i in (0, 1, 2, 3, 2, 3, 4, 5)))
    pair = pair_of(tmp_path, model, deeper)
    expect(pair, "depth-changed", "a->b", "repeat layers 3 to 4 of A")


def test_layers_added_that_do_nothing_yet(model, tmp_path):
    from tools import transforms

    silent = model.map(
        lambda n, t: np.zeros_like(t) if n.endswith(("o_proj.weight", "down_proj.weight")) else t
    )
    parts = [(model, 0), (model, 1), (model, 2), (silent, 2), (model, 3), (model, 4), (model, 5)]
    expect(pair_of(tmp_path, model, transforms.stack(*parts)), "depth-changed", "a->b")


def test_units_removed(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, transforms.narrow_ffn(model))
    expect(pair, "width-changed", "a->b", "256 units a layer to 172")


def test_units_removed_and_all_else_tuned(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, tuned(transforms.narrow_ffn(model), 0.1))
    expect(pair, "width-changed", "unknown", "third model")


def test_units_added_that_are_copies(model, tmp_path):
    tensors = {}
    for name, t in model.tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name] = np.concatenate([t, t[:64]])
        elif name.endswith("down_proj.weight"):
            half = t.copy()
            half[:, :64] /= 2
            tensors[name] = np.concatenate([half, half[:, :64]], axis=1)
    wider = model.change(tensors, intermediate_size=320)
    # Output columns were halved with them, which is a change of what both have.
    expect(pair_of(tmp_path, model, wider), "width-changed", "unknown", "copies")


def test_units_added_that_are_0(model, tmp_path):
    tensors = {}
    for name, t in model.tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name] = np.pad(t, ((0, 64), (0, 0)))
        elif name.endswith("down_proj.weight"):
            tensors[name] = np.pad(t, ((0, 0), (0, 64)))
    wider = model.change(tensors, intermediate_size=320)
    expect(pair_of(tmp_path, model, wider), "width-changed", "a->b", "add nothing")


def test_coordinates_removed(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, transforms.narrow(model))
    expect(pair, "width-changed", "a->b", "128 coordinates to 96", "256 units a layer to 172")


def test_independent_models_of_other_sizes(model, tmp_path, tmp_path_factory):
    from tools import transforms

    other = llama(tmp_path_factory.mktemp("independent"), seed=9)
    narrow = transforms.narrow_ffn(transforms.stack(*((other, i % 2) for i in range(6))))
    assert find_relation(pair_of(tmp_path, model, narrow)) == ()


@pytest.fixture(scope="module")
def upcycled(model):
    from tools import transforms

    return transforms.upcycle(model, 4, 0)


def test_dense_to_experts(model, upcycled, tmp_path):
    expect(pair_of(tmp_path / "1", model, upcycled), "upcycled", "a->b", "every expert of B")
    # Attention was tuned too: the experts may be copies of a relative's FFN.
    pair = pair_of(tmp_path / "2", model, tuned(upcycled, 0.1))
    expect(pair, "upcycled", "unknown", "every expert of B")


def test_experts_of_another_model(upcycled, tmp_path, tmp_path_factory):
    from tools import transforms

    other = llama(tmp_path_factory.mktemp("independent"), seed=9)
    dense = transforms.stack(*((other, i % 2) for i in range(6)))
    assert find_structure(pair_of(tmp_path, dense, upcycled)) == ()


def test_one_expert_made_dense(model, upcycled, tmp_path, tmp_path_factory):
    from tools import transforms

    folder = tmp_path_factory.mktemp("experts")
    others = [llama(folder, seed) for seed in (11, 12, 13)]
    stacks = [transforms.stack(*((o, i % 2) for i in range(6))) for o in others]
    changed = {}
    for name, t in upcycled.tensors.items():
        parts = name.split(".experts.")
        if len(parts) == 2 and not parts[1].startswith("0."):
            expert, role = parts[1].split(".", 1)
            source = {"w1": "gate", "w3": "up", "w2": "down"}[role.split(".")[0]]
            layer = parts[0].split(".")[2]
            kept = stacks[int(expert) - 1].tensors[f"model.layers.{layer}.mlp.{source}_proj.weight"]
            assert kept.shape == t.shape
            changed[name] = kept
    found = find_structure(pair_of(tmp_path, model, upcycled.change(changed)))
    assert [(f.relation, f.direction) for f in found] == [("width-changed", "unknown")]


WIDER = {
    "decoys": attacks.decoys,
    "8 copies": attacks.copies,
    "zeros behind the stream": attacks.padded,
    "noise reads what is behind": lambda m, g: attacks.padded(m, g, noise=True),
}


@pytest.mark.parametrize("name", WIDER)
def test_what_hides_in_more_width_is_width(name, tmp_path):
    """Found in another basis too; of units that have copies any one will do."""
    original = llama(tmp_path, 0)
    made = attacks.hidden(WIDER[name])(original, np.random.default_rng(1))
    (found,) = find_structure(pair_of(tmp_path, original, made))
    assert found.relation == "width-changed"
    assert "100% of the units" in found.reason or "or are copies" in found.reason
