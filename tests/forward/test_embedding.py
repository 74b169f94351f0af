"""The residual stream before the first block, against what transformers' first block is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward.embedding import embed, vocabulary_size
from tests.support.models import blocks, save, tiny_gpt2, tiny_llama

# A run, a repeated id, and the last of the vocabulary.
TOKENS = [3, 4, 5, 40, 3, 96, 0]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_single_tokens(make, tmp_path: Path):
    model = make()
    given: list[torch.Tensor] = []
    hook = blocks(model)[0].register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model(torch.tensor(TOKENS)[:, None])
    hook.remove()
    checkpoint = open_checkpoint(save(model, tmp_path))
    found = embed(checkpoint, TOKENS)
    np.testing.assert_array_equal(found, given[0][:, 0].numpy())
    assert vocabulary_size(checkpoint) == 97
    assert embed(checkpoint, []).shape == (0, 36)


def test_files_without_embeddings_are_refused(tmp_path: Path):
    path = save(tiny_llama(), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NothingAnalysable, match="no token embeddings"):
        embed(open_checkpoint(tmp_path), TOKENS)
