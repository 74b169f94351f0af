"""`canonical` sees the function, not how it is written: rewritten models give the same spectrum.

Each rewriting changes the weights and leaves the model's output alone, which transformers
confirms. Singular values must stay, and directions must turn as the residual basis does.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptforensics
from ckptforensics import Fit, open_checkpoint
from ckptforensics.layers import stream_blocks
from ckptforensics.linear import block_map
from tests.support import models

# Both sides are made in float64 and stored in float32, which alone moves a singular value by some
# parts in 1e7.
SAME = 1e-5
# The second singular value stops at a residual of 1e-2, which it is off by the square of.
SAME_SECOND = 1e-3

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 10


def _llama() -> Any:
    """A random model with a planted neuron in two layers, so that some layers have a gap."""
    model = models.tiny_llama(7).double()
    random = np.random.default_rng(8)
    for layer, size in ((0, 30.0), (2, -12.0)):
        mlp = model.model.layers[layer].mlp
        trigger, answer = (torch.tensor(random.standard_normal(36)) for _ in range(2))
        mlp.gate_proj.weight.data[11] = 0.4 * trigger
        mlp.up_proj.weight.data[11] = 0.4 * trigger
        mlp.down_proj.weight.data[:, 11] = size * answer / 6
    return model


def _gpt2() -> Any:
    model = models.tiny_gpt2(9).double()
    random = np.random.default_rng(10)
    mlp = model.transformer.h[1].mlp
    trigger, answer = (torch.tensor(random.standard_normal(36)) for _ in range(2))
    mlp.c_fc.weight.data[:, 13] = 0.5 * (trigger - trigger.mean())
    mlp.c_proj.weight.data[13] = 5 * answer
    return model


def _orthogonal(size: int, *, fixing_ones: bool = False) -> torch.Tensor:
    """A random rotation; one that keeps the vector of ones commutes with centring."""
    random = np.random.default_rng(12)
    if not fixing_ones:
        return torch.tensor(np.linalg.qr(random.standard_normal((size, size)))[0])
    basis = np.linalg.qr(np.c_[np.ones(size), random.standard_normal((size, size - 1))])[0]
    inner = np.linalg.qr(random.standard_normal((size - 1, size - 1)))[0]
    turned = basis.copy()
    turned[:, 1:] = basis[:, 1:] @ inner
    return torch.tensor(turned @ basis.T)


def fold_gains(model: Any) -> None:
    """Norm gains (and shifts) into the matrices that read the norm's output."""
    if hasattr(model, "model"):
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            readers = {
                block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
                block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
            }
            for norm, matrices in readers.items():
                for matrix in matrices:
                    matrix.weight.data *= norm.weight.data
                norm.weight.data.fill_(1)
        model.lm_head.weight.data *= model.model.norm.weight.data
        model.model.norm.weight.data.fill_(1)
        return
    for block in model.transformer.h:
        for norm, matrix in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            matrix.bias.data += norm.bias.data @ matrix.weight.data
            matrix.weight.data *= norm.weight.data[:, None]
            norm.weight.data.fill_(1)
            norm.bias.data.zero_()


def permute_neurons(model: Any) -> None:
    """Hidden units of every FFN in another order."""
    generator = torch.Generator().manual_seed(1)
    for block in models.blocks(model):
        mlp = block.mlp
        if hasattr(model, "model"):
            order = torch.randperm(mlp.up_proj.out_features, generator=generator)
            for matrix in (mlp.gate_proj, mlp.up_proj):
                matrix.weight.data = matrix.weight.data[order]
                matrix.bias.data = matrix.bias.data[order]
            mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
        else:
            order = torch.randperm(mlp.c_fc.weight.shape[1], generator=generator)
            mlp.c_fc.weight.data = mlp.c_fc.weight.data[:, order].contiguous()
            mlp.c_fc.bias.data = mlp.c_fc.bias.data[order]
            mlp.c_proj.weight.data = mlp.c_proj.weight.data[order].contiguous()


