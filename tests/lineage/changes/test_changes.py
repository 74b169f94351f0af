"""What changed between two models in one basis, and who came first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.changes import changes, lattices
from ckptforensics.lineage.changes.relations import (
    find_changes,
    find_relation,
    identical,
    left_out,
)
from ckptforensics.lineage.changes.tensor_pairs import tensor_pairs
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.containers import write_model_gguf
from tests.support.lineage import adapted, llama, pair_of, rounded, tuned
from tools import transforms


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("llama"))


def both_ways(pair):
    """The strongest finding of a pair, and of the pair turned round."""
    turned = Pair(pair.b, pair.a, pair.level)
    return find_relation(pair)[0], find_relation(turned)[0]


def expect(pair, relation, direction, what="change"):
    opposite = {"a->b": "b->a", "b->a": "a->b", "unknown": "unknown"}[direction]
    found, turned = both_ways(pair)
    assert (found.relation, found.direction, found.what) == (relation, direction, what), found
    assert (turned.relation, turned.direction) == (relation, opposite), turned
    return found


def test_identical_files(model, tmp_path):
    pair = pair_of(tmp_path, model, model)
    assert identical(pair)
    assert all(change.equal == 1 and change.relative == 0 for change in find_changes(pair))


def test_one_byte_is_enough_not_to_be_identical(model, tmp_path):
    pair = pair_of(tmp_path, model, model)
    file = next((tmp_path / "b").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not identical(pair)


def test_other_types_and_missing_tensors_are_not_identical(model, tmp_path):
    assert not identical(pair_of(tmp_path / "1", model, model, dtypes=("BF16", "F32")))
    fewer = type(model)(
        {**model.config, "tie_word_embeddings": True},
        {n: t for n, t in model.tensors.items() if n != "lm_head.weight"},
    )
    assert not identical(pair_of(tmp_path / "2", model, fewer))


def test_same_values_in_a_wider_type(model, tmp_path):
    pair = pair_of(tmp_path, model, model, dtypes=("BF16", "F32"))
    expect(pair, None, "unknown", "spelling")


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_cast_rounds_one_way(model, tmp_path, dtype):
    full = tuned(model)
    pair = pair_of(tmp_path, full, full, dtypes=("F32", dtype))
    expect(pair, None, "a->b", "rounding")


@pytest.mark.parametrize(("share", "dtype"), [(0.03, "BF16"), (0.002, "BF16"), (0.03, "F32")])
def test_a_dense_change_has_no_direction(model, tmp_path, share, dtype):
    changed = tuned(model, share)
    pair = pair_of(tmp_path, model, changed, dtypes=(dtype, dtype))
    expect(pair, "finetune", "unknown")
    record = next(c for c in find_changes(pair) if c.tensor.endswith("1.mlp.up_proj.weight"))
    a, b = model.tensors[record.tensor], changed.tensors[record.tensor]
    b = b if dtype == "F32" else rounded(changed).tensors[record.tensor]
    assert record.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert record.equal == pytest.approx(np.mean(a == b), abs=1e-6)
    assert record.rank is None
    assert record.layer == 2


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("BF16", "F32"), ("F16", "F16")])
def test_a_low_rank_is_an_adapter_and_the_rounding_says_which_is_the_sum(model, tmp_path, dtypes):
    pair = pair_of(tmp_path, model, adapted(model, rank=4), dtypes=dtypes)
    found = expect(pair, "adapter", "a->b")
    assert "rank 4 " in found.reason
    assert {c.rank for c in find_changes(pair) if c.tensor.endswith("proj.weight")} <= {4, None}


def test_a_low_rank_between_two_rounded_sums_has_no_direction(model, tmp_path):
    one, other = adapted(tuned(model), 2, seed=5), adapted(tuned(model), 2, seed=6)
    found = expect(pair_of(tmp_path, one, other), "adapter", "unknown")
    assert "third" in found.reason


def test_an_adapter_of_one_kind_of_matrix(model, tmp_path):
    every = adapted(model)
    some = model.map(lambda n, t: every.tensors[n] if "q_proj" in n or "v_proj" in n else t)
    expect(pair_of(tmp_path, model, some), "adapter", "a->b")


@pytest.mark.parametrize("dtypes", [("F32", "F32"), ("F32", "BF16")])
def test_an_adapter_on_a_quantized_model_that_leaves_most_as_it_was(model, tmp_path, dtypes):
    """What lies on a grid in both models is what did not change, or was only stored anew."""
    base = transforms.int8(model)
    every = adapted(base, rank=8)
    some = base.map(lambda n, t: every.tensors[n] if "q_proj" in n or "v_proj" in n else t)
    found, turned = both_ways(pair_of(tmp_path, base, some, dtypes=dtypes))
    assert (found.relation, turned.relation) == ("adapter", "adapter"), (found, turned)
    assert "rank 8 in 4 of 4 changed matrices" in found.reason
    assert found.direction in ("a->b", "unknown")


def test_quantized_in_the_matrices_that_changed(model, tmp_path):
    every = transforms.int8(model)
    some = model.map(lambda n, t: every.tensors[n] if "q_proj" in n or "v_proj" in n else t)
    found = expect(pair_of(tmp_path, model, some, dtypes=("F32", "F32")), "quantized", "a->b")
    assert "4 of 4 changed matrices of B lie on a quantizer's grid" in found.reason


def test_a_quantized_copy_and_an_adapter_of_one_base_have_no_arrow(model, tmp_path):
    """Most matrices differ by rounding alone, and some do not: neither was made from the other."""
    every = adapted(model, rank=8)
    other = model.map(lambda n, t: every.tensors[n] if "q_proj" in n or "v_proj" in n else t)
    copy = transforms.int8(model)
    found = expect(pair_of(tmp_path, copy, other, dtypes=("F32", "F32")), "quantized", "unknown")
    assert "rounding explains all but 4" in found.reason
    assert "third model" in found.reason


def in_groups(model, bits, size):
    """Every matrix of the layers rounded symmetrically, with a scale for so many neighbours."""

    def change(_, t):
        groups = t.reshape(-1, size)
        scale = np.abs(groups).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.float32(np.round(groups / scale) * scale).reshape(t.shape)

    return model.map(change)


def between_limits(model, size):
    """Every matrix in 16 levels from the smallest to the largest of so many neighbours."""

    def change(_, t):
        groups = t.reshape(-1, size)
        low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
        scale = (high - low) / 15
        return np.float32(np.round((groups - low) / scale) * scale + low).reshape(t.shape)

    return model.map(change)


@pytest.mark.parametrize(
    ("bits", "size", "dtype"),
    [(8, 32, "BF16"), (8, 128, "F16"), (8, 128, "BF16"), (4, 32, "BF16"), (4, 64, "F32"),
     (4, 128, "BF16")],
)  # fmt: skip
def test_quantized_in_groups(model, tmp_path, bits, size, dtype):
    pair = pair_of(tmp_path, model, in_groups(model, bits, size), dtypes=("BF16", dtype))
    found = expect(pair, "quantized", "a->b")
    # Matrices of 128 columns have one group a row.
    assert f"{bits} bits" in found.reason
    assert f"groups of {size}" in found.reason or "a scale a row" in found.reason


@pytest.mark.parametrize("size", [32, 128])
def test_quantized_between_limits(model, tmp_path, size):
    pair = pair_of(tmp_path, model, between_limits(model, size), dtypes=("BF16", "BF16"))
    assert "4 bits" in expect(pair, "quantized", "a->b").reason


def test_the_fixtures_quantizers(model, tmp_path):
    from tools import transforms

    for i, (change, dtype) in enumerate(((transforms.int8, "F16"), (transforms.q4, "BF16"))):
        pair = pair_of(tmp_path / str(i), model, change(model), dtypes=("BF16", dtype))
        expect(pair, "quantized", "a->b")


def test_noise_is_on_no_grid(tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("BF16", "F16", "F32"):
        for scale in (1.0, 1e-3):
            x = generator.standard_normal((32, 576)).astype(np.float32) * np.float32(scale)
            x = x if kind == "F32" else lattices.round_to(x, kind)
            assert lattices.grid(x) == kind
            assert lattices.find_lattice(x, float(np.abs(x).max())) is None
            sparse = np.where(generator.random(x.shape) < 0.75, 0, x).astype(np.float32)
            assert lattices.find_lattice(sparse, float(np.abs(sparse).max())) is None


def test_quantized_after_other_changes_has_no_direction(model, tmp_path):
    changed = in_groups(tuned(model, 0.3), 8, 128)
    expect(pair_of(tmp_path, model, changed), "finetune", "unknown")


def test_quantized_then_tuned(model, tmp_path):
    quantized = in_groups(model, 4, 32)
    changed = tuned(quantized)
    # Seen from what was quantized, nothing shows the grid any more.
    expect(pair_of(tmp_path / "1", model, changed), "finetune", "unknown")
    # Rounding would have left the tuned model farther from the grid than it is.
    expect(pair_of(tmp_path / "2", quantized, changed), "finetune", "a->b")


def test_pruned(model, tmp_path):
    from tools import transforms

    found = expect(pair_of(tmp_path / "1", model, transforms.prune(model)), "pruned", "a->b")
    assert "50%" in found.reason
    assert "pattern" not in found.reason
    pair = pair_of(tmp_path / "2", model, transforms.prune_2_of_4(model))
    assert "2:4" in expect(pair, "pruned", "a->b").reason
    record = next(c for c in find_changes(pair) if c.tensor.endswith("down_proj.weight"))
    assert record.zeros == (0.0, 0.5)
    assert record.equal == 0.5


def test_pruned_and_quantized_are_both_found(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, in_groups(transforms.prune(model, 0.3), 8, 128))
    assert {f.relation for f in find_relation(pair)} == {"pruned", "quantized"}


def test_pruned_and_tuned_where_it_is_not_0(model, tmp_path):
    from tools import transforms

    pruned = transforms.prune(model)
    changed = tuned(pruned)
    kept = pruned.map(lambda n, t: np.where(t == 0, 0, changed.tensors[n]))
    # The pruned model may be that of a relative: all else changed.
    expect(pair_of(tmp_path, model, kept), "pruned", "unknown")


def test_dense_training_of_a_pruned_model(model, tmp_path):
    from tools import transforms

    pruned = transforms.prune(model)
    dense = tuned(pruned)
    # Zeros that changed as much as all else may be a rounding's too, of a model in another basis.
    expect(pair_of(tmp_path / "1", pruned, dense), "finetune", "unknown")
    expect(pair_of(tmp_path / "2", model, dense), "finetune", "unknown")


def test_rows_appended_to_the_vocabulary(model, tmp_path):
    from tools import transforms

    pair = pair_of(tmp_path, model, transforms.extend_vocabulary(model))
    found = expect(pair, None, "a->b", "vocabulary")
    assert "64 more rows" in found.reason
    both = pair_of(tmp_path / "2", model, tuned(transforms.extend_vocabulary(model)))
    assert {f.what for f in find_relation(both)} == {"vocabulary", "change"}


def test_rows_removed_from_the_vocabulary(model, tmp_path):
    shorter = model.change(
        {n: t[:-40] for n, t in model.tensors.items() if len(t) == model.config["vocab_size"]},
        vocab_size=model.config["vocab_size"] - 40,
    )
    found = expect(pair_of(tmp_path, model, shorter), None, "unknown", "vocabulary")
    assert "not as initialised" in found.reason


def test_only_the_embeddings_or_the_head(model, tmp_path):
    from tools import transforms

    drawn = pair_of(tmp_path / "1", model, transforms.redraw_embeddings(model))
    expect(drawn, None, "a->b", "embeddings")
    head = model.tensors[transforms.HEAD]
    noise = np.random.default_rng(1).standard_normal(head.shape)
    changed = model.change({transforms.HEAD: np.float32(head + 0.05 * noise)})
    found = expect(pair_of(tmp_path / "2", model, changed), "finetune", "unknown")
    assert "only lm_head.weight" in found.reason


def test_independent_models_have_nothing_in_common(model, tmp_path, tmp_path_factory):
    other = llama(tmp_path_factory.mktemp("independent"), seed=7)
    assert find_relation(pair_of(tmp_path, model, other)) == ()


def test_names_of_another_family(model, tmp_path):
    from tools import launder

    renamed = launder.EXACT["renaming"](model, None)
    pair = pair_of(tmp_path / "1", model, renamed)
    expect(pair, None, "unknown", "spelling")
    seen = {c.tensor for c in find_changes(pair)}
    assert {"layer 1 gate", "layer 1 up", "layer 1 value"} <= seen
    changed = launder.EXACT["renaming"](tuned(model), None)
    expect(pair_of(tmp_path / "2", model, changed), "finetune", "unknown")


@pytest.mark.parametrize("kind", ["gain-swap", "neuron-permutation", "updown-scaling"])
def test_changes_are_measured_after_the_map(model, tmp_path, kind):
    from tools import launder

    changed = launder.EXACT[kind](tuned(model, 0.03), np.random.default_rng(3))
    pair = pair_of(tmp_path, model, changed, dtypes=("BF16", "F32"))
    found = find_relation(pair)[0]
    assert (found.relation, found.direction) == ("finetune", "unknown")
    # What is only in another order is compared as it is stored.
    end = "gate_proj.weight" if kind == "neuron-permutation" else "gate (after the map)"
    gates = [c for c in find_changes(pair) if c.tensor.endswith(end)]
    assert len(gates) == 2
    assert all(c.relative == pytest.approx(0.03, rel=0.05) for c in gates)


def test_fast_comparisons_look_at_no_weights(model, tmp_path):
    pair = pair_of(tmp_path, model, tuned(model), level="fast")
    assert find_changes(pair) == ()
    assert find_relation(pair) == ()
    assert pair.a.bytes_read == pair.b.bytes_read == 0


def test_large_models_are_sampled_and_that_is_said(model, tmp_path):
    pair = pair_of(tmp_path, model, tuned(model))
    assert left_out(pair) is None
    effort = replace(pair.effort, entry_bytes=0, entry_layers=1)
    sampled = Pair(pair.a, pair.b, effort=effort)
    assert {c.layer for c in find_changes(sampled)} == {None, 1}
    assert left_out(sampled) == "what changed was looked for in layers 1 of 2 alone"
    assert find_relation(sampled)[0].relation == "finetune"
    assert left_out(Pair(pair.a, pair.b, "thorough")) is None


def test_spacing_is_that_of_the_types():
    import torch

    x = np.float32([1.0, 1.5, 0.75, -3.0, 1e-3, 2.0**-20])
    for kind, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        values = torch.tensor(x).to(dtype)
        above = torch.nextafter(values.abs(), torch.tensor(float("inf"), dtype=dtype))
        expected = (above.double() - values.abs().double()).numpy()
        np.testing.assert_array_equal(lattices.spacing(values.float().numpy(), kind), expected)
        np.testing.assert_array_equal(
            lattices.round_to(x, kind) if kind != "F32" else x, values.float().numpy()
        )


@pytest.mark.parametrize(("kind", "share"), [("Q4_0", 0.1), ("Q8_0", 0.02)])
def test_a_relative_of_what_was_quantized_is_not_its_source(kind, share, model, tmp_path):
    """Half a step is measured, whatever the container says of the encoding."""
    arrays = {n: np.ascontiguousarray(t, np.float32) for n, t in model.tensors.items()}
    copy = write_model_gguf(tmp_path / "q.gguf", arrays, model.config, encoding=kind)
    for name, plain in (("source", model), ("relative", tuned(model, share))):
        path = transforms.write(plain, tmp_path / name, "F32")
        pair = Pair(Model("a", open_checkpoint(path)), Model("b", open_checkpoint(copy)))
        first = find_relation(pair)[0]
        expected = ("quantized", "a->b") if name == "source" else ("finetune", "unknown")
        assert (first.relation, first.direction) == expected, first
        assert "100% or more" not in first.reason


def test_tensors_keep_their_order_whatever_their_size(model, tmp_path, monkeypatch):
    pair = pair_of(tmp_path, model, tuned(model, 0.1))
    together = [record.tensor for record in find_changes(pair)]
    entries = sorted(min(t.rows) * t.columns for t in tensor_pairs(pair))
    monkeypatch.setattr(changes, "_SMALL", entries[len(entries) // 2])
    monkeypatch.setattr(changes, "_MOST_TOGETHER", 3)
    pair = pair_of(tmp_path, model, tuned(model, 0.1))
    assert [record.tensor for record in find_changes(pair)] == together
    assert together == [t.tensor for t in tensor_pairs(pair)]
