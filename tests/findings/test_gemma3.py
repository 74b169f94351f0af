"""Gemma 3 270M: a high norm that one learned token has alone, grown over many layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ckptforensics
from ckptforensics.tensors.containers.gguf import read_gguf

TOKENS = [2, 818, 1441, 107, 5000, 99999]

_NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


@pytest.fixture(scope="module")
def transformers_states(gemma3: Path) -> np.ndarray:
    """Hidden states after each block of each token alone, from transformers in float32."""
    import gguf
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=len(TOKENS),
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        rms_norm_eps=1e-6,
    )
    state = {}
    # gguf's own reader makes arrays of all strings of the vocabulary first, which takes a minute;
    # that ours finds the same bytes is tested with the containers.
    for tensor in read_gguf(gemma3).tensors.values():
        shape = tensor.shape
        stored = np.memmap(
            gemma3, np.uint8, "r", tensor.offset, (shape[0], tensor.nbytes // shape[0])
        )
        if tensor.name == "token_embd.weight":  # most of the model, of which few rows are looked up
            stored, shape = stored[TOKENS], (len(TOKENS), shape[1])
        values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[tensor.dtype])
        values = np.array(values, np.float32).reshape(shape)
        parts = tensor.name.removesuffix(".weight").split(".")
        block = f"layers.{parts[1]}." if parts[0] == "blk" else ""
        # GGUF stores Gemma's gains as they are applied, transformers less 1.
        values = values - 1 if parts[-1].endswith("norm") else values
        state[f"{block}{_NAMES[parts[-1]]}.weight"] = torch.from_numpy(values)
    with torch.device("meta"):
        model = transformers.Gemma3TextModel(config)
    model.to_empty(device="cpu")
    rebuilt = transformers.Gemma3TextModel._from_config(
        config.__class__(**{**config.to_dict(), "num_hidden_layers": 6, "layer_types": None})
    )
    # Buffers (rotary frequencies, embedding scale) are not stored: take them from a small model.
    # Its sixth layer is the first of full attention, which has frequencies of its own.
    for name, buffer in rebuilt.named_buffers():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, buffer)
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        outputs: list[torch.Tensor] = []
        for block in model.layers:
            block.register_forward_hook(
                lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out)
            )
        model(input_ids=torch.arange(len(TOKENS))[:, None])
    return torch.stack([o.reshape(len(TOKENS), -1) for o in outputs], dim=1).numpy()


def test_rollout_equals_transformers(gemma3: Path, transformers_states: np.ndarray) -> None:
    rolled = ckptforensics.rollout(gemma3, tokens=TOKENS, states=True)
    assert rolled.states is not None
    theirs = transformers_states.astype(np.float64)
    errors = np.linalg.norm(rolled.states - theirs, axis=2) / np.linalg.norm(theirs, axis=2)
    assert errors.max() < 1e-5
    norms = np.array(rolled.document.norms)
    # Published figures: 2,988 after layer 1 growing to 103,853 after layer 15 for the begin token,
    # 83 to 200 after layer 1 for ordinary ones; Q4_K_M dequantized moves them by less than 0.1%.
    assert norms[0, 0] == pytest.approx(2988, rel=1e-3)
    assert norms[0, 14] == pytest.approx(103853, rel=1e-3)
    assert norms[0].argmax() == 14


def test_output_says_what_the_begin_token_does(gemma3: Path) -> None:
    document = ckptforensics.find_layers(gemma3)
    record = document.begin_token
    assert record is not None
    assert (record.token, record.growth, record.peak_layer) == (2, "gradual", 15)
    assert record.largest_ratio > 20
    assert 40 < record.ordinary[0] < 200
    # The rise of the begin token is nobody's explosion layer.
    assert not {1, *range(4, 19)} & {*document.explosion, *document.decay}


def test_smollm2_treats_the_begin_token_like_the_others(smollm2_layers) -> None:
    record = smollm2_layers.begin_token
    assert record is not None
    assert record.growth == "like the others"
