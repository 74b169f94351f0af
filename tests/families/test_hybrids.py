"""Hybrids: FFNs of all layers are analysed, mixers other than attention are skipped and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.cli.main import main
from ckptforensics.errors import NothingAnalysable, TensorError
from ckptforensics.layers import Moe, load_block
from tests.families.cases_experts import experts, granite, sizes
from tests.families.harness import Case, build_model, hidden_states, relative_errors

MIXER = "its mixer is not analysed"


def jamba() -> Any:
    """Attention, Mamba, Mamba, attention, Mamba; experts in layers 2 and 4."""
    return transformers.JambaConfig(
        **sizes(
            num_hidden_layers=5,
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=3,
            attn_layer_offset=0,
            mamba_d_state=4,
            mamba_d_conv=3,
        )
    )


def qwen3_next() -> Any:
    """Three linear layers before every one of full attention, as published."""
    return transformers.Qwen3NextConfig(
        **experts(
            num_hidden_layers=4,
            shared_expert_intermediate_size=34,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=6,
            linear_value_head_dim=5,
        )
    )


def granite_hybrid() -> Any:
    """Mamba 2, attention, Mamba 2."""
    return transformers.GraniteMoeHybridConfig(
        **granite(
            shared_intermediate_size=34,
            layer_types=["mamba", "attention", "mamba"],
            mamba_n_heads=6,
            mamba_d_state=4,
        )
    )


# Family: configuration, mean of stored gains, layers (from 1) without attention.
HYBRIDS = {
    "jamba": (jamba, 1.0, [2, 3, 5]),
    "qwen3_next": (qwen3_next, 0.0, [1, 2, 3]),
    "granitemoehybrid": (granite_hybrid, 1.0, [1, 3]),
}


@pytest.fixture(scope="module", params=HYBRIDS)
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Name, model and folder of a hybrid."""
    config, gains, _ = HYBRIDS[request.param]
    model = build_model(Case(request.param, request.param, config, gains_near=gains))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def test_every_ffn_is_analysed_and_mixers_are_named(hybrid):
    name, model, folder = hybrid
    without = HYBRIDS[name][2]
    document = ckptforensics.find_layers(folder)
    assert len(document.layers) == model.config.num_hidden_layers
    for layer in document.layers:
        assert layer.sigma[0] >= layer.sigma[1] > 0
        assert layer.trigger_norm > 0
        assert (layer.response is None) == (layer.layer in without)
        if layer.layer >= without[0]:
            assert layer.rollout_ratio is None
            assert layer.label is None
    rows = [row for row in document.skipped if row.what == "single-token rollout"]
    assert len(rows) == 1
    assert f"before layer {without[0]} " in rows[0].reason
    assert MIXER in rows[0].reason


def test_signature_has_all_layers(hybrid):
    _, model, folder = hybrid
    signature = ckptforensics.sign(folder)
    assert signature.u.shape == (model.config.num_hidden_layers, 48)
    assert any(MIXER in row.reason for row in signature.document.skipped)


def test_mixers_are_listed_as_unused(hybrid):
    name, _, folder = hybrid
    architecture = ckptforensics.open_checkpoint(folder).architecture
    for number, plan in enumerate(architecture.layers, 1):
        assert (plan.mixer is not None) == (number in HYBRIDS[name][2])
    mixers = [t for t, reason in architecture.unused.items() if MIXER in reason]
    assert any("mamba" in t or "linear_attn" in t for t in mixers)


