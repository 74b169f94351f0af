"""MLX's quantized weights against the same model with these weights written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError
from tests.support.models import tiny_llama


def quantized(weight, bits, group):
    """Codes, scales and biases of one matrix, and what they stand for."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // group, group)
    low, high = groups.amin(-1), groups.amax(-1)
    scales, biases = ((high - low) / (2**bits - 1)).half(), low.half()
    wide = [t.float()[..., None] for t in (scales, biases)]
    codes = ((groups - wide[1]) / wide[0]).round().clamp(0, 2**bits - 1)
    meant = (codes * wide[0] + wide[1]).view(rows, columns)
    numbers = codes.view(rows, columns).numpy().astype(np.uint8)
    stream = np.unpackbits(numbers[..., None], axis=-1, bitorder="little")[..., :bits]
    words = np.packbits(stream.reshape(rows, -1), axis=-1, bitorder="little").view("<u4")
    return torch.from_numpy(words.copy()), scales, biases, meant


def write(folder, bits, config, group=32):
    model = tiny_llama(
        hidden_size=64, intermediate_size=96, head_dim=32, num_attention_heads=4,
        attention_bias=False, mlp_bias=False,
    )  # fmt: skip
    stored, meant = {}, {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2:
            stem = name.removesuffix("weight")
            stored[name], stored[stem + "scales"], stored[stem + "biases"], meant[name] = quantized(
                tensor, bits, group
            )
        else:
            stored[name] = meant[name] = tensor.clone()
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | config))
    return meant


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_the_weights_that_are_meant(tmp_path, bits, key):
    meant = write(tmp_path, bits, {key: {"group_size": 32, "bits": bits}})
    opened = open_checkpoint(tmp_path)
    for name, tensor in meant.items():
        found = opened.store.read(name)
        np.testing.assert_allclose(found, tensor.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "groups of 64 codes of 4 bits"),
        ({"quantization": {"group_size": 32, "bits": "x"}}, "codes of 'x' bits are not known"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "MLX, mxfp4"),
        ({}, "no configuration says how it is made"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, config, told):
    write(tmp_path, 4, config)
    with pytest.raises(CkptError, match=told):
        open_checkpoint(tmp_path)
