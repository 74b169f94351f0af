"""Group 3: description after the map is undone, and the witnesses that keep a p-value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.alignment import Alignment, find_alignment
from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.correspondence.matched_layers import sampled_facts, undone
from ckptforensics.lineage.criteria.criterion import Outcome, skip
from ckptforensics.lineage.criteria.description import (
    CRITERIA,
)
from ckptforensics.lineage.criteria.equivalence import same_function
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import log10_binomial, log10_fixed_points
from ckptforensics.lineage.pair import Pair
from tests.support.lineage import SIZES, adapted, llama, pair_of, rounded, tuned
from tests.support.models import save, tiny_llama
from tools import launder, transforms
from tools.transforms import EMBEDDING, FINAL_NORM, HEAD, weight

WITNESSES = ("neuron order", "signs of input rows", "signs of embedding columns")
# What each laundering changes, in the words of `invariant_to`.
CHANGED = {
    "signed-permutation": {"residual basis", "residual signs", "coordinate order"},
    "rotation": {"residual basis", "residual signs", "gains moved into matrices"},
    "gain-swap": {"gains moved into matrices"},
    "residual-scale": {"residual scale"},
    "neuron-permutation": {"neuron order"},
    "updown-scaling": {"neuron scale and sign"},
    "head-permutation": {"head order"},
    "value-basis": {"value basis"},
    "dtype": {"number type"},
    "renaming": {"tensor names"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers."""
    one, other = (llama(tmp_path_factory.mktemp("model"), seed) for seed in (0, 7))
    return transforms.stack((one, 0), (one, 1), (other, 0), (other, 1))


@pytest.fixture(scope="module")
def relative(model):
    return tuned(model, 0.1)


def laundered(model, kind, seed=2):
    return launder.EXACT[kind](model, np.random.default_rng(seed))


def pair(folder, a, b, dtypes=("F32", "F32"), **options) -> Pair:
    return pair_of(folder, a, b, dtypes=dtypes, **options)


def outcomes(of: Pair) -> Mapping[str, Outcome]:
    found = {}
    for test in CRITERIA:
        if of.level in test.levels:
            try:
                found[test.name] = test.run(of)
            except NotApplicable as problem:
                found[test.name] = skip(problem.message)
    return found


# What is claimed of the tests


@pytest.fixture(scope="module")
def plain(model, relative, tmp_path_factory):
    return outcomes(pair(tmp_path_factory.mktemp("plain"), model, relative, level="thorough"))


@pytest.mark.parametrize("kind", sorted(CHANGED))
def test_invariances_that_are_claimed_hold(model, relative, plain, tmp_path, kind):
    other = laundered(relative, kind)
    dtype = "BF16" if kind == "dtype" else "F32"
    found = outcomes(pair(tmp_path, model, other, ("F32", dtype), level="thorough"))
    for test in CRITERIA:
        if CHANGED[kind] - set(test.invariant_to):
            continue
        before, after = plain[test.name], found[test.name]
        assert after.skipped is None, test.name
        # Directions of layers without a gap move a little with any rounding.
        assert after.statistic == pytest.approx(before.statistic, rel=0.03, abs=0.003), test.name
        if before.log10_p is not None:
            assert after.log10_p == pytest.approx(before.log10_p, rel=1e-6), test.name


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("neuron-permutation", "neuron order"),
        ("updown-scaling", "signs of input rows"),
        ("signed-permutation", "signs of embedding columns"),
    ],
)
def test_a_witness_is_gone_where_it_was_laundered(model, tmp_path, kind, gone):
    found = outcomes(pair(tmp_path, model, laundered(model, kind)))
    for name in WITNESSES:
        if name == gone:
            assert found[name].log10_p > -3
        else:
            assert found[name].log10_p < -30, name


def test_a_rotation_that_left_neurons_alone(model, tmp_path):
    found = outcomes(pair(tmp_path, model, laundered(model, "rotation")))
    fixed = found["neuron order"]
    assert fixed.statistic == 1
    assert fixed.log10_p < -1000
    assert found["signs of input rows"].log10_p == pytest.approx(-4 * 256 * math.log10(2))
    assert "one by one" in found["signs of embedding columns"].skipped


def test_a_copy_in_disguise(model, tmp_path):
    both = pair(tmp_path, model, laundered(model, "all"))
    found = outcomes(both)
    assert found["gate-up-down agreement"].statistic == 1
    assert found["embedding fit"].statistic == pytest.approx(1, abs=1e-5)
    assert found["recovered layers"].statistic < 1e-4
    assert found["trigger profile"].statistic > 0.99
    assert all(found[name].log10_p is None or found[name].log10_p > -3 for name in WITNESSES)
    assert undone(both)[:2] == (
        "another basis, rotated",
        f"the residual stream is {both.once(find_alignment).scale:.4g} times as large",
    )
    told = " ".join(undone(both))
    for words in ("neurons in", "up and down scaled", "gains moved", "heads in", "values in"):
        assert words in told