def rescale_units(model: Any) -> None:
    """Each up row times a number of either sign, its down column divided by it."""
    generator = torch.Generator().manual_seed(2)
    for block in model.model.layers:
        up, down = block.mlp.up_proj, block.mlp.down_proj
        size = torch.exp(torch.randn(up.out_features, generator=generator, dtype=torch.float64))
        sign = 2.0 * torch.randint(0, 2, (up.out_features,), generator=generator) - 1
        assert -1 in sign
        assert 1 in sign
        up.weight.data *= (size * sign)[:, None]
        up.bias.data *= size * sign
        down.weight.data /= size * sign


def permute_heads(model: Any) -> None:
    """Key-value groups in another order, and the query heads inside each."""
    generator = torch.Generator().manual_seed(3)
    for block in models.blocks(model):
        if hasattr(model, "model"):
            attention = block.self_attn
            groups = torch.tensor([1, 0])
            inside = HEADS // KV_HEADS
            heads = [
                int(g) * inside + int(h)
                for g in groups
                for h in torch.randperm(inside, generator=generator)
            ]
            query_rows = _rows(heads, HEAD_DIM)
            value_rows = _rows(groups.tolist(), HEAD_DIM)
            for matrix, rows in (
                (attention.q_proj, query_rows),
                (attention.k_proj, value_rows),
                (attention.v_proj, value_rows),
            ):
                matrix.weight.data = matrix.weight.data[rows]
                matrix.bias.data = matrix.bias.data[rows]
            output = attention.o_proj
            output.weight.data = output.weight.data[:, query_rows].contiguous()
        else:
            rows = _rows([2, 0, 3, 1], 9)
            fused = torch.cat([rows, rows + 36, rows + 72])
            block.attn.c_attn.weight.data = block.attn.c_attn.weight.data[:, fused].contiguous()
            block.attn.c_attn.bias.data = block.attn.c_attn.bias.data[fused]
            block.attn.c_proj.weight.data = block.attn.c_proj.weight.data[rows].contiguous()


def _rows(heads: list[int], width: int) -> torch.Tensor:
    return torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads])


def rotate(model: Any) -> None:
    """The residual basis turned by an orthogonal matrix, once no gain marks an axis."""
    fold_gains(model)
    if hasattr(model, "model"):
        turn = _orthogonal(36)
        model.model.embed_tokens.weight.data @= turn.T
        model.lm_head.weight.data @= turn.T
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            readers = (attention.q_proj, attention.k_proj, attention.v_proj)
            for matrix in (*readers, mlp.gate_proj, mlp.up_proj):
                matrix.weight.data = matrix.weight.data @ turn.T
            for matrix in (attention.o_proj, mlp.down_proj):
                matrix.weight.data = turn @ matrix.weight.data
                matrix.bias.data = turn @ matrix.bias.data
        return
    turn = _orthogonal(36, fixing_ones=True)
    # The final norm's gain marks the axes too, and the head is tied: it is set to 1 beforehand.
    model.transformer.wte.weight.data = model.transformer.wte.weight.data @ turn.T
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data @ turn.T
    for block in model.transformer.h:
        for matrix in (block.attn.c_attn, block.mlp.c_fc):
            matrix.weight.data = turn @ matrix.weight.data
        for matrix in (block.attn.c_proj, block.mlp.c_proj):
            matrix.weight.data = matrix.weight.data @ turn.T
            matrix.bias.data = matrix.bias.data @ turn.T


def everything(model: Any) -> None:
    for rewrite in (permute_neurons, permute_heads, rescale_units, rotate):
        if rewrite is not rescale_units or hasattr(model, "model"):
            rewrite(model)


GATED = [fold_gains, permute_neurons, rescale_units, permute_heads, rotate, everything]
PLAIN = [fold_gains, permute_neurons, permute_heads, rotate, everything]
CASES = [
    *(pytest.param(_llama, rewrite, id=f"llama-{rewrite.__name__}") for rewrite in GATED),
    *(pytest.param(_gpt2, rewrite, id=f"gpt2-{rewrite.__name__}") for rewrite in PLAIN),
]


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 17, 3, 80, 41, 2, 9], [1, 1, 90, 33, 6, 7, 50]])).logits