def test_ffn_behind_a_mixer_is_the_model_s(hybrid):
    """What the FFN adds in layers without attention, on vectors of our own."""
    from ckptforensics.linear.forward import ffn_forward

    name, model, folder = hybrid
    checkpoint = ckptforensics.open_checkpoint(folder)
    for number in HYBRIDS[name][2]:
        ours = load_block(checkpoint, number).ffn
        layer = model.model.layers[number - 1]
        x = torch.randn(7, 1, 48, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            if name == "granitemoehybrid":
                n = layer.post_attention_layernorm(x)
                added = (layer.block_sparse_moe(n) + layer.shared_mlp(n)) * 0.4
            elif name == "jamba":
                added = layer.feed_forward(layer.pre_ff_layernorm(x))
            else:
                added = layer.mlp(layer.post_attention_layernorm(x))
        found = ffn_forward(ours, x[:, 0].numpy())[:, None]
        assert relative_errors(found, added.numpy()).max() < 1e-5
        if name == "qwen3_next":
            assert isinstance(ours, Moe)
            assert ours.shared_router is not None


def test_rollout_says_why_it_cannot(hybrid, capsys: pytest.CaptureFixture[str]):
    name, _, folder = hybrid
    first = HYBRIDS[name][2][0]
    with pytest.raises(NothingAnalysable, match=f"layer {first} .*{MIXER}"):
        ckptforensics.rollout(folder, tokens=[3])
    assert main(["norms", str(folder), "--tokens", "3"]) == 3
    said = capsys.readouterr().err
    assert f"layer {first}" in said
    assert MIXER in said


def test_layers_before_the_first_mixer_are_rolled_out(tmp_path: Path):
    case = Case("jamba", "jamba", jamba)
    model = build_model(case)
    model.save_pretrained(tmp_path)
    first, *rest = ckptforensics.find_layers(tmp_path).layers
    states = hidden_states(model, case, [3, 7, 11])
    assert states.shape[1] == 5
    assert first.rollout_ratio is not None
    assert all(layer.rollout_ratio is None for layer in rest)


@pytest.mark.parametrize("lost", ["self_attn.v_proj", "self_attn.o_proj", "feed_forward.up_proj"])
def test_a_lost_tensor_is_no_other_kind_of_layer(lost: str, tmp_path: Path):
    """Optional roles must not turn a damaged checkpoint into a smaller model."""
    build_model(Case("jamba", "jamba", jamba)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    del tensors[f"model.layers.0.{lost}.weight"]
    save_file(tensors, file)
    with pytest.raises(TensorError, match=lost):
        ckptforensics.open_checkpoint(tmp_path)


def test_both_attention_maps_lost(tmp_path: Path):
    build_model(Case("jamba", "jamba", jamba)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    for lost in ("v_proj", "o_proj"):
        del tensors[f"model.layers.0.self_attn.{lost}.weight"]
    save_file(tensors, file)
    with pytest.raises(TensorError, match="v_proj"):
        ckptforensics.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            lambda: transformers.MambaConfig(
                hidden_size=24, num_hidden_layers=2, vocab_size=31, state_size=4
            ),
            "neither attention nor an FFN",
        ),
        (
            lambda: transformers.RwkvConfig(
                hidden_size=24, attention_hidden_size=24, num_hidden_layers=2, vocab_size=31
            ),
            "without attention",
        ),
    ],
    ids=["mamba", "rwkv"],
)
def test_without_attention_nothing_is_analysed(
    config: Any, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = config()
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    with pytest.raises(NothingAnalysable, match=f"'{settings.model_type}'.*{why}"):
        ckptforensics.open_checkpoint(tmp_path)
    capsys.readouterr()
    assert main(["layers", str(tmp_path)]) == 3
    assert why in capsys.readouterr().err


def test_only_mamba_layers(tmp_path: Path):
    settings = transformers.JambaConfig(
        **sizes(
            num_hidden_layers=2,
            num_experts=1,
            num_experts_per_tok=1,
            attn_layer_period=9,
            attn_layer_offset=8,
            mamba_d_state=4,
        )
    )
    build_model(Case("mamba-only", "jamba", lambda: settings)).save_pretrained(tmp_path)
    with pytest.raises(NothingAnalysable, match="attention"):
        ckptforensics.open_checkpoint(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "jamba"
