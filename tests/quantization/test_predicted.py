"""Predicted errors against transformers: what enters each module, rounded as smoothquant rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptforensics import open_checkpoint
from ckptforensics.forward import embed
from ckptforensics.layers import load_block
from ckptforensics.probes import advance
from ckptforensics.quantization.encoders import int8
from ckptforensics.quantization.predicted import STANDS_OUT, layer_errors
from tests.support.models import blocks, save, tiny_gpt2, tiny_llama

INITIAL, ORDINARY = [1, 7, 20, 33, 50], [2, 3, 40, 60, 80, 90, 11]


def smoothquant(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """`quantize_activation_per_tensor_absmax` and the weights' twin, written out."""
    scale = largest.clamp(min=1e-5).div(127)
    return (x / scale).round() * scale


@torch.no_grad()
def median_error(module: Any, x: torch.Tensor, largest: list[torch.Tensor]) -> float:
    """Of a module's output for rows of input, each with a largest entry of its own."""
    weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
    w = smoothquant(weight, weight.abs().max())
    exact = x @ weight.T
    wrong = torch.stack([smoothquant(r, m) for r, m in zip(x, largest, strict=True)]) @ w.T - exact
    if module.bias is not None:
        exact = exact + module.bias
    return float((wrong.norm(dim=1) / exact.norm(dim=1)).median())


def watched(model: Any, tokens: list[int], *, attention: bool) -> dict[str, torch.Tensor]:
    """Input of each linear module of the first block, a row a token that stands alone."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    block = blocks(model)[0]
    for name, module in block.named_modules():
        if hasattr(module, "weight") and module.weight.ndim == 2:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: seen.setdefault(name, []).append(
                        args[0].reshape(-1, args[0].shape[-1])
                    )
                )
            )
    if not attention:
        inner = block.self_attn if hasattr(block, "self_attn") else block.attn
        handles.append(
            inner.register_forward_hook(lambda _, __, out: (torch.zeros_like(out[0]), *out[1:]))
        )
    with torch.no_grad():
        for token in tokens:
            model(torch.tensor([[token]]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@torch.no_grad()
def median_of_values(
    module: Any, x: torch.Tensor, largest: list[torch.Tensor], width: int
) -> float:
    """The same of a fused map's last rows, the values; the scale is the whole weight's."""
    w = module.weight.T
    scale = w.abs().max().clamp(min=1e-5) / 127
    exact = x @ w[-width:].T
    rounded_x = torch.stack([smoothquant(r, m) for r, m in zip(x, largest, strict=True)])
    wrong = rounded_x @ ((w[-width:] / scale).round() * scale).T - exact
    return float((wrong.norm(dim=1) / (exact + module.bias[-width:]).norm(dim=1)).median())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_errors_are_those_of_transformers_modules(family, tmp_path):
    model = tiny_llama() if family == "llama" else tiny_gpt2()
    if family == "llama":  # an outlier that one initial token has alone
        with torch.no_grad():
            model.model.embed_tokens.weight[INITIAL[2]] *= 3
    checkpoint = open_checkpoint(save(model, tmp_path))
    x = {"initial": embed(checkpoint, INITIAL), "ordinary": embed(checkpoint, ORDINARY)}
    block = load_block(checkpoint, 1)
    found = layer_errors(block, checkpoint.architecture.layers[0], checkpoint.store, x)
    assert np.array_equal(found.after["initial"], advance(block, x["initial"]))
    # None of them is a trigger here.
    after = advance(block, x["ordinary"], with_attention=False)
    assert np.array_equal(found.after["ordinary"], after)
    alone, beside = (
        watched(model, t, attention=a) for t, a in ((INITIAL, True), (ORDINARY, False))
    )
    modules = dict(blocks(model)[0].named_modules())
    checked = 0
    for row in found.modules:
        name = next(n for n in modules if n and row.tensor.endswith(f".{n}.weight"))
        module = modules[name]
        own = beside[name].abs().max()
        peaks = alone[name].abs().max(dim=1).values
        largest = [torch.maximum(peak, own) for peak in peaks]
        shared = torch.maximum(peaks.median(), own)
        initial, ordinary, ordinary_alone = row.relative
        if type(module).__name__ == "Conv1D" and "c_attn" in name:
            # Only the values enter a single token's path.
            expected = median_of_values(module, alone[name], largest, 36)
            assert initial == pytest.approx(expected, rel=2e-3)
            continue
        assert initial == pytest.approx(median_error(module, alone[name], largest), rel=2e-3)
        checked += 1
        if "attn" in name and "v_proj" not in name:
            continue  # of ordinary tokens the value stands for the mixture
        count = len(ORDINARY)
        expected = median_error(module, beside[name], [shared] * count)
        assert ordinary == pytest.approx(expected, rel=2e-3), name
        expected = median_error(module, beside[name], [own] * count)
        assert ordinary_alone == pytest.approx(expected, rel=2e-3), name
    assert checked == (5 if family == "llama" else 3)


def test_rounding_is_smoothquants():
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    expected = smoothquant(torch.from_numpy(x), torch.from_numpy(x).abs().max()).numpy()
    assert np.allclose(int8(x, float(np.abs(x).max())), expected, rtol=0, atol=1e-6)
    small = np.array([[1e-7, -2e-8]], np.float32)
    assert np.array_equal(int8(small, 1e-7), np.rint(small / (1e-5 / 127)) * (1e-5 / 127))


def test_a_token_that_a_layer_blows_up_is_no_ordinary_one():
    checkpoint = open_checkpoint(Path(__file__).parents[2] / "fixtures" / "planted")
    x = embed(checkpoint, range(40))
    for layer in (1, 2, 3):
        block = load_block(checkpoint, layer)
        plan = checkpoint.architecture.layers[layer - 1]
        errors = layer_errors(block, plan, checkpoint.store, {"initial": x[:3], "ordinary": x[3:]})
        norms = np.linalg.norm(errors.after["ordinary"], axis=1)
        assert norms.max() <= STANDS_OUT * 1.5 * np.median(norms)
