"""Neuron agreement: relatives keep it whatever is done to them, independent models lack it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.correspondence.neurons import (
    Named,
    agreeing,
    expert_agreement,
    token_states,
)
from ckptforensics.lineage.criteria import neurons
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import unit_rows
from ckptforensics.lineage.pair import Level, Pair
from tests.support.models import save, tiny_gpt2, tiny_llama, write_gguf

ZOO = Path(__file__).resolve().parents[3] / "fixtures" / "zoo"
TOKENS, DIRECTIONS = neurons.CRITERIA


@cache
def zoo(name: str) -> Any:
    from tools import transforms

    return transforms.read(ZOO / name)


def opened(path: Path) -> Model:
    return Model(path.name, open_checkpoint(path))


def pair_with(folder: Path, model: Any, other: str = "seed0", level: Level = "default") -> Pair:
    """A model of the zoo, and one that was made in the test."""
    from tools import transforms

    return Pair(opened(ZOO / other), opened(transforms.write(model, folder / "b", "F32")), level)


def shares(pair: Pair) -> tuple[float, float]:
    """f on tokens and on directions."""
    found = [test.run(pair).statistic for test in (TOKENS, DIRECTIONS)]
    assert None not in found
    return found[0], found[1]


# One layer


def named(rows: int, features: int = 64, *, seed: int = 0, signed: bool = False) -> Named:
    generator = np.random.default_rng(seed)
    first, second = (
        unit_rows(generator.standard_normal((rows, features), dtype=np.float32)) for _ in range(2)
    )
    return Named(first, second, signed)


def test_the_same_neurons_in_another_order_all_agree():
    a = named(50)
    order = np.random.default_rng(1).permutation(50)
    signs = np.random.default_rng(2).choice([-1, 1], (50, 1)).astype(np.float32)
    b = Named(a.first[order], a.second[order] * signs, signed=False)
    assert agreeing(a, b, np.random.default_rng(3)) == 1


def test_gates_and_ups_that_were_moved_apart_do_not_agree():
    a = named(50)
    b = Named(a.first, np.roll(a.second, 1, axis=0), signed=False)
    assert agreeing(a, b, np.random.default_rng(3)) < 0.05


def test_the_sign_of_output_columns_counts():
    a = named(50, signed=True)
    b = Named(a.first, -a.second, signed=True)
    assert agreeing(a, b, np.random.default_rng(3)) < 0.2


def test_unrelated_neurons_agree_as_often_as_chance_has_it():
    found = [
        agreeing(named(40, seed=2 * i), named(40, seed=2 * i + 1), np.random.default_rng(i))
        for i in range(200)
    ]
    # The number of agreements has mean and variance 1: f has mean 0 and deviation 1/39.
    assert abs(np.mean(found)) < 4 / 39 / np.sqrt(200)
    assert 0.8 / 39 < np.std(found) < 1.2 / 39


def test_ties_are_no_agreement():
    dead = Named(np.zeros((40, 8), np.float32), np.zeros((40, 8), np.float32), signed=False)
    found = [agreeing(dead, dead, np.random.default_rng(i)) for i in range(200)]
    assert abs(np.mean(found)) < 4 / 39 / np.sqrt(200)


def test_a_subset_is_found_among_all():
    b = named(80)
    a = Named(b.first[5:25], b.second[5:25], signed=False)
    assert agreeing(a, b, np.random.default_rng(0)) == 1


# Relatives


@pytest.mark.parametrize("kind", ["signed-permutation", "rotation", "updown-scaling", "all"])
def test_launderings_change_nothing(tmp_path, kind):
    from tools import launder

    laundered = launder.EXACT[kind](zoo("seed0"), np.random.default_rng(7))
    tokens, directions = shares(pair_with(tmp_path, laundered))
    assert tokens == 1
    assert directions > 0.95


@pytest.mark.parametrize(
    ("change", "tokens", "directions"),
    [
        ("noise", 0.99, 0.9),
        ("prune", 0.99, 0.9),
        ("q4", 0.99, 0.9),
        # Another width of the residual stream and of the FFN: its leading directions are others.
        ("narrow", 0.99, 0.15),
        ("narrow_ffn", 0.99, 0.9),
        ("upcycle", 0.99, 0.9),  # to four experts
        ("drop_layer", 0.99, 0.9),
        ("upscale", 0.99, 0.9),
        ("extend_vocabulary", 0.99, 0.9),
    ],
)
def test_what_is_done_to_a_tuned_model_leaves_the_agreement(tmp_path, change, tokens, directions):
    from tools import launder, transforms

    changes = {**vars(transforms), "noise": lambda model: launder.noise(model, 0.3)}
    found = shares(pair_with(tmp_path, changes[change](zoo("finetune"))))
    assert found[0] >= tokens
    assert found[1] >= directions


def test_new_embeddings_in_a_rotated_basis_are_seen_through(tmp_path):
    from tools import launder, transforms

    model = transforms.redraw_embeddings(zoo("finetune"))
    tokens, directions = shares(
        pair_with(tmp_path, launder.rotation(model, np.random.default_rng(1)))
    )
    assert tokens < 0.1
    assert directions > 0.9


def test_noise_takes_the_agreement_away_gradually(tmp_path):
    from tools import launder

    found = [
        shares(pair_with(tmp_path / str(share), launder.noise(zoo("seed0"), share)))[0]
        for share in (0.5, 1.5, 10.0)
    ]
    assert found[0] > 0.95
    assert 0.1 < found[1] < 0.9
    assert found[2] < 0.1


@pytest.mark.parametrize("level", ["default", "thorough"])
def test_training_on_keeps_the_agreement(level):
    for other in ("seed0-early", "finetune"):
        pair = Pair(opened(ZOO / "seed0"), opened(ZOO / other), level)
        assert TOKENS.run(pair).statistic > 0.9


# Independent models


@pytest.mark.parametrize("level", ["default", "thorough"])
@pytest.mark.parametrize("other", ["seed0", "finetune"])
def test_models_trained_on_the_same_data_do_not_agree(level, other):
    pair = Pair(opened(ZOO / "seed1"), opened(ZOO / other), level)
    assert max(shares(pair)) < 0.1


@pytest.mark.parametrize("change", ["narrow", "upcycle", "drop_layer", "upscale", "random"])
def test_changed_independent_models_do_not_agree_either(tmp_path, change):
    from tools import transforms

    changed = getattr(transforms, change)(zoo("seed0"))
    assert max(shares(pair_with(tmp_path, changed, other="seed1"))) < 0.1


def test_real_independent_models_that_share_tokens_do_not_agree(smollm2_gguf, gemma3):
    pair = Pair(opened(smollm2_gguf), opened(gemma3))
    pair.assume(map_layers, tuple((n + 6, n) for n in range(1, 19)))  # no need to sign them
    found = TOKENS.run(pair)
    assert found.statistic < 0.02
    assert max(f for f in found.profile if f is not None) < 0.05
    assert "tokens matched by string" in found.note


def test_a_quantized_file_agrees_with_the_original(smollm2_gguf, smollm2_bf16):
    pair = Pair(opened(smollm2_gguf), opened(smollm2_bf16))
    pair.assume(map_layers, tuple((n, n) for n in range(1, 31)))
    found = TOKENS.run(pair)
    assert found.statistic > 0.99
    assert "by id, since a vocabulary is missing" in found.note
    # Some layers, of which the first and the last are none.
    assert sum(f is not None for f in found.profile) == EFFORTS["default"].neuron_layers
    assert found.profile[0] is None
    assert found.profile[-1] is None


# FFNs of other kinds


def _noised(model: Any, share: float, seed: int = 3) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = share * parameter.std(correction=0)
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def test_neurons_without_gates_are_named_by_input_and_output(tmp_path):
    a = opened(save(tiny_gpt2(0, n_layer=4), tmp_path / "a"))
    b = opened(save(_noised(tiny_gpt2(0, n_layer=4), 0.1), tmp_path / "b"))
    c = opened(save(tiny_gpt2(1, n_layer=4), tmp_path / "c"))
    assert TOKENS.run(Pair(a, b)).statistic > 0.9
    assert TOKENS.run(Pair(a, c)).statistic < 0.1


def test_the_same_model_in_another_container(tmp_path):
    model = tiny_gpt2(0, n_layer=4)
    hf, other = save(model, tmp_path / "hf"), write_gguf(model, tmp_path / "model.gguf")
    tokens, directions = shares(Pair(opened(hf), opened(other)))
    assert tokens == 1
    assert directions > 0.9


def test_a_gated_and_a_plain_ffn_are_not_compared(tmp_path):
    a = opened(save(tiny_gpt2(0), tmp_path / "a"))
    b = opened(save(tiny_llama(0), tmp_path / "b"))
    with pytest.raises(NotApplicable, match="only one of the models have gates"):
        TOKENS.run(Pair(a, b))


def test_a_handful_of_neurons_tells_nothing(tmp_path):
    a = opened(save(tiny_llama(0, intermediate_size=20), tmp_path / "a"))
    with pytest.raises(NotApplicable, match="20 neurons is too narrow"):
        TOKENS.run(Pair(a, a))


def test_each_expert_is_matched(tmp_path):
    from tools import transforms

    # The third expert of every layer is another model's FFN.
    model = transforms.upcycle(zoo("seed0"))
    independent = transforms.upcycle(zoo("seed1"))
    replaced = {n: t for n, t in independent.tensors.items() if ".experts.2." in n}
    pair = pair_with(tmp_path, model.change(replaced))
    states, _ = token_states(pair, 512)
    table = expert_agreement(pair, (2, 2), states, units=256)
    assert table.shape == (1, 4)
    assert np.all(table[0, [0, 1, 3]] == 1)
    assert table[0, 2] < 0.1
    turned = Pair(pair.b, pair.a)
    other = expert_agreement(turned, (2, 2), states[::-1], units=256)
    assert other.shape == (4, 1)
    assert np.all(other[[0, 1, 3], 0] == 1)


def test_experts_in_another_order_are_found(tmp_path):
    pair = Pair(opened(ZOO / "experts"), opened(ZOO / "seed0"))
    assert TOKENS.run(pair).statistic > 0.9


# What is reported


def test_a_run_gives_the_same_twice(tmp_path):
    outcomes = [
        test.run(Pair(opened(ZOO / "seed0"), opened(ZOO / "seed1")))
        for test in (TOKENS, TOKENS, DIRECTIONS, DIRECTIONS)
    ]
    assert outcomes[0] == outcomes[1]
    assert outcomes[2] == outcomes[3]


def test_without_shared_tokens_the_reason_is_told(tmp_path):
    a = opened(save(tiny_llama(0), tmp_path / "a"))
    b = opened(save(tiny_llama(0, vocab_size=111), tmp_path / "b"))
    with pytest.raises(NotApplicable, match="which tokens are shared is not known"):
        TOKENS.run(Pair(a, b))
    assert DIRECTIONS.run(Pair(a, a)).statistic > 0.9
