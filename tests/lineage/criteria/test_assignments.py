"""Tests by assignment against enumeration, their null, and launderings of one model."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.criteria import assignments, directions
from ckptforensics.lineage.criteria.criterion import Outcome, skip
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Level, Pair
from tests.support.models import save, tiny_gpt2, tiny_llama
from tests.support.signatures import exchangeable, signature, signed_pair, unit
from tools import launder
from tools.transforms import read, stack, write

TESTS = {test.name: test for test in (*directions.CRITERIA, *assignments.CRITERIA)}
BY_ASSIGNMENT = [test.name for test in assignments.CRITERIA]


def models(*paths: Path) -> list[Model]:
    return [Model(path.name, open_checkpoint(path)) for path in paths]


def compared(a: Model, b: Model, level: Level = "default", seed: int = 0) -> Pair:
    """A pair whose layers correspond by their order."""
    pair = Pair(a, b, level, seed=seed)
    pair.assume(map_layers, tuple(zip(a.layers, b.layers, strict=False)))
    return pair


def independent(folder: Path, seeds: range, **changes: object) -> list[Model]:
    return models(*(save(tiny_llama(seed, **changes), folder / str(seed)) for seed in seeds))


# The bound


@pytest.mark.parametrize(("units", "layers"), [(5, 1), (4, 2), (3, 3)])
def test_bound_is_above_the_enumerated_p_and_is_its_smallest_factorial_moment(units, layers):
    one = [sum(i == at for at, i in enumerate(p)) for p in permutations(range(units))]
    total = np.array(one)
    for _ in range(layers - 1):
        total = (total[:, None] + np.array(one)).ravel()
    for count in range(units * layers + 1):
        bound = 10 ** assignments.log10_fixed_points(count, layers)
        assert bound >= np.mean(total >= count) * (1 - 1e-9)
        if count <= units:  # E[K choose j] / (count choose j) is what bounds P(K >= count)
            moments = [
                np.mean([math.comb(int(k), j) for k in total]) / math.comb(count, j)
                for j in range(count + 1)
            ]
            assert bound == pytest.approx(min(1, *moments))


def test_log10_p_of_smollm2_and_its_fine_tune():
    """All 1,536 neurons of a layer fixed: log10 p = -4229."""
    assert assignments.log10_fixed_points(1536) == pytest.approx(-4229, abs=1)
    assert assignments.log10_fixed_points(0, 12) == assignments.log10_fixed_points(1) == 0


@pytest.mark.parametrize("kind", ["noise", "few levels", "hubs"])
def test_fixed_points_of_independent_models_are_those_of_random_permutations(kind):
    generator = np.random.default_rng(len(kind))
    counts = []
    for _ in range(400):
        similarity = generator.standard_normal((12, 12))
        if kind == "few levels":
            similarity = np.round(similarity)
        elif kind == "hubs":
            similarity += 5 * np.abs(generator.standard_cauchy(12))
        counts.append(assignments.fixed_points(similarity, generator))
    expected = 400 * stats.poisson.pmf([0, 1, 2], 1)  # of 12 units to 10 digits
    seen = np.bincount(np.minimum(counts, 3), minlength=4)
    assert stats.chisquare(seen, [*expected, 400 - expected.sum()]).pvalue > 0.01


def test_nothing_to_choose_by_is_not_the_identity():
    """A solver leaves units in place where all are alike; 400 means of 1 have a variance of 1."""
    generator = np.random.default_rng(12)
    counts = [assignments.fixed_points(np.ones((50, 50)), generator) for _ in range(400)]
    assert np.mean(counts) == pytest.approx(1, abs=4 / 20)
    assert assignments.fixed_points(np.eye(50), generator) == 50


def test_combined_is_the_smallest_p_times_the_tests_that_ran():
    ran = [Outcome(1.0, log10_p=p) for p in (-4.0, -100.0, -0.1)]
    found = assignments.combined([*ran, skip("not run"), Outcome(1.0)])
    assert found == pytest.approx(-100 + math.log10(3))
    assert assignments.combined([Outcome(1.0, log10_p=0.0)] * 2) == 0
    assert assignments.combined([skip("not run")]) is None


# The tests


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> list[Model]:
    return independent(tmp_path_factory.mktemp("independent"), range(40))


@pytest.mark.parametrize("level", ["default", "thorough"])
@pytest.mark.parametrize("name", BY_ASSIGNMENT)
def test_independent_models_have_as_many_fixed_points_as_chance_gives(name, level, forty):
    outcomes = [
        TESTS[name].run(compared(a, b, level, seed)) for seed, (a, b) in enumerate(pairwise(forty))
    ]
    expected = len(outcomes) * (3 if name == "gate rows" else 1)
    total = sum(outcome.statistic or 0 for outcome in outcomes)
    assert 0.001 < stats.poisson.cdf(total, expected) < 0.999
    assert min(outcome.log10_p or 0 for outcome in outcomes) > -4


def test_features_of_independent_models_of_other_depths(forty, tmp_path):
    deeper = independent(tmp_path, range(40, 55), num_hidden_layers=4)
    outcomes = [
        TESTS["coordinate features"].run(compared(a, b, "thorough", seed))
        for seed, (a, b) in enumerate(zip(forty, deeper, strict=False))
    ]
    total = sum(outcome.statistic or 0 for outcome in outcomes)
    assert 0.001 < stats.poisson.cdf(total, len(outcomes)) < 0.999


def test_features_of_a_model_with_layers_taken_out():
    generator = np.random.default_rng(13)
    u, v = exchangeable(generator, 12, 128), exchangeable(generator, 12, 128)
    kept = [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    pair = signed_pair(signature(u, v), signature(-u[kept], v[kept]))
    assert TESTS["coordinate features"].run(pair).log10_p < -20


class _OnlySigns:
    """A generator that permutes nothing."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.choice = generator.choice
        self.permutation = np.arange


