"""Hybrids: FFNs of all layers are analysed, mixers other than attention are skipped and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.cli.main import main
from ckptforensics.errors import FormatError, NothingAnalysable, TensorError
from ckptforensics.forward import block_forward, ffn_forward
from ckptforensics.layers import Moe, load_block
from tests.support.families.cases_experts import experts, granite, sizes
from tests.support.families.cases_hybrids import bamba, lfm2, lfm2_moe, nemotron_h
from tests.support.families.harness import (
    Case,
    build_model,
    hidden_states,
    published,
    relative_errors,
)

MIXER = "not analysed"


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


def only_mamba() -> Any:
    """Jamba without any attention layer."""
    return transformers.JambaConfig(
        **sizes(
            num_hidden_layers=2,
            num_experts=4,
            num_experts_per_tok=2,
            expert_layer_period=2,
            attn_layer_period=9,
            attn_layer_offset=8,
            mamba_d_state=4,
        )
    )


def falcon_h1() -> Any:
    """Attention and Mamba 2 beside each other in every layer; factors that are not 1."""
    return transformers.FalconH1Config(
        **sizes(
            mamba_d_ssm=48,
            mamba_n_heads=4,
            mamba_d_head=12,
            mamba_d_state=8,
            mamba_n_groups=1,
            mlp_bias=True,
            mlp_multipliers=[0.7, 0.3],
            embedding_multiplier=3.0,
        )
    )


def gemma3n() -> Any:
    """Two layers whose FFNs keep few gates, two whose keep all, the last of shared keys."""
    return transformers.Gemma3nTextConfig(
        **sizes(
            num_hidden_layers=4,
            intermediate_size=[40] * 4,
            activation_sparsity_pattern=[0.95, 0.5, 0.0, 0.0],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=61,
            laurel_rank=6,
            head_dim=8,
            num_kv_shared_layers=1,
            layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
        )
    )


@dataclass(frozen=True)
class Hybrid:
    """A model of which the FFNs are analysed, and attention in some layers or none.

    Attributes
    ----------
    name, family : of the test, and the family's file
    config : makes the transformers configuration
    without : layers (from 1) of which the FFN only is analysed
    added : what the FFN of a layer (its module) adds to rows of the residual stream
    gains_near : mean of the stored norm gains
    """

    name: str
    family: str
    config: Callable[[], Any]
    without: tuple[int, ...]
    added: Callable[[Any, torch.Tensor], torch.Tensor]
    gains_near: float = 1.0

    @property
    def case(self) -> Case:
        """The model to build."""
        return Case(self.name, self.family, self.config, gains_near=self.gains_near)


def _jamba(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return layer.feed_forward(layer.pre_ff_layernorm(x))


def _lfm2(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return layer.feed_forward(layer.ffn_norm(x))


def _qwen3_next(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return layer.mlp(layer.post_attention_layernorm(x))


def _granite(layer: Any, x: torch.Tensor) -> torch.Tensor:
    n = layer.post_attention_layernorm(x)
    return (layer.block_sparse_moe(n) + layer.shared_mlp(n)) * 0.4


def _gemma3n(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))


MIXED = ["conv", "full_attention", "conv"]
HYBRIDS = [
    Hybrid("jamba-ffn", "jamba", jamba, (2, 3, 5), _jamba),
    Hybrid("jamba-only-mamba-ffn", "jamba", only_mamba, (1, 2), _jamba),
    Hybrid("bamba-ffn", "jamba", lambda: bamba([1]), (1, 3), _jamba),
    Hybrid("falcon-h1-ffn", "falcon_h1", falcon_h1, (1, 2, 3), _jamba),
    Hybrid("qwen3-next-ffn", "qwen3_next", qwen3_next, (1, 2, 3), _qwen3_next, gains_near=0.0),
    Hybrid("granitemoehybrid-ffn", "granitemoehybrid", granite_hybrid, (1, 3), _granite),
    Hybrid("lfm2-ffn", "lfm2", lambda: lfm2(MIXED), (1, 3), _lfm2),
    Hybrid("lfm2-moe-ffn", "lfm2", lambda: lfm2_moe(MIXED), (1, 3), _lfm2),
]
GEMMA3N = Hybrid("gemma3n-ffn", "gemma3n", gemma3n, (3, 4), _gemma3n)


def worst_ffn_error(hybrid: Hybrid, model: torch.nn.Module, folder: Path) -> float:
    """Largest relative difference of what an FFN adds to random vectors, over layers."""
    checkpoint = ckptforensics.open_checkpoint(folder)
    errors = []
    for number in hybrid.without:
        x = torch.randn(7, 1, 48, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            theirs = hybrid.added(model.model.layers[number - 1], x)
        ours = ffn_forward(load_block(checkpoint, number).ffn, x[:, 0].numpy())[:, None]
        errors.append(relative_errors(ours, theirs.numpy()).max())
    return float(max(errors))


@pytest.fixture(scope="module", params=HYBRIDS, ids=lambda hybrid: hybrid.name)
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A hybrid, its model and its folder."""
    model = build_model(request.param.case)
    folder = tmp_path_factory.mktemp(request.param.name)
    model.save_pretrained(folder)
    return request.param, model, folder


def test_every_ffn_is_analysed_and_mixers_are_named(hybrid):
    made, model, folder = hybrid
    without = made.without
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
    made, _, folder = hybrid
    architecture = ckptforensics.open_checkpoint(folder).architecture
    for number, plan in enumerate(architecture.layers, 1):
        assert (plan.mixer is not None) == (number in made.without)
        assert plan.skipped is None
    mixers = [t for t, reason in architecture.unused.items() if MIXER in reason]
    assert any("mamba" in t or "linear_attn" in t or ".conv." in t for t in mixers)


