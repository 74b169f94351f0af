"""Channels that no matching enters: what a hidden copy leaves, and what only looks alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable, NotFinite
from ckptforensics.lineage import models as lineage_models
from ckptforensics.lineage.compare import compare_pair
from ckptforensics.lineage.correspondence import equal_parts as parts
from ckptforensics.lineage.correspondence.behind_gates import Behind
from ckptforensics.lineage.correspondence.heads import head_spectra
from ckptforensics.lineage.criteria import robust
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import SIZES
from tests.support.models import save, tiny_gpt2, tiny_llama
from tools import attacks, launder, transforms

ZOO = Path(__file__).resolve().parents[3] / "fixtures" / "zoo"
FUNCTIONS, HEADS, SPACE, EQUAL = robust.CRITERIA


@cache
def zoo(name: str) -> transforms.Model:
    return transforms.read(ZOO / name)


def opened(path: Path) -> Model:
    return Model(path.name, open_checkpoint(path))


def pair_with(model: transforms.Model, folder: Path, other: str = "seed0") -> Pair:
    made = transforms.write(model, folder / "b", "F32")
    return Pair(opened(ZOO / other), opened(made))


def values(pair: Pair) -> list[float]:
    """Of functions, heads and embeddings."""
    found = [criterion.run(pair).statistic for criterion in (FUNCTIONS, HEADS, SPACE)]
    assert None not in found
    return found


# Against other people's arithmetic


def test_spectra_are_those_of_the_dense_products():
    model = opened(ZOO / "seed0")
    attention = model.block(2).attention
    found = head_spectra(attention)
    width = attention.head_dim
    gained = attention.value.weight * attention.norm.gain
    for head, rows in enumerate(found):
        value = np.split(gained, len(gained) // width)[head // attention.repeats]
        product = attention.output.weight[:, head * width : (head + 1) * width] @ value
        logs = np.log(scipy.linalg.svdvals(product.astype(np.float64))[:width])
        np.testing.assert_allclose(rows, logs - logs.mean(), atol=1e-3)


def test_the_space_is_that_of_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 300, 20)).astype(np.float32)
    b[:, :5] = a[:, :5] @ generator.standard_normal((5, 5))
    expected = np.mean(np.cos(scipy.linalg.subspace_angles(a, b)) ** 2)
    assert robust._principal(a, b)[0] == pytest.approx(expected, abs=1e-5)


def test_what_is_explained_is_what_least_squares_explain():
    generator = np.random.default_rng(1)
    space = generator.standard_normal((400, 60)).astype(np.float32) * np.logspace(0, 2, 60)
    target = generator.standard_normal((400, 3)).astype(np.float32)
    target[:, 0] = space @ generator.standard_normal(60)
    fit = np.linalg.lstsq(space, target, rcond=None)[0]
    left = np.linalg.norm(target - space @ fit, axis=0) ** 2 / np.linalg.norm(target, axis=0) ** 2
    assert robust._explained(np.float32(space), target) == pytest.approx(1 - left.mean(), abs=1e-3)


def flat(behind: Behind) -> tuple[np.ndarray, np.ndarray]:
    return behind.up[0], behind.write[0]


def test_sums_behind_a_gate_are_never_formed():
    generator = np.random.default_rng(2)
    one, other = (Behind(*np.float32(generator.standard_normal((2, 1, n, 9)))) for n in (3, 5))
    dense = [sum(np.outer(u, w) for u, w in zip(*b, strict=True)) for b in map(flat, (one, other))]
    assert one.inner(other) == pytest.approx([float((dense[0] * dense[1]).sum())], rel=1e-5)
    assert one.sizes() == pytest.approx([float(np.linalg.norm(dense[0]))], rel=1e-5)


# Relatives


HIDDEN = {
    "laundered": lambda model, generator: launder.everything(model, generator),
    "decoys": attacks.hidden(attacks.decoys),
    "eight copies": attacks.hidden(attacks.copies),
    "planted": attacks.hidden(attacks.planted),
    "2% noise": attacks.hidden(attacks.moved),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_a_copy_from_matchings_leaves_the_channels(name, tmp_path):
    model = HIDDEN[name](zoo("seed0"), np.random.default_rng(3))
    functions, heads, space = values(pair_with(model, tmp_path))
    assert functions > 0.9
    assert heads > 0.6
    assert space > 0.95


@pytest.mark.parametrize("name", ["finetune", "finetune-long", "continued", "lora", "experts"])
def test_training_on_leaves_what_is_behind_gates(name):
    pair = Pair(opened(ZOO / "seed0"), opened(ZOO / name))
    assert FUNCTIONS.run(pair).statistic > 0.3


def test_gate_and_up_may_change_their_names(tmp_path):
    """A name decides nothing: the criterion asks for gates among the up rows, too."""
    tensors = dict(zoo("seed0").tensors)
    for layer in range(zoo("seed0").layers):
        gate, up = (transforms.weight(layer, f"mlp.{part}_proj") for part in ("gate", "up"))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]
    assert FUNCTIONS.run(pair_with(zoo("seed0").change(tensors), tmp_path)).statistic > 0.99


def test_padded_heads_are_the_same_heads(tmp_path):
    model = zoo("seed0")
    width, wider = model.head_dim, model.head_dim + 8
    tensors = {}
    for name, tensor in model.tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            heads = tensor.reshape(-1, width, tensor.shape[1])
            padded = np.pad(heads, ((0, 0), (0, 8), (0, 0)))
            tensors[name] = padded.reshape(-1, tensor.shape[1])
        elif name.endswith("o_proj.weight"):
            heads = tensor.reshape(len(tensor), -1, width)
            tensors[name] = np.pad(heads, ((0, 0), (0, 0), (0, 8))).reshape(len(tensor), -1)
    pair = pair_with(model.change(tensors, head_dim=wider), tmp_path)
    assert HEADS.run(pair).statistic == 1


PARTS = {
    "attention": (["self_attn"], ()),
    "queries, keys": (["q_proj", "k_proj"], ()),
    "down projections": (["down_proj"], ()),
    "gates": (["gate_proj"], ()),
    "input rows": (["up_proj"], ()),
    "FFNs": (["mlp"], ()),
    "embeddings": (["embed"], ()),
    "layer 2": (["proj"], (1,)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_were_taken_over_are_named(name, tmp_path):
    parts, layers = PARTS[name]
    made = attacks.taken(zoo("seed0"), zoo("seed1"), parts, layers)
    found = compare_pair(pair_with(made, tmp_path))
    assert found.verdict == "related"
    assert found.relation == f"shares: {name}"
    assert any("equal bit by bit" in reason for reason in found.reasons)


def test_embeddings_taken_over_in_part_are_told_by_about_that_part(tmp_path):
    rows = 20_000
    sizes = {**SIZES, "vocab_size": rows, "tie_word_embeddings": True}
    models = [
        transforms.read(save(tiny_llama(seed, **sizes), tmp_path / f"m{seed}")) for seed in (0, 1)
    ]
    made = models[1].tensors[transforms.EMBEDDING].copy()
    made[5_000:11_000] = models[0].tensors[transforms.EMBEDDING][5_000:11_000]
    paths = [
        transforms.write(model, tmp_path / name)
        for name, model in (("a", models[0]), ("b", models[1].change({transforms.EMBEDDING: made})))
    ]
    # Of runs that are drawn .3 are equal; the standard deviation is .04.
    (found,) = parts.equal_parts(Pair(*map(opened, paths))).tensors
    assert found.rows == pytest.approx(0.3, abs=0.16)
    (found,) = parts.equal_parts(Pair(*map(opened, paths), level="thorough")).tensors
    assert found.rows == pytest.approx(0.3, abs=1e-6)


def test_equal_rows_are_found_wherever_they_stand(tmp_path):
    """Neurons in another order, stored under another type and name."""
    model = launder.neuron_permutation(zoo("seed0"), np.random.default_rng(4))
    found = EQUAL.run(pair_with(model, tmp_path))
    assert found.statistic == 1
    assert "29 of 29 matrices whole" in found.note


# Independent models


@pytest.mark.parametrize("other", ["seed1", "seed2"])
def test_independent_models_are_silent(other):
    pair = Pair(opened(ZOO / "seed0"), opened(ZOO / other))
    functions, heads, space = values(pair)
    assert functions < 0.1
    assert heads < 0.2
    assert space < 0.4
    assert EQUAL.run(pair).statistic == 0


def test_rows_that_any_model_may_have_are_no_evidence(tmp_path):
    """Zeros, constants, identities and a few levels are equal by construction."""
    eye = {}
    for seed in (1, 2):
        model = zoo(f"seed{seed}")
        eye[seed] = model.map(lambda name, t: np.float32(np.eye(*t.shape)))
    a, b = (transforms.write(m, tmp_path / str(s), "F32") for s, m in eye.items())
    assert EQUAL.run(Pair(opened(a), opened(b))).statistic == 0


def test_another_kind_of_ffn_is_not_measured(tmp_path):
    a, b = save(tiny_llama(0), tmp_path / "a"), save(tiny_gpt2(0), tmp_path / "b")
    with pytest.raises(NotApplicable, match="only one of the models have gates"):
        FUNCTIONS.run(Pair(opened(a), opened(b)))


def test_neurons_that_write_nothing_are_not_measured(tmp_path):
    silent = zoo("seed1").map(lambda name, t: np.zeros_like(t) if "down" in name else t)
    with pytest.raises(NotApplicable, match="writes anything"):
        FUNCTIONS.run(Pair(opened(transforms.write(silent, tmp_path / "a")), opened(ZOO / "seed0")))


def test_equal_parts_of_what_is_left_in_the_files_are_those_of_what_is_decoded(
    tmp_path, monkeypatch
):
    pytest.importorskip("numba")
    made = zoo("seed1").change({n: zoo("seed0").tensors[n] for n in list(zoo("seed0").tensors)[:9]})
    whole = "model.layers.1.mlp.up_proj.weight"
    first = zoo("seed0")
    # The zoo's matrices are too small for any model to be large.
    paths = [transforms.write(m, tmp_path / n, "BF16") for n, m in (("a", first), ("b", made))]
    decoded = parts.equal_parts(Pair(*map(opened, paths)))
    monkeypatch.setattr(lineage_models, "_LARGE", 0)
    assert parts.equal_parts(Pair(*map(opened, paths))) == decoded
    assert decoded.tensors
    damaged = first.tensors[whole].copy()
    damaged[3, 5] = np.nan
    path = transforms.write(first.change({whole: damaged}), tmp_path / "c", "BF16")
    with pytest.raises(NotFinite, match="row 3, column 5"):
        parts.equal_parts(Pair(opened(paths[0]), opened(path)))