KINDS = {
    "residual signs": lambda m, g: launder.signed_permutation(m, _OnlySigns(g)),
    "gains moved into matrices": launder.gain_swap,
    "neuron order": launder.neuron_permutation,
    "neuron scale and sign": launder.updown_scaling,
    "head order": launder.head_permutation,
    "value basis": launder.value_basis,
    "residual scale": launder.residual_scale,
    "tensor names": launder.renaming,
    "number type": lambda m, g: m,
}
EVERYTHING = {
    "signed permutation": launder.signed_permutation,
    "rotation": launder.rotation,
    "all": launder.everything,
}


@pytest.fixture(scope="module")
def laundered(tmp_path_factory):
    """A model, and a function that launders it."""
    folder = tmp_path_factory.mktemp("laundered")
    original = save(tiny_llama(attention_bias=False, mlp_bias=False), folder / "original")

    def make(kind: str) -> Path:
        path = folder / kind.replace(" ", "-")
        if not path.exists():
            change = (KINDS | EVERYTHING)[kind]
            model = change(read(original), np.random.default_rng(1))
            write(model, path, "BF16" if kind == "number type" else "F32")
        return path

    return original, make


@pytest.mark.parametrize("name", TESTS)
def test_invariances_that_are_claimed_hold(name, laundered):
    """The floor of permutations, or nine in ten of the most digits that fixed points can give."""
    original, make = laundered
    assert set(TESTS[name].invariant_to) <= set(KINDS)
    before = TESTS[name].run(compared(*models(original, original), "thorough")).log10_p
    assert before < -3.6
    for kind in TESTS[name].invariant_to:
        after = TESTS[name].run(compared(*models(original, make(kind)), "thorough")).log10_p
        assert after < 0.9 * before, kind


@pytest.mark.parametrize("kind", [*EVERYTHING, "neuron order"])
@pytest.mark.parametrize("name", TESTS)
def test_other_launderings_leave_no_evidence(name, kind, laundered):
    if kind in TESTS[name].invariant_to:
        return
    original, make = laundered
    pair = compared(*models(original, make(kind)), "thorough")
    if name == "gain rank" and kind == "rotation":
        with pytest.raises(NotApplicable, match="the same: folded"):
            TESTS[name].run(pair)
    else:
        assert TESTS[name].run(pair).log10_p > -3