def test_nothing_was_undone_of_a_tuned_model(model, relative, tmp_path):
    assert undone(pair(tmp_path, model, relative)) == ()


def test_independent_models(model, tmp_path):
    other = transforms.random(model, scale=0.1)
    found = outcomes(pair(tmp_path, model, other))
    assert found["embedding fit"].statistic < 0.3
    for name in ("aligned angles", "gate-up-down agreement", "recovered layers", *WITNESSES):
        assert found[name].statistic is None
        assert found[name].skipped
    assert not same_function(pair(tmp_path, model, other)).same


def test_trained_independent_models_and_relatives(tmp_path):
    from tools.zoo import ZOO

    seed0, seed1, finetune = (transforms.read(ZOO / n) for n in ("seed0", "seed1", "finetune"))
    independent = outcomes(pair(tmp_path / "a", seed0, seed1))
    relatives = outcomes(pair(tmp_path / "b", seed0, laundered(finetune, "all")))
    assert independent["embedding fit"].statistic < 0.7 < relatives["embedding fit"].statistic
    assert independent["gate-up-down agreement"].skipped
    assert relatives["gate-up-down agreement"].statistic > 0.9


def test_levels(model, relative, tmp_path):
    found = outcomes(pair(tmp_path, model, relative, level="fast"))
    assert set(found) == {"singular values", "angles between layers"}
    assert all(outcome.skipped is None for outcome in found.values())


def test_profiles_are_by_layer_of_a(model, tmp_path):
    shorter = transforms.drop_layer(model, 1)
    both = pair(tmp_path, model, shorter)
    both.assume(map_layers, ((1, 1), (2, None), (3, 2), (4, 3)))
    found = outcomes(both)
    for name in ("singular values", "vocabulary profile", "recovered layers", "neuron order"):
        assert [value is None for value in found[name].profile] == [False, True, False, False]
    assert found["recovered layers"].statistic == 0


def test_leading_singular_values_are_those_of_a_dense_decomposition(model, relative, tmp_path):
    from ckptforensics.linear import Fit, block_map

    both = pair(tmp_path, model, relative, level="thorough")
    test = next(test for test in CRITERIA if test.name == "20 singular values")
    values = [
        np.linalg.svd(block_map(s.block(2), Fit()).matmat(np.eye(128, dtype=np.float32)))[1][:20]
        for s in both.models
    ]
    wanted = np.abs(np.log(values[0]) - np.log(values[1])).mean()
    assert test.run(both).profile[1] == pytest.approx(wanted, rel=0.02)


# p-values


def test_binomial_tail_is_that_of_scipy():
    for positive, count in ((5, 9), (60, 100), (100, 100), (0, 7), (700, 1000)):
        wanted = stats.binom.logsf(positive - 1, count, 0.5) / math.log(10)
        assert log10_binomial(positive, count) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert log10_binomial(5_000, 5_000) == pytest.approx(-5_000 * math.log10(2))
    assert log10_binomial(0, 0) == 0


@pytest.mark.parametrize(("sampled", "units", "layers"), [(20, 20, 1), (8, 20, 1), (8, 20, 4)])
def test_bound_on_fixed_points(sampled, units, layers):
    """Of any assignment, also one that gives a unit to several, in a random order."""
    generator = np.random.default_rng(0)
    nearest = [generator.integers(units, size=sampled) for _ in range(layers)]
    counts = np.array(
        [
            sum(np.sum(generator.permutation(units)[f] == np.arange(sampled)) for f in nearest)
            for _ in range(20_000)
        ]
    )
    for count in range(1, 6):
        # Three standard errors of the counted share.
        share = np.mean(counts >= count)
        bound = 10 ** log10_fixed_points(count, layers * sampled / units)
        assert share <= bound + 3 * np.sqrt(share / counts.size)


