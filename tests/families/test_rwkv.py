"""RWKV 4 beyond the rollout: the fit behind an output gate, and later versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ckptforensics
from ckptforensics.errors import NothingAnalysable, TensorError
from ckptforensics.forward import ffn_forward
from ckptforensics.layers import load_block
from ckptforensics.linear import Fit
from ckptforensics.linear.block import ffn_map
from ckptforensics.probes import trigger
from tests.support.families.cases_hybrids import CASES
from tests.support.families.harness import build_model, published

RWKV = next(case for case in CASES if case.name == "rwkv")


def test_output_gate_of_an_ffn_is_fitted(tmp_path: Path):
    """F of RWKV's channel mixing against least squares on its own module, 1e6 vectors.

    The closed form leaves out the second order in the covariance of gate and hidden units. Twice
    the sampling noise bounds the difference: it is 1.0 times the noise, and would be 2.4 times if
    gate and hidden units counted as independent.
    """
    model = build_model(RWKV)
    model.save_pretrained(tmp_path)
    ours = ffn_map(load_block(ckptforensics.open_checkpoint(tmp_path), 2).ffn, Fit(), 2).dense()
    layer, generator = model.rwkv.blocks[1], torch.Generator().manual_seed(0)
    gram, cross = torch.zeros(49, 49).double(), torch.zeros(49, 48).double()
    halves = []
    for half in range(2):
        for _ in range(50):
            z = torch.randn(10_000, 48, generator=generator)
            z -= z.mean(dim=1, keepdim=True)
            with torch.no_grad():
                y = layer.feed_forward((z * layer.ln2.weight + layer.ln2.bias)[:, None])[0][:, 0]
            rows = torch.cat([z, torch.ones(len(z), 1)], dim=1).double()
            gram, cross = gram + rows.T @ rows, cross + rows.T @ y.double()
        solution = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ cross
        halves.append(solution[:48].T.numpy())
        if half == 0:
            first = gram, cross
    rest = torch.linalg.pinv(gram - first[0], rtol=1e-10, hermitian=True) @ (cross - first[1])
    # The halves differ by sqrt 2 of the noise of each, twice that of the whole.
    noise = np.linalg.norm(halves[0] - rest[:48].T.numpy()) / 2
    assert np.linalg.norm(ours - halves[1]) < 1.3 * noise


def test_rwkv_super_weight_counts_the_gate(tmp_path: Path):
    """The amplitude is what the entry adds to its row behind the gate."""
    build_model(RWKV).save_pretrained(tmp_path)
    ffn = load_block(ckptforensics.open_checkpoint(tmp_path), 1).ffn
    v = np.random.default_rng(0).standard_normal(48)
    found = trigger(ffn, v / np.linalg.norm(v)).super_weight
    down = ffn.down.weight.copy()
    down[found.row, found.column] = 0
    without = replace(ffn, down=replace(ffn.down, matrix=down))
    x = np.float32(np.sqrt(48)) * np.stack([v, -v]).astype(np.float32) / np.linalg.norm(v)
    change = (ffn_forward(ffn, x) - ffn_forward(without, x))[:, found.row]
    assert np.abs(change - found.amplitude).min() < 1e-5 * abs(found.amplitude)


def test_later_rwkv_is_refused(tmp_path: Path):
    build_model(RWKV).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "rwkv6"}))
    with pytest.raises(NothingAnalysable, match=r"'rwkv6' .*version 4"):
        ckptforensics.open_checkpoint(tmp_path)


@pytest.mark.parametrize("shape", [None, (1, 1, 47)])
def test_a_lost_or_misshapen_factor_on_an_input(shape, tmp_path: Path):
    name = "rwkv.blocks.1.feed_forward.time_mix_key"
    build_model(RWKV).save_pretrained(tmp_path)

    def change(tensors, config):
        tensors.pop(name)
        return tensors | ({} if shape is None else {name: torch.ones(shape)}), config

    published(change)(tmp_path)
    with pytest.raises(TensorError, match=name):
        ckptforensics.open_checkpoint(tmp_path)
