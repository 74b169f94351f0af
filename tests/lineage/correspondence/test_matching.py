"""Units and heads of corresponding layers, against launderings whose orders are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.matched_layers import match_errors
from ckptforensics.lineage.correspondence.matching import (
    assign,
    in_coordinates_of_b,
    match_layer,
    match_units,
)
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Units
from tests.support.lineage import llama, pair_of, tuned
from tools import launder, transforms
from tools.transforms import weight


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers."""
    one, other = (llama(tmp_path_factory.mktemp("model"), seed) for seed in (0, 7))
    return transforms.stack((one, 0), (one, 1), (other, 0), (other, 1))


def laundered(model, kind, seed=1):
    return launder.EXACT[kind](model, np.random.default_rng(seed))


def matched(folder, a, b, layer=2, dtype="F32"):
    return match_layer(pair_of(folder, a, b, dtypes=("F32", dtype)), layer, layer)


def rows_in(a, b):
    """For each row of b the row of a that is equal to it."""
    equal = (a[:, None] == b[None]).all(axis=2)
    assert (equal.sum(axis=0) == 1).all()
    return equal.argmax(axis=0)


def products(model, layer):
    """(heads, hidden_size, hidden_size) W_O W_V diag(g) of a LLaMA, formed in float64."""
    t, size = model.tensors, model.head_dim
    gain = t[weight(layer, "input_layernorm")].astype(np.float64)
    value = t[weight(layer, "self_attn.v_proj")] * gain
    output = t[weight(layer, "self_attn.o_proj")].astype(np.float64)
    each = model.config["num_attention_heads"] // model.config["num_key_value_heads"]
    heads = range(model.config["num_attention_heads"])
    return np.stack(
        [
            output[:, h * size : (h + 1) * size] @ value[h // each * size : (h // each + 1) * size]
            for h in heads
        ]
    )


@pytest.mark.parametrize("kind", sorted(launder.EXACT))
def test_every_laundering_is_undone(model, tmp_path, kind):
    match = matched(tmp_path, model, laundered(model, kind, seed=2))
    assert max(match_errors(match)) < 1e-5
    assert np.max(match.heads.errors) < 1e-5
    assert match.kept == (kind not in ("neuron-permutation", "all"))
    assert match.heads.kept == (kind not in ("head-permutation", "all"))
    assert match.heads.basis_kept == (kind not in ("value-basis", "all"))
    assert (match.scales != 1).any() == (kind in ("updown-scaling", "all"))


def test_neuron_order_and_factors_are_the_ones_that_were_drawn(model, tmp_path):
    other = laundered(laundered(model, "neuron-permutation"), "updown-scaling", seed=2)
    match = matched(tmp_path, model, other)
    gates, ups = (
        [m.tensors[weight(1, f"mlp.{part}_proj")] for m in (model, other)]
        for part in ("gate", "up")
    )
    order = rows_in(*gates)
    np.testing.assert_array_equal(match.order, order)
    np.testing.assert_allclose(match.scales, (ups[1] / ups[0][order]).mean(axis=1), rtol=1e-5)
    assert (match.scales < 0).any()


def test_a_neuron_that_writes_nothing_or_reads_nothing(model, tmp_path):
    tensors = {}
    for part, unit in (("up", 5), ("down", 9)):
        name = weight(1, f"mlp.{part}_proj")
        tensors[name] = model.tensors[name].copy()
        tensors[name][unit if part == "up" else np.s_[:, unit]] = 0
    dead = model.change(tensors)
    match = matched(tmp_path, dead, laundered(dead, "updown-scaling"))
    assert max(match_errors(match)) < 1e-6
    assert (match.scales != 1).all()


def test_heads_are_compared_by_their_products(model, tmp_path):
    other = launder.noise(laundered(model, "value-basis"), 0.05)
    heads = matched(tmp_path, model, other).heads
    one, two = products(model, 1), products(other, 1)
    wanted = np.linalg.norm(two - one, axis=(1, 2)) / np.linalg.norm(two, axis=(1, 2))
    np.testing.assert_allclose(heads.errors, wanted, rtol=1e-4)
    assert heads.kept
    assert not heads.basis_kept


def test_head_order_is_the_one_that_was_drawn(model, tmp_path):
    other = laundered(model, "head-permutation")
    columns = [m.tensors[weight(1, "self_attn.o_proj")].T for m in (model, other)]
    size = model.head_dim
    order = rows_in(*columns)[::size] // size
    np.testing.assert_array_equal(matched(tmp_path, model, other).heads.order, order)


def test_two_heads_that_change_places(model, tmp_path):
    """Most heads are where they were: those two are found all the same."""
    size, heads = model.head_dim, model.config["num_attention_heads"]
    order = np.arange(heads)
    order[[0, 1]] = 1, 0  # they share their values
    columns = (order[:, None] * size + np.arange(size)).ravel()
    tensors = {}
    for layer in range(model.layers):
        for part in ("o", "q"):
            name = weight(layer, f"self_attn.{part}_proj")
            tensor = model.tensors[name]
            tensors[name] = tensor[:, columns] if part == "o" else tensor[columns]
    found = matched(tmp_path, model, model.change(tensors)).heads
    np.testing.assert_array_equal(found.order, order)
    assert found.errors.max() < 1e-6


def test_some_neurons_in_another_order(model, tmp_path):
    order = np.arange(model.config["intermediate_size"])
    order[10:40] = np.roll(order[10:40], 7)
    tensors = {}
    for layer in range(model.layers):
        for part in ("gate", "up", "down"):
            name = weight(layer, f"mlp.{part}_proj")
            tensor = model.tensors[name]
            tensors[name] = tensor[:, order] if part == "down" else tensor[order]
    match = matched(tmp_path, model, model.change(tensors))
    np.testing.assert_array_equal(match.order, order)
    assert not match.kept
    assert max(match_errors(match)) == 0


def test_ffns_of_other_widths(model, tmp_path):
    narrow = transforms.narrow_ffn(model)
    gates = [m.tensors[weight(1, "mlp.gate_proj")] for m in (model, narrow)]
    order = rows_in(*gates)
    down = matched(tmp_path / "down", model, narrow)
    np.testing.assert_array_equal(down.order, order)
    assert max(match_errors(down)) == 0
    up = matched(tmp_path / "up", narrow, model)
    wanted = np.full(len(gates[0]), -1)
    wanted[order] = np.arange(order.size)
    np.testing.assert_array_equal(up.order, wanted)
    assert max(match_errors(up)) == 0
    assert not up.units_a.down[:, wanted < 0].any()
    assert not up.cosines[wanted < 0].any()


def test_experts_that_were_copied_from_an_ffn(model, tmp_path):
    shuffled = laundered(model, "neuron-permutation")
    experts = transforms.upcycle(shuffled)
    pair = pair_of(tmp_path, model, experts)
    units = in_coordinates_of_b(pair, pair.a.units(2), pair.a.block(2).ffn)
    order = rows_in(*(m.tensors[weight(1, "mlp.gate_proj")] for m in (model, shuffled)))
    for expert in pair.b.ffns(2):
        match = match_units(units, expert, np.random.default_rng(0), EFFORTS["default"])
        np.testing.assert_array_equal(match.order, order)
        assert match.cosines.min() > 0.9999
    with pytest.raises(NotApplicable, match="experts"):
        match_layer(pair, 2, 2)


def test_pruning_and_tuning_are_no_factors(model, tmp_path):
    for name, other in (
        ("prune", transforms.prune(model)),
        ("tuned", tuned(model)),
        ("noise", launder.noise(model, 0.3)),
    ):
        match = matched(tmp_path / name, model, other)
        assert match.kept
        assert (match.scales == 1).all()
        assert match.heads.kept
        assert match.heads.basis_kept


def test_noise_on_top_of_all(model, tmp_path):
    other = laundered(model, "all")
    order = matched(tmp_path / "clean", model, other).order
    match = matched(tmp_path / "noisy", model, launder.noise(other, 0.02))
    np.testing.assert_array_equal(match.order, order)
    assert 0.01 < max(match_errors(match)) < 0.2


def test_residual_scale_behind_a_norm_is_taken_out(model, tmp_path):
    """Where a norm follows the branch, what it writes has no size of its own."""
    pair = pair_of(tmp_path, model, laundered(model, "residual-scale"), dtypes=("F32", "F32"))
    ffn = pair.a.block(1).ffn
    scaled = in_coordinates_of_b(pair, pair.a.units(1), ffn)
    kept = in_coordinates_of_b(pair, pair.a.units(1), replace(ffn, post_norm=ffn.norm))
    assert pair.once(find_alignment).scale > 2
    np.testing.assert_allclose(scaled.down, pair.once(find_alignment).scale * kept.down, rtol=1e-6)


def test_large_ffns_are_matched_in_a_subspace(model, tmp_path):
    other = launder.noise(laundered(model, "all"), 0.01)
    exact = matched(tmp_path / "exact", model, other)
    pair = pair_of(tmp_path / "sketched", model, other, dtypes=("F32", "F32"))
    pair.effort = replace(pair.effort, unit_products=0, unit_sketch=64)
    sketched = match_layer(pair, 2, 2)
    np.testing.assert_array_equal(sketched.order, exact.order)
    np.testing.assert_allclose(sketched.cosines, exact.cosines, atol=1e-6)


def test_a_tie_is_no_order():
    generator = np.random.default_rng(0)
    fixed = [
        np.sum(assign(np.ones((50, 50), np.float32), generator) == np.arange(50))
        for _ in range(200)
    ]
    assert 0.7 < np.mean(fixed) < 1.4  # one by chance
    constant = Units(np.ones((50, 8), np.float32), np.ones((50, 8), np.float32), np.ones((8, 50)))
    other = replace(constant, gate=-constant.gate)
    match = match_units(constant, other, generator, EFFORTS["default"])
    assert match.order.tolist() != list(range(50))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_assignment_is_the_best_one(shape):
    from scipy.optimize import linear_sum_assignment

    generator = np.random.default_rng(3)
    score = generator.standard_normal(shape).astype(np.float32)
    order = assign(score, generator)
    rows, columns = linear_sum_assignment(score, maximize=True)
    kept = np.flatnonzero(order >= 0)
    assert np.unique(order[kept]).size == kept.size == min(shape)
    assert score[order[kept], kept].sum() == pytest.approx(score[rows, columns].sum())


def test_gated_and_plain_ffns_do_not_match():
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(NotApplicable, match="gate"):
        match_units(
            Units(rows, rows, rows),
            Units(None, rows, rows),
            np.random.default_rng(0),
            EFFORTS["default"],
        )
