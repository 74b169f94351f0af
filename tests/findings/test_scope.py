"""Some layers only, with a relative's help, within bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptforensics
from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.findings import Scope, find_layers, layer_numbers, needed_memory, sign
from ckptforensics.layers import load_block, memory_needed
from tests.support.families.cases_experts import CASES as EXPERT_CASES
from tests.support.families.harness import build_model, save_model
from tests.support.models import angle, save, tiny_llama

PLANTED = Path(__file__).parents[2] / "fixtures" / "planted"
BESIDE = 300 << 20


@pytest.fixture(scope="module")
def whole() -> ckptforensics.Signature:
    return sign(PLANTED)


def test_a_stream_with_one_coordinate_has_no_directions(tmp_path: Path):
    sizes = {"hidden_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    folder = save(tiny_llama(**sizes), tmp_path / "narrow")
    with pytest.raises(NothingAnalysable, match="1 wide"):
        sign(folder)


@pytest.mark.parametrize("layers", [(1, 2, 3, 4), (3, 7), (8,), tuple(range(1, 9))])
def test_some_layers_are_those_of_the_whole(layers: tuple[int, ...], whole):
    """Each layer has random vectors of its own, so nothing depends on the others."""
    part = sign(PLANTED, scope=Scope(layers))
    assert [row.layer for row in part.document.layers] == list(layers)
    rows = [layer - 1 for layer in layers]
    for name in ("u", "v", "sigma", "residual"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
    assert part.document.fingerprint is None
    skipped = {row.what: row.reason for row in part.document.skipped}
    if layers == (1, 2, 3, 4):
        assert skipped == {"layers 5 to 8": "not asked for"}
        assert part.document.explosion == (3,)
    elif len(layers) < 8:
        # Tokens cannot get through layers that are not read: no label, and that is said.
        assert part.document.explosion == part.document.decay == ()
        assert "single-token rollout" in skipped
    else:
        assert not skipped
        assert part.document.decay == whole.document.decay


def test_layers_of_another_model_are_refused():
    with pytest.raises(UsageError, match="layer 9 is not among those that are analysed"):
        sign(PLANTED, scope=Scope((9,)))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1-4,30", (1, 2, 3, 4, 30)), ("7", (7,)), ("3, 1-2", (1, 2, 3)), ("2,2-3", (2, 3))],
)
def test_layer_numbers(text: str, numbers: tuple[int, ...]):
    assert layer_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "x", "0", "4-1", "1-", "-3", "1,,2", "1" * 40, "1.5", "٣"])
def test_what_is_no_layer_numbers(text: str):
    with pytest.raises(UsageError):
        layer_numbers(text)


def test_a_relative_helps_and_does_not_decide(whole):
    """From a relative's directions, even shuffled ones, the search ends at the model's own."""
    shuffled = np.random.default_rng(0).permutation(whole.u.T).T.copy()
    for u in (whole.u, shuffled):
        relative = ckptforensics.Signature(whole.document, u, whole.v, whole.sigma, whole.residual)
        found = sign(PLANTED, scope=Scope(near=relative))
        np.testing.assert_allclose(found.sigma[:, 0], whole.sigma[:, 0], rtol=1e-5)
        for row in (2, 6):  # the layers with a gap
            assert angle(found.u[row], whole.u[row]) < 0.02
        assert found.residual.max() < 1e-4


def test_a_relative_of_another_width_is_refused(whole):
    narrow = ckptforensics.Signature(
        whole.document, whole.u[:, :32], whole.v[:, :32], whole.sigma, whole.residual
    )
    with pytest.raises(UsageError, match="32 coordinates"):
        sign(PLANTED, scope=Scope(near=narrow))


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "llama4"])
def test_experts_that_are_not_held_give_the_same(name: str, tmp_path: Path):
    case = next(case for case in EXPERT_CASES if case.name == name)
    folder = save_model(build_model(case), tmp_path, case)
    checkpoint = ckptforensics.open_checkpoint(folder)
    block, expert = memory_needed(checkpoint)
    assert expert > 0
    tight = Scope(memory=BESIDE + block + expert)
    number = next(i for i, plan in enumerate(checkpoint.architecture.layers, 1) if plan.experts)
    held = load_block(checkpoint, number).ffn
    streamed = load_block(checkpoint, number, expert_memory=expert).ffn
    assert held.held
    assert not streamed.held
    one, other = sign(checkpoint), sign(checkpoint, scope=tight)
    for array in ("u", "v", "sigma", "residual"):
        np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
    assert find_layers(checkpoint) == find_layers(checkpoint, scope=tight)


def test_memory_that_is_too_little_is_said():
    with pytest.raises(UsageError, match="allow more with --memory"):
        sign(PLANTED, scope=Scope(memory=1 << 20))
    checkpoint = ckptforensics.open_checkpoint(PLANTED)
    assert BESIDE < needed_memory(checkpoint, 8 << 30) < BESIDE + (1 << 20)