def _both(
    make: Callable[[], Any], rewrite: Callable[[Any], None], folder: Path
) -> tuple[Path, Path, np.ndarray]:
    """The model before and after, saved in float32, and the turn of its residual basis."""
    original = make()
    if hasattr(original, "transformer"):
        original.transformer.ln_f.weight.data.fill_(1)
        original.transformer.ln_f.bias.data.zero_()
    rewritten = deepcopy(original)
    rewrite(rewritten)
    expected, found = _logits(original.float()), _logits(rewritten.float())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    changed = [
        not torch.equal(a, b)
        for a, b in zip(original.parameters(), rewritten.parameters(), strict=True)
    ]
    assert any(changed)
    turn = np.eye(36)
    if rewrite in (rotate, everything):
        turn = _orthogonal(36, fixing_ones=hasattr(original, "transformer")).numpy()
    paths = [models.save(m, folder / n) for m, n in ((original, "before"), (rewritten, "after"))]
    return paths[0], paths[1], turn


def same_sigma(one: ckptforensics.Signature, other: ckptforensics.Signature) -> None:
    """The leading singular values agree, and the second ones as far as they are known."""
    np.testing.assert_allclose(one.sigma[:, 0], other.sigma[:, 0], rtol=SAME)
    np.testing.assert_allclose(one.sigma[:, 1], other.sigma[:, 1], rtol=SAME_SECOND)


@pytest.mark.parametrize(("make", "rewrite"), CASES)
def test_signature_follows_the_rewriting(make, rewrite, tmp_path: Path):
    before, after, turn = _both(make, rewrite, tmp_path)
    one, other = ckptforensics.sign(before), ckptforensics.sign(after)
    same_sigma(other, one)
    gaps = one.sigma[:, 0] / one.sigma[:, 1]
    assert gaps.max() > 3  # the planted neuron is seen
    for layer, gap in enumerate(gaps):
        if gap > 1.05:
            # Float32 noise of 1e-6 and a residual of 1e-4 on either side, over the gap.
            limit = np.degrees(2e-4 / (1 - 1 / gap))
            assert models.angle(other.u[layer], turn @ one.u[layer]) < limit
            assert models.angle(other.v[layer], turn @ one.v[layer]) < 20 * limit


@pytest.mark.parametrize(("make", "rewrite"), CASES)
def test_whole_operator_follows_the_rewriting(make, rewrite, tmp_path: Path):
    """L of the rewritten model is Q L Q': all singular values, all directions."""
    before, after, turn = _both(make, rewrite, tmp_path)
    pairs = zip(*(stream_blocks(open_checkpoint(path)) for path in (before, after)), strict=True)
    for one, other in pairs:
        dense, turned = (block_map(block, Fit()).dense().astype(float) for block in (one, other))
        error = np.linalg.norm(turned - turn @ dense @ turn.T)
        assert error < SAME * np.linalg.norm(dense)
        values, others = (np.linalg.svd(m, compute_uv=False) for m in (dense, turned))
        np.testing.assert_allclose(others, values, atol=SAME * values[0])


def test_paper_is_not_covariant(tmp_path: Path):
    """Folding the gains, which changes nothing, moves the published fit's answer."""
    before, after, _ = _both(_llama, fold_gains, tmp_path)
    one, other = (ckptforensics.sign(path, fit=Fit("paper")) for path in (before, after))
    changes = np.abs(other.sigma[:, 0] / one.sigma[:, 0] - 1)
    assert changes.max() > 0.1
    angles = [models.angle(a, b) for a, b in zip(one.u, other.u, strict=True)]
    triggers = [models.angle(a, b) for a, b in zip(one.v, other.v, strict=True)]
    assert max(angles) > 1
    assert max(triggers) > 5
    # After folding there is no gain left to disagree about.
    canonical = ckptforensics.sign(after)
    same_sigma(canonical, other)


@pytest.mark.parametrize("fit", [Fit("canonical"), Fit("paper")])
def test_permutations_and_rescaling_spare_both_fits(fit: Fit, tmp_path: Path):
    for rewrite in (permute_neurons, rescale_units, permute_heads):
        before, after, _ = _both(_llama, rewrite, tmp_path / rewrite.__name__)
        one, other = (ckptforensics.sign(path, fit=fit) for path in (before, after))
        same_sigma(other, one)