def test_witnesses_of_independent_models_are_exact(tmp_path):
    """With a map that says nothing, neurons keep no order and rows and columns no sign."""
    sizes = {**SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    models = []
    for seed in range(60):
        path = save(tiny_llama(seed, **{**sizes, "head_dim": 8}), tmp_path / str(seed))
        from ckptforensics.checkpoint import open_checkpoint

        models.append(Model(str(seed), open_checkpoint(path)))
    fixed, shares = [], []
    for a, b in zip(models[::2], models[1::2], strict=True):
        both = Pair(a, b)
        both.assume(find_alignment, Alignment("identity"))
        both.assume(map_layers, ((1, 1), (2, 2)))
        found = outcomes(both)
        fixed.append(found["neuron order"].statistic * 128)
        assert all(found[name].log10_p > -3 for name in WITNESSES)
        shares.append((found["signs of input rows"].statistic, found[WITNESSES[2]].statistic))
    # One expected a layer: the mean of 30 pairs is within 4 standard errors of two.
    assert abs(np.mean(fixed) - 2) < 4 * np.sqrt(2 / 30)
    for of, count in ((0, 60), (1, 32)):  # about so many signs each
        assert abs(np.mean([s[of] for s in shares]) - 0.5) < 4 * 0.5 / np.sqrt(count * 30)


# One function or not


@pytest.mark.parametrize("kind", sorted(launder.EXACT))
def test_launderings_compute_the_same(model, tmp_path, kind):
    found = same_function(pair(tmp_path, model, laundered(model, kind)))
    same, told = found.same, found.told
    assert same, told
    assert told.startswith("units and heads of all layers agree to ")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("kind", ["dtype", "rotation", "value-basis", "updown-scaling", "all"])
def test_rounded_launderings_compute_the_same(model, tmp_path, dtype, kind):
    found = same_function(pair(tmp_path, model, laundered(model, kind), ("BF16", dtype)))
    same, told = found.same, found.told
    assert same, told


def test_smollm2_in_disguise(smollm2_f32, tmp_path):
    whole = transforms.read(smollm2_f32)
    few = transforms.stack(*((whole, layer) for layer in (4, 12, 20)))
    few = few.change({EMBEDDING: few.tensors[EMBEDDING][:4096]}, vocab_size=4096)
    for dtype in ("F32", "BF16"):
        both = pair(tmp_path / dtype, few, laundered(few, "all"), ("F32", dtype))
        found = same_function(both)
        same, told = found.same, found.told
        assert same, told
        assert max(fact.error for fact in sampled_facts(both)) < (1e-4 if dtype == "F32" else 1e-2)
    noisy = launder.noise(laundered(few, "all"), 0.02)
    assert not same_function(pair(tmp_path / "noisy", few, noisy)).same


def replaced(model, name):
    """With noise of a thousandth, or in a norm of a hundredth: few entries are small there."""
    generator = np.random.default_rng(0)
    tensor = model.tensors[name]
    share = np.float32(1e-3 if tensor.ndim == 2 else 1e-2)
    noise = share * tensor.std() * generator.standard_normal(tensor.shape)
    return model.change({name: np.float32(tensor + noise)})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (weight(2, "mlp.up_proj"), "layer 3: "),
        (weight(2, "self_attn.v_proj"), "layer 3: heads|v_proj.weight differs"),
        (weight(3, "self_attn.q_proj"), "q_proj.weight differs"),
        (HEAD, "lm_head.weight differs"),
        (FINAL_NORM, "model.norm.weight differs"),
        (EMBEDDING, "the embeddings differ"),
    ],
)
@pytest.mark.parametrize("dtypes", [("F32", "F32"), ("BF16", "F32")])
def test_a_small_change_of_one_tensor_is_another_function(model, tmp_path, name, told, dtypes):
    both = pair(tmp_path, model, replaced(model, name), dtypes)
    if name == EMBEDDING and dtypes[0] == "BF16":
        pytest.skip("a thousandth of the embeddings is less than rounding to BF16")
    found = same_function(both)
    same, why = found.same, found.told
    assert not same
    assert re.search(told, why)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: rounded(tuned(m, 0.01)),
        lambda m: adapted(m, share=0.01),
        transforms.int8,
        transforms.prune,
        transforms.extend_vocabulary,
        transforms.drop_layer,
        transforms.upscale,
        transforms.narrow,
        transforms.narrow_ffn,
        transforms.redraw_embeddings,
        lambda m: launder.noise(m, 0.01),
        lambda m: launder.noise(launder.rotation(m, np.random.default_rng(0)), 0.01),
    ],
)
def test_other_functions(model, tmp_path, change):
    found = same_function(pair(tmp_path, model, change(model)))
    same, why = found.same, found.told
    assert not same
    assert why


def test_experts_are_not_compared(model, tmp_path):
    both = pair(tmp_path, transforms.upcycle(model), transforms.upcycle(model, seed=1))
    with pytest.raises(NotApplicable, match="experts"):
        same_function(both)
