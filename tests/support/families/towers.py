"""Vision towers, and transformers' own blocks of them on single patch tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import ckptforensics
from ckptforensics.forward import block_forward
from ckptforensics.layers import stream_blocks
from tests.support.families.harness import Case, build_model

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


def saved_tower(tower: Tower, folder: Path) -> torch.nn.Module:
    """The tower's model with random weights, saved in the folder."""
    model = build_model(
        Case(name=tower.name, family=tower.family, config=tower.config, model=tower.model)
    )
    model.save_pretrained(folder)
    return model


def run_one_patch(block: torch.nn.Module) -> None:
    """Run a random patch token alone through a block."""
    width = next(p for p in block.parameters()).shape[-1]
    block(torch.randn(1, 1, width), attention_mask=None)


def worst_block_error(tower: Tower, folder: Path) -> float:
    """Largest relative difference of a block's output on random vectors from transformers'."""
    model = saved_tower(tower, folder)
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
