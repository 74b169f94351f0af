"""Changes that units and heads do not show: none may be called one function in other weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.lineage.compare import compare_pair
from ckptforensics.lineage.correspondence.scores import score_error
from ckptforensics.lineage.criteria.equivalence import same_function
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.containers import write_model_gguf
from tests.support.models import save, tiny_gpt2, tiny_llama
from tools import launder, transforms
from tools.zoo import ZOO

RELATED = ("derived", "related")


@pytest.fixture(scope="module")
def model():
    return transforms.read(ZOO / "seed0")


def compared(tmp_path, a, b, dtype="F32", **settings):
    """The record of A and of B, whose configuration is changed by the settings."""
    paths = [transforms.write(m, tmp_path / n, dtype) for n, m in (("a", a), ("b", b))]
    config = json.loads((paths[1] / "config.json").read_text())
    (paths[1] / "config.json").write_text(json.dumps({**config, **settings}))
    return record(*paths)


def record(a, b):
    return compare_pair(Pair(Model("a", open_checkpoint(a)), Model("b", open_checkpoint(b))))


def laundered(model, kind="signed-permutation"):
    return launder.EXACT[kind](model, np.random.default_rng(3))


def shuffled(model, part):
    generator = np.random.default_rng(0)
    return model.change(
        {
            name: generator.permuted(tensor.reshape(-1)).reshape(tensor.shape)
            for name, tensor in model.tensors.items()
            if part in name
        }
    )


def doubled(model, part):
    return model.change({n: 2 * t for n, t in model.tensors.items() if part in n})


def pairs_swapped(model):
    """RoPE's frequencies exchanged in queries and keys alike: products at distance 0 stay."""
    heads = model.config["num_attention_heads"]
    changes = {}
    for name, tensor in model.tensors.items():
        if "q_proj" in name or "k_proj" in name:
            rows = tensor.reshape(-1, model.config["hidden_size"] // heads, tensor.shape[1])
            half = rows.shape[1] // 2
            order = np.r_[np.arange(half)[::-1], half + np.arange(half)[::-1]]
            changes[name] = rows[:, order].reshape(tensor.shape)
    return model.change(changes)


WEIGHTS = {
    "queries and keys shuffled": lambda m: shuffled(shuffled(m, "q_proj"), "k_proj"),
    "queries doubled": lambda m: doubled(m, "q_proj"),
    "frequencies exchanged": pairs_swapped,
    "embeddings doubled": lambda m: doubled(m, "embed_tokens"),
    "final gains": lambda m: shuffled(m, "model.norm"),
    "one row of the head": lambda m: m.change(
        {
            n: np.concatenate([t[:7], t[8:9], t[8:]])
            for n, t in m.tensors.items()
            if n in ("lm_head.weight", "model.embed_tokens.weight")
        }
    ),
}


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "permuted"])
@pytest.mark.parametrize("change", WEIGHTS)
def test_other_weights_are_no_other_spelling(change, hidden, model, tmp_path):
    other = WEIGHTS[change](model)
    found = compared(tmp_path, model, laundered(other) if hidden else other)
    assert found.verdict in RELATED, found.reasons


@pytest.mark.parametrize("kind", sorted(set(launder.EXACT) - {"dtype"}))
def test_launderings_are_one_function_and_everything_was_compared(kind, model, tmp_path):
    found = compared(tmp_path, model, laundered(model, kind))
    assert found.verdict == "re-parameterised", (found.reasons, found.not_compared)
    assert found.not_compared == ()
    assert len(found.compared) == 6


