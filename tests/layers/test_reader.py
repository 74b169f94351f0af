"""Weights by their roles, against the parameters of the modules that were saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.layers import load_block
from tests.support.models import save, tiny_gpt2, tiny_llama


def same(found: np.ndarray | None, parameter: torch.Tensor) -> None:
    assert found is not None
    np.testing.assert_array_equal(found, parameter.detach().numpy())


def test_heads_that_share_values(tmp_path: Path) -> None:
    model = tiny_llama()
    block = load_block(open_checkpoint(save(model, tmp_path)), 2)
    module = model.model.layers[1]
    attention = block.attention
    assert attention is not None
    assert (attention.head_dim, attention.repeats) == (10, 3)
    same(attention.value.weight, module.self_attn.v_proj.weight)
    same(attention.value.bias, module.self_attn.v_proj.bias)
    assert attention.norm is not None
    assert (attention.norm.kind, attention.norm.bias) == ("rms", None)
    same(attention.norm.gain, module.input_layernorm.weight)


def test_a_share_of_a_fused_and_transposed_matrix(tmp_path: Path) -> None:
    """GPT-2 stores (in, out), and q, k and v in one tensor."""
    model = tiny_gpt2()
    block = load_block(open_checkpoint(save(model, tmp_path)), 3)
    module = model.transformer.h[2]
    attention = block.attention
    assert attention is not None
    same(attention.value.weight, module.attn.c_attn.weight[:, 72:].T)
    same(attention.value.bias, module.attn.c_attn.bias[72:])
    assert block.ffn.gate is None
    same(block.ffn.down.weight, module.mlp.c_proj.weight.T)
    assert block.ffn.norm is not None
    assert block.ffn.norm.kind == "layer"
    same(block.ffn.norm.bias, module.ln_2.bias)


def test_large_matrices_stay_as_they_are_stored_where_that_is_asked_for(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=30_000).to(torch.bfloat16)
    checkpoint = open_checkpoint(save(model, tmp_path))
    kept, decoded = (load_block(checkpoint, 1, keep=keep) for keep in (True, False))
    assert isinstance(kept.ffn.up.matrix, Bf16Matrix)
    assert isinstance(decoded.ffn.up.matrix, np.ndarray)
    np.testing.assert_array_equal(kept.ffn.up.weight, decoded.ffn.up.weight)
    # Small ones are decoded all the same.
    assert kept.attention is not None
    assert isinstance(kept.attention.value.matrix, np.ndarray)
