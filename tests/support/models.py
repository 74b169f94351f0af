"""Models made with `transformers`, and what its forward pass says of them: the tests' oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

transformers.utils.logging.disable_progress_bar()


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Grouped-query heads, biases everywhere, untied head, odd sizes, gains that are not 1."""
    sizes = {
        "hidden_size": 36,
        "intermediate_size": 53,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 97,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 3e-4,
        "max_position_embeddings": 32,
        "bos_token_id": 5,
        "eos_token_id": 6,
        "pad_token_id": None,
    }
    return _randomised(LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})), seed)


def tiny_gpt2(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """GPT-2 with gains that are not 1 and biases that are not 0."""
    sizes = {
        "n_embd": 36,
        "n_inner": 53,
        "n_layer": 3,
        "n_head": 4,
        "vocab_size": 97,
        "n_positions": 32,
        "layer_norm_epsilon": 3e-4,
        "bos_token_id": 5,
        "eos_token_id": 6,
    }
    return _randomised(GPT2LMHeadModel(GPT2Config(**{**sizes, **changes})), seed)


def _randomised(model: Any, seed: int) -> Any:
    """Every parameter random, at the size that keeps the stream in order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                values *= 1.0 if "wte" in name or "embed" in name else parameter.shape[1] ** -0.5
            elif name.endswith("bias"):
                values *= 0.3
            else:  # a norm's gain
                values = 1 + 0.4 * values
            parameter.copy_(values)
    return model.eval()


def save(model: Any, folder: Path, *, shards: int = 1) -> Path:
    """`save_pretrained`, at about the number of shards asked for."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    name_tokens_within(model)
    model.save_pretrained(folder, max_shard_size=size if shards == 1 else size // shards)
    found = len(list(folder.glob("*.safetensors")))
    assert (found == 1) == (shards == 1), f"{found} shards"
    return folder


def write(folder: Path, tensors: Mapping[str, torch.Tensor], config: Any) -> Path:
    """A checkpoint of these tensors, with `config.json` unless it is None."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def name_tokens_within(model: Any) -> None:
    """Tokens that the configuration names by default, such as GPT-2's 50,256, as one there is."""
    config = model.config
    for part in (config, getattr(config, "text_config", None)):
        size = getattr(part, "vocab_size", None)
        if isinstance(size, int) and (getattr(part, "bos_token_id", None) or 0) >= size:
            part.bos_token_id = part.eos_token_id = 0


def load(folder: Path) -> Any:
    """The model in float32 on the CPU."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def blocks(model: Any) -> Any:
    """The residual blocks of a LLaMA or GPT-2 model."""
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def attention_of(block: Any) -> Any:
    """The attention module of a block."""
    return block.self_attn if hasattr(block, "self_attn") else block.attn


def hidden_states(
    model: Any, tokens: Sequence[Sequence[int]], *, with_attention: bool = True
) -> np.ndarray:
    """The residual stream after every block, by forward hooks.

    Parameters
    ----------
    tokens : sequences of equal length
    with_attention : False hooks every attention module's output to zero

    Returns
    -------
    (sequences, length, layers, hidden_size) float32
    """
    seen: list[np.ndarray] = []

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        state = output if torch.is_tensor(output) else output[0]
        seen.append(state.detach().numpy().copy())

    def silence(_module: Any, _inputs: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:])

    hooks = [block.register_forward_hook(record) for block in blocks(model)]
    if not with_attention:
        hooks += [attention_of(b).register_forward_hook(silence) for b in blocks(model)]
    try:
        with torch.no_grad():
            model(torch.tensor(tokens))
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack(seen, axis=2)


def initial_states(model: Any, tokens: Sequence[int], *, with_attention: bool = True) -> np.ndarray:
    """(tokens, layers, hidden_size): each token alone at position 0."""
    return hidden_states(model, [[t] for t in tokens], with_attention=with_attention)[:, 0]


def write_gguf(model: Any, file: Path) -> Path:
    """Write a LLaMA or GPT-2 model as GGUF in F32, the way llama.cpp's converter lays it out."""
    llama = hasattr(model, "model")
    config = model.config
    writer = gguf.GGUFWriter(file, "llama" if llama else "gpt2")
    writer.add_context_length(32)
    writer.add_bos_token_id(config.bos_token_id)
    if llama:
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_embedding_length(config.n_embd)
        writer.add_block_count(config.n_layer)
        writer.add_feed_forward_length(config.n_inner)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, parameter in model.state_dict().items():
        values = parameter.detach().numpy()
        if not llama and name == "lm_head.weight":  # tied
            continue
        if llama and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_" in name else config.num_key_value_heads
            values = _interleave_rotary(values, heads)
        if not llama and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleave_rotary(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k in the order of llama.cpp's rotary embedding."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    for start in ("model.layers.", "transformer.h."):
        if stem.startswith(start):
            layer, inner = stem.removeprefix(start).split(".", 1)
            return f"blk.{layer}.{_GGUF_NAMES[inner]}.{suffix}"
    return f"{_GGUF_NAMES[stem]}.{suffix}"


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Acute angle between two vectors in degrees; accurate for small angles too."""
    a, b = (np.asarray(x, np.float64) / np.linalg.norm(x) for x in (a, b))
    return float(np.degrees(2 * np.arcsin(min(np.linalg.norm(a - b), np.linalg.norm(a + b)) / 2)))


def relative_error(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Norm of the difference over the norm, along the last axis."""
    difference = np.asarray(found, np.float64) - expected
    return np.linalg.norm(difference, axis=-1) / np.linalg.norm(expected, axis=-1)
