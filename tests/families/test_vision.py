"""Vision towers: every block against transformers' own module on a single patch token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file

import ckptforensics
from ckptforensics import CkptError, Fit
from ckptforensics.cli.main import cli
from ckptforensics.layers import stream_blocks
from ckptforensics.linear import block_map, ffn_map
from ckptforensics.linear.forward import block_forward
from tests.families.harness import Case, build_model

TOLERANCE = 1e-5
_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_TOWER = {**_SIZES, "intermediate_size": 70}
_TEXT: dict[str, Any] = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 8,
}


@dataclass(frozen=True)
class Tower:
    """A tower: its family, transformers configuration and class, and the path to its blocks."""

    name: str
    family: str
    config: Callable[[], Any]
    model: str
    blocks: str


TOWERS = [
    Tower(
        "dinov2",
        "dinov2",
        lambda: transformers.Dinov2Config(**_SIZES, mlp_ratio=3),
        "Dinov2Model",
        "encoder.layer",
    ),
    Tower(
        "dinov2-classifier",
        "dinov2",
        lambda: transformers.Dinov2Config(**_SIZES),
        "Dinov2ForImageClassification",
        "dinov2.encoder.layer",
    ),
    Tower(
        "dinov2-swiglu",
        "dinov2_swiglu",
        lambda: transformers.Dinov2Config(**_SIZES, use_swiglu_ffn=True),
        "Dinov2Model",
        "encoder.layer",
    ),
    Tower(
        "dinov2-registers",
        "dinov2",
        lambda: transformers.Dinov2WithRegistersConfig(**_SIZES),
        "Dinov2WithRegistersModel",
        "encoder.layer",
    ),
    Tower(
        "dinov2-registers-swiglu",
        "dinov2_swiglu",
        lambda: transformers.Dinov2WithRegistersConfig(**_SIZES, use_swiglu_ffn=True),
        "Dinov2WithRegistersForImageClassification",
        "dinov2_with_registers.encoder.layer",
    ),
    Tower(
        "clip-vision",
        "clip_vision",
        lambda: transformers.CLIPVisionConfig(**_TOWER),
        "CLIPVisionModel",
        "encoder.layers",
    ),
    Tower(
        "clip-vision-projection",
        "clip_vision",
        lambda: transformers.CLIPVisionConfig(**_TOWER, hidden_act="gelu"),
        "CLIPVisionModelWithProjection",
        "vision_model.encoder.layers",
    ),
    Tower(
        "clip",
        "clip_vision",
        lambda: transformers.CLIPConfig(vision_config=_TOWER, text_config=_TEXT),
        "CLIPModel",
        "vision_model.encoder.layers",
    ),
    Tower(
        "siglip-vision",
        "siglip_vision",
        lambda: transformers.SiglipVisionConfig(**_TOWER),
        "SiglipVisionModel",
        "encoder.layers",
    ),
    Tower(
        "siglip",
        "siglip_vision",
        lambda: transformers.SiglipConfig(vision_config=_TOWER, text_config=_TEXT),
        "SiglipModel",
        "vision_model.encoder.layers",
    ),
    Tower(
        "siglip2",
        "siglip_vision",
        lambda: transformers.Siglip2Config(
            vision_config={k: v for k, v in _TOWER.items() if k != "image_size"},
            text_config=_TEXT,
        ),
        "Siglip2Model",
        "vision_model.encoder.layers",
    ),
]


def _saved(tower: Tower, folder: Path) -> torch.nn.Module:
    model = build_model(
        Case(name=tower.name, family=tower.family, config=tower.config, model=tower.model)
    )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
def test_blocks_equal_transformers(tower: Tower, tmp_path: Path) -> None:
    assert worst_block_error(tower, tmp_path) < TOLERANCE


def worst_block_error(tower: Tower, folder: Path) -> float:
    """Largest relative difference of a block's output on random vectors from transformers'."""
    model = _saved(tower, folder)
    checkpoint = ckptforensics.open_checkpoint(folder)
    assert checkpoint.architecture.family.name == tower.family
    assert checkpoint.architecture.source == "config"
    assert not checkpoint.architecture.notes
    modules = attrgetter(tower.blocks)(model)
    assert checkpoint.architecture.sizes.num_layers == len(modules)
    worst = 0.0
    generator = np.random.default_rng(3)
    x = 2 * generator.standard_normal((5, checkpoint.architecture.sizes.hidden_size))
    x = x.astype(np.float32)
    for block, module in zip(stream_blocks(checkpoint), modules, strict=True):
        with torch.no_grad():
            theirs = module(torch.from_numpy(x)[:, None], attention_mask=None)
        theirs = (theirs[0] if isinstance(theirs, tuple) else theirs).numpy().reshape(x.shape)
        ours = block_forward(block, x)
        errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        worst = max(worst, float(errors.max()))
    return worst


def test_layer_scale_is_part_of_l(tmp_path: Path) -> None:
    _saved(TOWERS[0], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for block in stream_blocks(ckptforensics.open_checkpoint(tmp_path)):
        begin = f"encoder.layer.{block.layer - 1}."
        w = {n[len(begin) :]: t.astype(np.float64) for n, t in tensors.items() if begin in n}
        identity = np.eye(len(w["norm1.weight"]))
        centring = identity - 1 / len(identity)
        value = w["attention.attention.value.weight"] * w["norm1.weight"] @ centring
        a = w["attention.output.dense.weight"] @ value
        f = ffn_map(block.ffn, Fit(), block.layer).dense()
        expected = (identity + w["layer_scale2.lambda1"][:, None] * f) @ (
            identity + w["layer_scale1.lambda1"][:, None] * a
        )
        ours = block_map(block, Fit()).dense()
        assert np.linalg.norm(ours - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("tower", [TOWERS[2], TOWERS[7]], ids=lambda tower: tower.name)
def test_accumulated_directions_are_those_of_the_product(tower: Tower, tmp_path: Path) -> None:
    _saved(tower, tmp_path)
    checkpoint = ckptforensics.open_checkpoint(tmp_path)
    found = ckptforensics.accumulate(checkpoint)
    document = ckptforensics.find_layers(checkpoint, accumulated=True)
    product = np.eye(checkpoint.architecture.sizes.hidden_size)
    for block, ours, record in zip(
        stream_blocks(checkpoint), found, document.accumulated, strict=True
    ):
        own = block_map(block, Fit()).dense().astype(np.float64)
        product = own @ product
        u, s, _ = np.linalg.svd(product)
        alone = np.linalg.svd(own)[0][:, 0]
        assert ours.layer == record.layer == block.layer
        assert ours.log10_sigma == pytest.approx(np.log10(s[0]), abs=1e-8)
        assert ours.gap == pytest.approx(s[0] / s[1], rel=1e-6)
        # A residual of 1e-5 leaves an angle of this size where the gap is small.
        angle = 1e-5 / (1 - s[1] / s[0])
        assert 1 - abs(float(u[:, 0] @ ours.direction)) < max(angle**2, 1e-12)
        assert np.linalg.norm(ours.direction) == pytest.approx(1)
        assert ours.direction[np.argmax(np.abs(ours.direction))] > 0
        assert ours.layer_cosine == pytest.approx(abs(float(alone @ u[:, 0])), abs=1e-3)
        assert record.angle_deg == pytest.approx(np.degrees(np.arccos(ours.layer_cosine)))
        assert record.log10_sigma == ours.log10_sigma
        top = dict(record.direction_top)
        assert all(top[i] == ours.direction[i] for i in top)


def test_a_product_beyond_the_range_of_floats(tmp_path: Path) -> None:
    """LayerScale of 1e15 makes s1 of each L over 1e20: their product exceeds float32 by far."""
    model = _saved(TOWERS[0], tmp_path)
    with torch.no_grad():
        for layer in model.encoder.layer:
            for scale in (layer.layer_scale1, layer.layer_scale2):
                scale.lambda1.mul_(1e15)
    model.save_pretrained(tmp_path)
    found = ckptforensics.accumulate(tmp_path)
    assert [a.log10_sigma > 20 * a.layer for a in found] == [True] * 3
    assert all(np.isfinite(a.direction).all() for a in found)


def test_towers_have_no_rollout_and_say_why(tmp_path: Path) -> None:
    tower = TOWERS[7]
    _saved(tower, tmp_path)
    reason = "models of the family 'clip_vision' embed no tokens, so none can be rolled out"
    with pytest.raises(CkptError, match=reason):
        ckptforensics.rollout(tmp_path, tokens=[1])
    document = ckptforensics.find_layers(tmp_path)
    assert document.accumulated == ()
    assert [row.label for row in document.layers] == [None] * 3
    assert [s.reason for s in document.skipped] == [f"{reason}; layers get no label without it"]
    signature = ckptforensics.sign(tmp_path)
    assert signature.u.shape == (3, 48)
    unread = {t.name: t.skipped for t in ckptforensics.inspect(tmp_path).tensors}
    assert unread["vision_model.embeddings.position_embedding.weight"] == "before the first block"
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    assert unread[name] == "another component of the model"
    assert ckptforensics.inspect(tmp_path).vocabulary_size is None


def test_the_command_prints_accumulated_directions(tmp_path: Path) -> None:
    _saved(TOWERS[0], tmp_path)
    arguments = ["layers", str(tmp_path), "--accumulated", "--no-progress"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0
    assert "accumulated: u1 of the product of all layers so far" in table.stdout
    printed = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    document = ckptforensics.find_layers(tmp_path, accumulated=True)
    rows = json.loads(printed.stdout)["accumulated"]
    assert rows == json.loads(document.model_dump_json())["accumulated"]