def test_gate_rows_of_runs_of_units(tmp_path):
    """A sample is one run at the same place, or the beginning if units were taken out."""

    def few(a: Model, b: Model) -> Pair:
        pair = compared(a, b)
        pair.effort = replace(EFFORTS["default"], gate_row_units=20)
        return pair

    path = save(tiny_llama(), tmp_path / "a")
    whole = models(path)[0]
    outcome = TESTS["gate rows"].run(few(whole, models(path)[0]))
    assert outcome.profile == (20, 20, 20)
    assert outcome.log10_p == assignments.log10_fixed_points(60, 3)
    model = read(save(tiny_llama(attention_bias=False, mlp_bias=False), tmp_path / "b"))
    fewer = {}
    for name, tensor in model.tensors.items():
        if "mlp.down" in name:
            fewer[name] = tensor[:, :40]
        elif "mlp" in name:
            fewer[name] = tensor[:40]
    cut = write(model.change(fewer, intermediate_size=40), tmp_path / "c", "F32")
    outcome = TESTS["gate rows"].run(few(*models(tmp_path / "b", cut)))
    assert outcome.profile == (20, 20, 20)


def test_plain_ffns_are_compared_by_their_input_rows(tmp_path):
    same = models(*(save(tiny_gpt2(0), tmp_path / name) for name in "ab"))
    other = models(save(tiny_gpt2(1), tmp_path / "c"))[0]
    assert TESTS["gate rows"].run(compared(*same)).profile == (53, 53, 53)
    assert TESTS["gate rows"].run(compared(same[0], other)).log10_p > -3


def test_models_of_experts_and_of_other_widths_are_skipped(tmp_path, forty):
    experts = MixtralForCausalLM(
        MixtralConfig(
            hidden_size=36,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=3,
            vocab_size=97,
        )
    )
    model = models(save(experts, tmp_path / "experts"))[0]
    with pytest.raises(NotApplicable, match="without experts"):
        TESTS["gate rows"].run(compared(model, forty[0]))
    assert TESTS["coordinate features"].run(compared(model, model, "thorough")).statistic == 36
    wide = models(save(tiny_llama(hidden_size=48), tmp_path / "wide"))[0]
    for name in BY_ASSIGNMENT:
        with pytest.raises(NotApplicable, match="36 and 48"):
            TESTS[name].run(compared(forty[0], wide))


def test_saved_signatures_have_features_at_every_level():
    u = unit(np.random.default_rng(0).standard_normal((3, 600)))
    for level, compared_coordinates in (("fast", 512), ("default", 512), ("thorough", 600)):
        outcome = TESTS["coordinate features"].run(signed_pair(signature(u), signature(u), level))
        assert outcome.statistic == compared_coordinates


# A real model


@pytest.fixture(scope="module")
def real(smollm2_f32, tmp_path_factory) -> dict[str, Model]:
    """The first 8 layers of SmolLM2, the same with noise half as large, and a random model."""
    folder = tmp_path_factory.mktemp("real")
    model = read(smollm2_f32)
    first = stack(*((model, layer) for layer in range(8)))
    config = LlamaConfig(**{k: v for k, v in first.config.items() if k != "dtype"})
    torch.manual_seed(0)
    random = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in random.named_parameters():
            if name.endswith("norm.weight"):
                parameter += 0.1 * torch.randn(parameter.shape)
    paths = (
        write(first, folder / "first", "F32"),
        write(launder.noise(first, 0.5), folder / "noise"),
        save(random.bfloat16(), folder / "random"),
    )
    return {model.name: model for model in models(*paths)}


@pytest.mark.parametrize("name", TESTS)
def test_real_model_with_noise_is_found_and_a_random_one_is_not(name, real):
    level: Level = "default" if "default" in TESTS[name].levels else "thorough"
    noisy = TESTS[name].run(compared(real["first"], real["noise"], level))
    strange = TESTS[name].run(compared(real["first"], real["random"], level))
    assert noisy.floor or noisy.log10_p < -20
    assert strange.log10_p > -2


def test_quantized_real_model_keeps_every_unit_in_place(smollm2_gguf, smollm2_bf16):
    pair = compared(*models(smollm2_bf16, smollm2_gguf))
    outcomes = {name: TESTS[name].run(pair) for name in TESTS if name != "top-8 subspaces"}
    assert outcomes["gate rows"].statistic == 12 * 256
    assert outcomes["embedding columns"].statistic == 512
    assert outcomes["coordinate features"].statistic == 512
    assert all(outcome.floor or outcome.log10_p < -1000 for outcome in outcomes.values())
    combined = assignments.combined(list(outcomes.values()))
    assert combined == pytest.approx(assignments.log10_fixed_points(3072, 12) + math.log10(7))
    assert directions.distance(pair)[0] < 1