SETTINGS = {
    "rope_theta": 500_000.0,
    "hidden_act": "gelu",
    "num_attention_heads": 2,
    "sliding_window": 8,
    "rms_norm_eps": 0.1,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "partial_rotary_factor": 0.5,
    # Keys that nothing here knows by name, in any place.
    "use_bidirectional_attention": True,
    "attn_config": {"softmax_scale": 0.25},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_settings_are_another_function(setting, model, tmp_path):
    change = {setting: SETTINGS[setting]}
    if setting == "num_attention_heads":
        change |= {"num_key_value_heads": 1, "head_dim": model.config["hidden_size"] // 2}
    same = compared(tmp_path / "same", model, model, **change)
    assert same.verdict == "identical"
    assert any("the configurations differ" in reason for reason in same.reasons), same.reasons
    other = compared(tmp_path / "other", model, laundered(model), **change)
    assert other.verdict in RELATED, other.reasons


def test_what_only_one_configuration_says_is_not_compared(model, tmp_path):
    found = compared(tmp_path, model, laundered(model), sliding_window=None, rope_theta=10_000.0)
    assert found.verdict == "re-parameterised"
    found = compared(tmp_path / "x", model, laundered(model), attention_multiplier=0.25)
    assert found.verdict in RELATED
    assert any("factor on scores" in words for words in found.not_compared)


def test_a_head_that_is_not_finite_is_named(model, tmp_path):
    head = next(n for n in ("lm_head.weight", "model.embed_tokens.weight") if n in model.tensors)
    for value, rows in ((np.nan, slice(None)), (np.inf, slice(50, 51))):
        broken = {"lm_head.weight": model.tensors[head].copy()}
        broken["lm_head.weight"][rows] = value
        other = laundered(model)
        other = other.change({"lm_head.weight": broken["lm_head.weight"]})
        both = model.change({"lm_head.weight": model.tensors[head]})
        found = compared(tmp_path / str(value), both, other, tie_word_embeddings=False)
        assert found.verdict in RELATED, found.reasons
        assert any("output head" in words for words in found.not_compared), found.not_compared


def test_a_tensor_that_nothing_looks_at_is_named(model, tmp_path):
    reward = {"score.weight": np.ones((1, model.config["hidden_size"]), np.float32)}
    found = compared(tmp_path, model, laundered(model).change(reward))
    assert found.verdict in RELATED
    assert any("score.weight" in words for words in found.not_compared)


@pytest.mark.parametrize("part", ["q_proj.bias", "k_proj.bias", "v_proj.bias", "up_proj.bias"])
def test_biases_count(part, tmp_path):
    a = save(tiny_llama(0, attention_bias=True, mlp_bias=True), tmp_path / "a")
    model = transforms.read(a)
    generator = np.random.default_rng(1)
    noise = {
        name: generator.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in model.tensors.items()
        if name.endswith(part)
    }
    assert noise
    other = transforms.write(model.change(noise), tmp_path / "b", "F32")
    assert record(a, other).verdict in RELATED


def test_fused_projections_are_parted(tmp_path):
    """GPT-2 keeps queries, keys and values in one tensor, (in, out)."""
    a = save(tiny_gpt2(), tmp_path / "a")
    model = transforms.read(a)
    both = [Model(name, open_checkpoint(a)) for name in "ab"]
    found = same_function(Pair(*both))
    assert found.same, found
    width = model.config["n_embd"]
    for at, part in ((0, "queries"), (1, "keys")):
        columns = slice(at * width, (at + 1) * width)
        changes = {}
        for name, tensor in model.tensors.items():
            if "c_attn.weight" in name:
                changes[name] = tensor.copy()
                changes[name][:, columns] *= 2
        path = transforms.write(model.change(changes), tmp_path / part, "F32")
        other = Pair(both[0], Model("b", open_checkpoint(path)))
        found = score_error(other, 1, 1, np.arange(model.config["n_head"]), rotary=False)
        assert found == pytest.approx(0.5, abs=0.01)  # biases are not doubled


def written(folder, model, **config):
    path = transforms.write(model, folder, "F32")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, **config}))
    return path


def test_keys_of_no_setting_are_told_where_both_state_them(model, tmp_path):
    a = written(tmp_path / "a", model, new_factor=1.0, attention_dropout=0.1, nested={"scale": 2})
    b = written(tmp_path / "b", model, new_factor=3.0, attention_dropout=0.2, nested={"scale": 4})
    found = record(a, b)
    assert found.verdict == "identical"
    assert found.reasons[1:] == (
        "but the configurations differ: nested.scale: 2.0 and 4.0",
        "but the configurations differ: new_factor: 1.0 and 3.0",
    )


def gguf_copy(folder, model, *, permuted):
    """The model as a GGUF file of the architecture llama, whose runner turns neighbouring rows."""
    arrays = {}
    for name, tensor in model.tensors.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = next((value for part, value in heads.items() if part in name), None)
        rows = np.asarray(tensor, np.float32)
        if key is not None and permuted:  # as convert_hf_to_gguf.py of llama.cpp
            count = model.config[key]
            rows = rows.reshape(count, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        arrays[name] = rows
    return write_model_gguf(folder, arrays, model.config)


@pytest.mark.parametrize("permuted", [True, False])
def test_rows_that_a_converter_left_in_another_order_are_another_model(permuted, model, tmp_path):
    a = transforms.write(model, tmp_path / "a", "F32")
    found = record(a, gguf_copy(tmp_path / "b.gguf", model, permuted=permuted))
    assert (found.verdict == "re-parameterised") == permuted, found.reasons
    if not permuted:
        assert any("queries and keys" in reason for reason in found.reasons), found.reasons
