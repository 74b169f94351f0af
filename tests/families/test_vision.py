"""Vision towers: every block against transformers' own module on a single patch token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

import ckptforensics
from ckptforensics import CkptError, Fit
from ckptforensics.cli.main import cli
from ckptforensics.layers import stream_blocks
from ckptforensics.linear import block_map, ffn_map
from tests.support.families.towers import TOLERANCE, TOWERS, Tower, saved_tower, worst_block_error


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower.name)
def test_blocks_equal_transformers(tower: Tower, tmp_path: Path) -> None:
    assert worst_block_error(tower, tmp_path) < TOLERANCE


def test_layer_scale_is_part_of_l(tmp_path: Path) -> None:
    saved_tower(TOWERS[0], tmp_path)
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
    saved_tower(tower, tmp_path)
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
        # The second value stops at a residual of 1e-2, which it is off by about the square of.
        assert ours.gap == pytest.approx(s[0] / s[1], rel=1e-3)
        # A residual of 1e-4 leaves an angle of this size where the gap is small.
        angle = 1e-4 / (1 - s[1] / s[0])
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
    model = saved_tower(TOWERS[0], tmp_path)
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
    saved_tower(tower, tmp_path)
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
    saved_tower(TOWERS[0], tmp_path)
    arguments = ["layers", str(tmp_path), "--accumulated", "--no-progress"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0
    assert "accumulated: u1 of the product of all layers so far" in table.stdout
    printed = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    document = ckptforensics.find_layers(tmp_path, accumulated=True)
    rows = json.loads(printed.stdout)["accumulated"]
    assert rows == json.loads(document.model_dump_json())["accumulated"]