def test_results_list_the_layers_without_attention(hybrid):
    made, _, folder = hybrid
    words = {(2, 3, 5): "2 to 3, 5", (1, 2): "1 to 2", (1, 2, 3): "1 to 3", (1, 3): "1, 3"}
    for document in (
        ckptforensics.inspect(folder),
        ckptforensics.find_layers(folder),
        ckptforensics.sign(folder).document,
    ):
        row = document.skipped[0]
        assert row.what == f"all but the FFN of layers {words[made.without]}"
        assert MIXER in row.reason


def test_ffn_behind_a_mixer_is_the_model_s(hybrid):
    assert worst_ffn_error(*hybrid) < 1e-5


def test_a_gated_shared_expert_is_read(tmp_path: Path):
    build_model(Case("qwen3-next", "qwen3_next", qwen3_next)).save_pretrained(tmp_path)
    ffn = load_block(ckptforensics.open_checkpoint(tmp_path), 1).ffn
    assert isinstance(ffn, Moe)
    assert ffn.shared_router is not None


def test_rollout_says_why_it_cannot(hybrid, capsys: pytest.CaptureFixture[str]):
    made, _, folder = hybrid
    first = made.without[0]
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


NEMOTRON_H = ["mamba", "mlp", "moe", "attention", "mlp"]


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory):
    """A model whose layers are a mixer, attention or an FFN alone."""
    model = build_model(Case("nemotron", "nemotron_h", lambda: nemotron_h(NEMOTRON_H)))
    folder = tmp_path_factory.mktemp("nemotron")
    model.save_pretrained(folder)
    return model, folder


def test_layers_without_an_ffn_are_skipped(nemotron):
    model, folder = nemotron
    document = ckptforensics.find_layers(folder)
    assert [layer.layer for layer in document.layers] == [2, 3, 5]
    assert [row.what for row in document.skipped] == ["layer 1", "layer 4", "single-token rollout"]
    assert all("no FFN" in row.reason for row in document.skipped)
    assert "attention layer" in document.skipped[1].reason
    # The block is its FFN alone, so what the true block adds is known.
    assert all(layer.response is not None for layer in document.layers)
    assert ckptforensics.sign(folder).u.shape == (3, 48)
    checkpoint = ckptforensics.open_checkpoint(folder)
    for layer in document.layers:
        block = load_block(checkpoint, layer.layer)
        x = torch.randn(7, 1, 48, generator=torch.Generator().manual_seed(layer.layer))
        with torch.no_grad():
            after = model.model.layers[layer.layer - 1](x).numpy()
        found = block_forward(block, x[:, 0].numpy())[:, None]
        assert relative_errors(found, after).max() < 1e-5
    with pytest.raises(NothingAnalysable, match=r"layer 4 .* has nothing to analyse: an attention"):
        load_block(checkpoint, 4)
    with pytest.raises(NothingAnalysable, match="layer 1 "):
        ckptforensics.rollout(folder, tokens=[3])


def test_an_ffn_layer_that_lost_its_ffn_is_not_skipped(nemotron, tmp_path: Path):
    model, _ = nemotron
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    for lost in ("up_proj", "down_proj"):
        del tensors[f"backbone.layers.1.mixer.{lost}.weight"]
    save_file(tensors, file)
    with pytest.raises(TensorError, match="down_proj"):
        ckptforensics.open_checkpoint(tmp_path)


def multimodal(folder: Path) -> None:
    """The text tower's file as it stands in a conditional-generation checkpoint."""
    published(
        lambda tensors, config: (
            {
                name.replace("model.", "model.language_model.", 1): tensor
                for name, tensor in tensors.items()
            }
            | {"model.vision_tower.timm_model.conv_stem.conv.weight": torch.zeros(3, 3)},
            {"model_type": "gemma3n", "text_config": config},
        )
    )(folder)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_gemma3n_ffns_that_keep_all_gates(prefix: str, tmp_path: Path):
    model = build_model(GEMMA3N.case)
    model.save_pretrained(tmp_path)
    if prefix != "model.":
        multimodal(tmp_path)
    document = ckptforensics.find_layers(tmp_path)
    assert [(m.layer, m.prefix) for m in document.layers] == [
        (3, f"{prefix}layers.2"),
        (4, f"{prefix}layers.3"),
    ]
    assert all(m.label is None and m.rollout_ratio is None for m in document.layers)
    assert [row.what for row in document.skipped] == [
        "layers 1 to 2",
        "all but the FFN of layers 3 to 4",
        "single-token rollout",
    ]
    assert "largest gates only" in document.skipped[0].reason
    assert "residual streams" in document.skipped[1].reason
    checkpoint = ckptforensics.open_checkpoint(tmp_path)
    unused = checkpoint.architecture.unused
    assert "largest gates" in unused[f"{prefix}layers.0.mlp.gate_proj.weight"]
    assert worst_ffn_error(GEMMA3N, model, tmp_path) < 1e-5
    with pytest.raises(NothingAnalysable, match=r"layer 1 .*largest gates"):
        ckptforensics.rollout(tmp_path, tokens=[3])


def test_gemma3n_that_does_not_say_which_ffns_are_sparse(tmp_path: Path):
    build_model(GEMMA3N.case).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for pattern in (None, [0.0], ["most"] * 4, {"0": 0.95}):
        changed = json.dumps(config | {"activation_sparsity_pattern": pattern})
        (tmp_path / "config.json").write_text(changed)
        with pytest.raises(FormatError, match="activation_sparsity_pattern"):
            ckptforensics.open_checkpoint(tmp_path)
