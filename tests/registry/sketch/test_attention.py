"""What attention does to single tokens: the channel that splitting heads does not move."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.layers import Attention, Linear, load_values
from ckptforensics.registry.sketch.attention import shape
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.sketch.record import sketch_of
from ckptforensics.registry.sketch.score import LIMITS, scores
from ckptforensics.registry.sketch.spectra import KINDS, RANKS, likeness
from tools import attacks, launder, transforms
from tools.zoo import ZOO

NEAR = KINDS["attention"].near


def of_layers(path) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    return np.stack([shape(load_values(checkpoint, n)) for n in checkpoint.architecture.analysed])


def drawn(seed: int, width: int = 512, inner: int = 512) -> Attention:
    """Attention as it is before it was trained."""
    generator = np.random.default_rng(seed)
    value, output = (
        generator.standard_normal(shape).astype(np.float32)
        for shape in ((inner, width), (width, inner))
    )
    return Attention(None, Linear(value), Linear(output), head_dim=64, repeats=1)


@pytest.mark.parametrize("name", ["seed0", "experts"])
def test_values_are_those_of_the_dense_product(name):
    """Each value head under the columns of all query heads that share it."""
    attention = load_values(open_checkpoint(ZOO / name), 2)
    size = attention.head_dim
    heads = attention.output.weight.shape[1] // size
    rows = [h // attention.repeats * size + i for h in range(heads) for i in range(size)]
    product = attention.output.weight @ (attention.value.weight * attention.norm.gain)[rows]
    logs = np.log(np.linalg.svd(product.astype(np.float64), compute_uv=False)[:RANKS])
    np.testing.assert_allclose(shape(attention), (logs - logs.mean()) / logs.std(), atol=1e-5)


CHANGES = {
    "everything": launder.everything,
    "heads split": attacks.split_heads,
    "all together": lambda model, g: launder.everything(attacks.split_and_renamed(model, g), g),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_what_computes_the_same_has_the_same_values(name, dtype, tmp_path):
    """In another basis, order and division; of BF16 they move by its rounding."""
    changed = CHANGES[name](transforms.read(ZOO / "seed0"), np.random.default_rng(3))
    found = of_layers(transforms.write(changed, tmp_path / "changed", dtype))
    moved = np.sqrt(np.square(found - of_layers(ZOO / "seed0")).mean(axis=1))
    assert moved.max() < (1e-5 if dtype == "F32" else NEAR / 6)


def test_split_heads_compute_what_they_did(tmp_path):
    """Without which the attack would be no copy: against transformers."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = transforms.read(ZOO / "seed0")
    changed = attacks.split_heads(model, np.random.default_rng(3))
    made = transforms.write(changed, tmp_path / "split", "F32")
    ids = torch.arange(60)[None] * 7
    with torch.inference_mode():
        before, after = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (ZOO / "seed0", made)
        )
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


def test_only_attention_sees_a_copy_with_split_heads_and_renamed_tokens(tmp_path):
    changed = attacks.split_and_renamed(transforms.read(ZOO / "seed0"), np.random.default_rng(3))
    found, seed0 = (
        sketch_of(sketch(open_checkpoint(path)).found)
        for path in (transforms.write(changed, tmp_path / "changed"), ZOO / "seed0")
    )
    alike = scores(found, seed0)
    assert {name for name, value in alike.items() if value > LIMITS[name]} == {"attention"}
    assert alike["attention"] > 0.99


@pytest.mark.parametrize(("width", "inner"), [(96, 48), (512, 512), (512, 128)])
def test_random_models_are_not_alike(width, inner):
    """Though their leading values are nearly the same: they are seen by how these are spaced."""
    models = [
        np.stack([shape(drawn(100 * i + layer, width, inner)) for layer in range(16)])
        for i in range(4)
    ]
    for a, b in combinations(models, 2):
        assert likeness(a, b, "attention") < LIMITS["attention"] / 2


def narrow(attention: Attention, inner: int) -> Attention:
    """Its first values alone."""
    value, output = attention.value.weight[:inner], attention.output.weight[:, :inner]
    return replace(attention, value=Linear(value), output=Linear(output), head_dim=inner)


def test_fewer_values_than_ranks_are_interpolated():
    """As of tiny models for tests, of which 'none' could never be said otherwise."""
    few = narrow(drawn(0), 6)
    product = few.output.weight.astype(np.float64) @ few.value.weight
    logs = np.log(np.linalg.svd(product, compute_uv=False)[:6])
    logs = np.interp(np.linspace(0, 5, RANKS), np.arange(6), logs)
    np.testing.assert_allclose(shape(few), (logs - logs.mean()) / logs.std(), atol=1e-5)


def test_layers_that_say_nothing_are_left_out():
    attention = drawn(0)
    assert shape(narrow(attention, 3)) is None
    alike = np.linalg.qr(attention.value.weight)[0]
    assert shape(replace(attention, value=Linear(alike), output=Linear(alike.T.copy()))) is None
    huge = Linear(1e19 * attention.output.weight)
    assert shape(replace(attention, value=huge, output=huge)) is None
    nothing = Linear(np.zeros_like(attention.output.weight))
    assert shape(replace(attention, output=nothing)) is None
    assert shape(attention) is not None


def test_models_without_such_layers_have_no_attention_in_their_sketch(tmp_path):
    model = transforms.read(ZOO / "seed0")
    silent = {name: 0 * t for name, t in model.tensors.items() if name.endswith("o_proj.weight")}
    document = sketch(open_checkpoint(transforms.write(model.change(silent), tmp_path / "model")))
    assert (document.found.heads, document.found.attention) == (None, None)
    assert {"heads", "attention"} <= {row.what for row in document.skipped}


def test_layers_that_write_next_to_nothing_take_no_place(tmp_path):
    """However many were put before and behind the others."""
    model = transforms.read(ZOO / "seed0")
    most = KINDS["attention"].most
    idle = attacks.idle_layers(model, 2 * most, np.random.default_rng(5))
    document = sketch(open_checkpoint(transforms.write(idle, tmp_path / "deep")))
    assert document.found.attention.total == model.layers + 2 * most
    np.testing.assert_allclose(
        sketch_of(document.found).spectra["attention"], of_layers(ZOO / "seed0"), atol=1e-3
    )


def test_of_many_layers_those_that_write_most_are_kept(tmp_path):
    model = transforms.read(ZOO / "seed0")
    most = KINDS["attention"].most
    deep = transforms.stack(*((model, i % model.layers) for i in range(5 * model.layers)))
    assert deep.layers > most
    document = sketch(open_checkpoint(transforms.write(deep, tmp_path / "deep")))
    assert (document.found.attention.count, document.found.attention.total) == (most, deep.layers)
    own = of_layers(ZOO / "seed0")
    kept = sketch_of(document.found).spectra["attention"]
    # The first layer of the four writes least, and is the one that goes.
    counts = [np.sum(np.abs(kept - row).max(axis=1) < 1e-3) for row in own]
    assert counts == [1, 5, 5, 5]


def test_tokens_only_say_that_attention_was_left_out():
    document = sketch(open_checkpoint(ZOO / "seed0"), heads=False)
    assert document.found.attention is None
    assert {row.what: row.reason for row in document.skipped} == dict.fromkeys(
        ("heads", "attention"), "not asked for"
    )
