"""`trace` against transformers' own hidden states, and against the rollout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.runtime.experiments.trace import trace
from ckptforensics.runtime.model import start
from ckptforensics.runtime.texts import Text
from ckptforensics.runtime.weights import Placement
from tests.runtime.conftest import block_states, make_small

IDS = [7, 3, 50, 3, 21, 90]


def test_norms_are_those_of_transformers(small):
    document = trace(small.folder, text=Text(token_ids=IDS))
    states = small.states(IDS)
    expected = torch.stack([state[0].norm(dim=-1) for state in states], dim=1).numpy()
    np.testing.assert_allclose(document.norms, expected, rtol=2e-5)
    assert document.token_ids == tuple(IDS)
    assert document.tokens == (None,) * len(IDS)


def test_the_initial_token_takes_the_predicted_path(small):
    document = trace(small.folder, text=Text(token_ids=IDS))
    assert document.prediction_error is not None
    assert document.prediction_error < 2e-5


def test_the_branches_add_up_to_the_stream(small):
    """Attention's part by the output of its own module, which no other reading is needed for."""
    runtime = start(small.folder)
    middles, states = {}, {}
    with (
        runtime.watching_middles(lambda layer, x: middles.__setitem__(layer, x[0].clone())),
        runtime.watching(lambda layer, x: states.__setitem__(layer, x[0].clone())),
    ):
        runtime.forward([IDS])
    document = trace(runtime, text=Text(token_ids=IDS))
    for layer in range(1, 4):
        attended, rest = middles[layer] - states[layer - 1], states[layer] - middles[layer]
        assert attended.norm() > 0.01
        assert rest.norm() > 0.01
        np.testing.assert_allclose(
            [row[layer - 1] for row in document.attention], attended.norm(dim=-1), rtol=1e-4
        )
        np.testing.assert_allclose(
            [row[layer - 1] for row in document.ffn], rest.norm(dim=-1), rtol=1e-4
        )


@pytest.mark.parametrize("name", ["llama", "olmo", "qwen3", "gpt2", "neox"])
def test_attention_is_what_its_module_returns(name, tmp_path):
    model = make_small(tmp_path, name).model
    parts = [
        m for n, m in model.named_modules() if n.endswith((".self_attn", ".attn", ".attention"))
    ]
    added = []
    for part in parts:
        part.register_forward_hook(lambda m, a, out: added.append(out[0][0]))
    block_states(model, IDS)
    document = trace(tmp_path, text=Text(token_ids=IDS))
    assert len(added) == 3
    expected = torch.stack([x.norm(dim=-1) for x in added], dim=1)
    np.testing.assert_allclose(document.attention, expected, rtol=1e-4)


def test_a_token_of_zeros_and_a_model_without_its_head(llama, tmp_path):
    """A padding token's path has norm 0; what needs no head runs without one."""
    shutil.copytree(llama.folder, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.embed_tokens.weight"][3] = 0
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    document = trace(tmp_path / "m", text=Text(token_ids=[3, 5]))
    assert document.norms[0] == (0, 0, 0, 0)
    assert document.prediction_error == 0
    assert document.running.model_class == "LlamaModel"


def test_attention_removed_is_the_rollout_without_attention(llama):
    runtime = start(llama.folder)
    zero = [
        block.self_attn.register_forward_hook(lambda m, a, out: (out[0] * 0, *out[1:]))
        for block in runtime.blocks
    ]
    norms = trace(runtime, text=Text(token_ids=IDS)).norms
    for handle in zero:
        handle.remove()
    rolled = ckptforensics.rollout(llama.folder, tokens=IDS, attention=False).document
    np.testing.assert_allclose(np.array(norms)[:, 1:], rolled.norms, rtol=2e-5)


def test_smollm2_from_gguf(smollm2_gguf, smollm2_f32):
    """The same weights by our readers of GGUF and by transformers from its own layout."""
    from transformers import AutoModelForCausalLM

    document = trace(smollm2_gguf)
    assert document.tokens[:3] == ("Summer", " is", " warm")
    model = AutoModelForCausalLM.from_pretrained(smollm2_f32, dtype=torch.float32)
    seen = []
    model.model.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([document.token_ids]), output_hidden_states=True)
    states = [*found.hidden_states[:-1], seen[0]]
    expected = torch.stack([state[0].norm(dim=-1) for state in states], dim=1)
    np.testing.assert_allclose(document.norms, expected, rtol=1e-4)
    assert document.prediction_error < 1e-5
    assert 23_000 < document.norms[0][12] < 24_000


def test_gemma3_and_an_encoder(gemma3, minilm):
    document = trace(gemma3, text=Text(token_ids=[2, 651, 3]))
    assert document.prediction_error < 1e-5
    encoder = trace(minilm, text=Text(token_ids=[101, 2023, 102]))
    assert encoder.predicted is None
    assert "none is initial" in encoder.skipped[0].reason
    assert len(encoder.norms[0]) == 7
    assert encoder.attention is not None


def test_what_does_not_fit_into_memory_is_offloaded(llama, tmp_path, monkeypatch):
    """The same states to the last bit, and nothing is left behind on the disk."""
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole = trace(llama.folder, text=Text(token_ids=IDS))
    small = Placement(memory=60_000)
    offloaded = trace(llama.folder, text=Text(token_ids=IDS), placement=small)
    assert offloaded.norms == whole.norms
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_adapters_and_quantized_weights_run_too(planted, tmp_path):
    """Merged and dequantized by our readers, run by transformers."""
    from tests.findings.test_quantized_models import quantized_copy
    from tests.support.adapters import base_tensors, low_rank, write_adapter

    tensors = low_rank(base_tensors(planted), ["model.layers.2.mlp.down_proj"])
    adapter = write_adapter(tmp_path / "a", {n: 0.02 * t for n, t in tensors.items()})
    quantized = quantized_copy(planted, tmp_path / "q", "fp8")
    plain = trace(planted, text=Text(token_ids=[3, 5]))
    for checkpoint in (
        ckptforensics.open_checkpoint(adapter, base=planted),
        ckptforensics.open_checkpoint(quantized),
    ):
        document = trace(checkpoint, text=Text(token_ids=[3, 5]))
        assert document.prediction_error < 1e-5
        assert document.norms != plain.norms
