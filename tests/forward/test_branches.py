"""The true branches of a block, against the modules of transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward.branches import (
    attention_forward,
    block_forward,
    ffn_forward,
    finish_branch,
)
from ckptforensics.layers import Block, load_block
from tests.support.models import attention_of, blocks, save, tiny_gpt2, tiny_llama


@pytest.fixture(scope="module", params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def found(request, tmp_path_factory):
    """A block as it is read, and as the module that was saved."""
    model = request.param()
    folder = save(model, tmp_path_factory.mktemp("model"))
    return load_block(open_checkpoint(folder), 2), blocks(model)[1], model


@pytest.fixture
def x(found) -> np.ndarray:
    width = found[2].config.hidden_size
    return np.random.default_rng(8).standard_normal((9, width)).astype(np.float32)


def norms_of(module):
    if hasattr(module, "ln_1"):
        return module.ln_1, module.ln_2
    return module.input_layernorm, module.post_attention_layernorm


def test_ffn(found, x):
    block, module, _ = found
    with torch.no_grad():
        expected = module.mlp(norms_of(module)[1](torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(ffn_forward(block.ffn, x), expected, rtol=1e-4, atol=1e-5)


def attended(found, x) -> np.ndarray:
    """What attention adds to single tokens: their values through the output map."""
    _, module, model = found
    added = []
    hook = attention_of(module).register_forward_hook(lambda _m, _i, out: added.append(out[0]))
    try:
        with torch.no_grad():
            states = torch.from_numpy(x)[:, None]
            more = {}
            if hasattr(model, "model"):
                more["position_embeddings"] = model.model.rotary_emb(
                    states, torch.zeros(len(x), 1, dtype=torch.int64)
                )
            module(states, **more)
    finally:
        hook.remove()
    return added[0].reshape(x.shape).numpy()


def test_attention_of_a_single_token(found, x):
    expected = attended(found, x)
    np.testing.assert_allclose(
        attention_forward(found[0].attention, x), expected, rtol=1e-4, atol=1e-5
    )


def test_branches_are_added_one_after_the_other_or_side_by_side(found, x):
    block: Block = found[0]
    added = attention_forward(block.attention, x)
    np.testing.assert_array_equal(
        block_forward(block, x), x + added + ffn_forward(block.ffn, x + added)
    )
    parallel = replace(block, residual="parallel")
    np.testing.assert_array_equal(block_forward(parallel, x), x + added + ffn_forward(block.ffn, x))
    np.testing.assert_array_equal(
        block_forward(block, x, with_attention=False), x + ffn_forward(block.ffn, x)
    )


def test_a_branch_has_its_own_factor(found, x):
    ffn = replace(found[0].ffn, scale=0.25)
    np.testing.assert_array_equal(finish_branch(ffn, x), np.float32(0.25) * x)


def test_no_token_goes_through_a_mixer_that_is_not_analysed(found, x):
    block = replace(found[0], attention=None, mixer="its mixer is not analysed")
    with pytest.raises(NothingAnalysable, match=r"layer 2 .*cannot be rolled through"):
        block_forward(block, x)
