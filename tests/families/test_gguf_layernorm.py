"""GGUF files of these families, laid out as llama.cpp's converter lays them out.

The converter stacks fused q, k, v that were grouped by heads, and adds 1 to gains stored less 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from ckptforensics.architectures import families
from tests.families.cases_layernorm import CASES
from tests.families.harness import (
    Case,
    State,
    build_model,
    hidden_states,
    relative_errors,
    rollout_states,
)

TOKENS = [3, 7, 11, 19, 42]
Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Target:
    """How the converter writes a family.

    Attributes
    ----------
    architecture : value of `general.architecture`
    names : parts of names to replace, in this order
    fused : name of the tensors in which q, k, v are fused by groups of heads
    gain_offset : added to the gains
    """

    architecture: str
    names: Names
    fused: str | None = None
    gain_offset: float = 0.0


_GPT2: Names = (
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.h.", "blk."),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
)
_LLAMA: Names = (
    ("lm_head", "output"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.final_layernorm", "output_norm"),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
)
_MEGATRON: Names = (
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
    ("lm_head", "output"),
    ("transformer.word_embeddings_layernorm", "token_embd_norm"),
    ("transformer.word_embeddings", "token_embd"),
    ("transformer.ln_f", "output_norm"),
    ("gpt_neox.layers.", "blk."),
    ("transformer.h.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("ln_mlp", "attn_norm"),
    ("ln_attn", "attn_norm_2"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attention.dense", "attn_output"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
)
_MPT: Names = (
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.norm_f", "output_norm"),
    ("transformer.blocks.", "blk."),
    ("norm_1", "attn_norm"),
    ("norm_2", "ffn_norm"),
    ("attn.Wqkv", "attn_qkv"),
    ("attn.out_proj", "attn_output"),
    ("ffn.up_proj", "ffn_up"),
    ("ffn.down_proj", "ffn_down"),
)
TARGETS = {
    "phi-2": Target("phi2", _LLAMA),
    "mpt-alibi": Target("mpt", _MPT),
    "mpt-clipped": Target("mpt", _MPT),
    "mpt-learned-positions": Target("mpt", _MPT),
    "pythia-parallel": Target("gptneox", _MEGATRON, "attn_qkv"),
    "gpt-neox-sequential": Target("gptneox", _MEGATRON, "attn_qkv"),
    "falcon-7b": Target("falcon", _MEGATRON, "attn_qkv"),
    "falcon-40b": Target("falcon", _MEGATRON, "attn_qkv"),
    "falcon-2-11b": Target("falcon", _MEGATRON, "attn_qkv"),
    "bloom": Target("bloom", _MEGATRON, "attn_qkv"),
    "starcoder-multi-query": Target("starcoder", _GPT2),
    "starcoder2": Target("starcoder2", _LLAMA),
    "stablelm-2-1.6b": Target("stablelm", _LLAMA),
    "stablelm-2-12b": Target("stablelm", _LLAMA),
    "command-r-plus": Target("command-r", _LLAMA),
    "command-r7b": Target("cohere2", _LLAMA),
    "nemotron": Target("nemotron", _LLAMA, gain_offset=1.0),
}


@pytest.mark.parametrize("case", [c for c in CASES if c.name in TARGETS], ids=lambda c: c.name)
def test_rollout_of_gguf_equals_transformers(case: Case, tmp_path: Path) -> None:
    model = build_model(case)
    model.save_pretrained(tmp_path)
    file = _convert(tmp_path, TARGETS[case.name])
    errors = relative_errors(rollout_states(file, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < case.tolerance


def test_every_gguf_layout_is_tested() -> None:
    names = {case.family for case in CASES} - {"gpt2"}
    with_gguf = {name for name in names if families()[name].gguf is not None}
    assert {case.family for case in CASES if case.name in TARGETS} == with_gguf


def _convert(folder: Path, target: Target) -> Path:
    config = json.loads((folder / "config.json").read_text())

    def setting(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    file = folder / "model.gguf"
    writer = gguf.GGUFWriter(file, target.architecture)
    heads = setting("num_attention_heads", "n_head", "n_heads")
    groups = setting("num_kv_heads", "num_key_value_heads") or heads
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        groups = 1
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_block_count(setting("num_hidden_layers", "n_layer", "n_layers"))
    writer.add_embedding_length(setting("hidden_size", "n_embd", "d_model"))
    writer.add_layer_norm_eps(
        setting("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps") or 1e-5
    )
    if target.architecture in ("gptneox", "stablelm"):
        # The converter calls a StableLM whose configuration lacks the key parallel.
        says = target.architecture == "stablelm" or config["use_parallel_residual"]
        writer.add_parallel_residual(says)
    clip = (config.get("attn_config") or {}).get("clip_qkv")
    if clip is not None:
        writer.add_clamp_kqv(clip)
    for name, tensor in _renamed(load_file(folder / "model.safetensors"), target.names).items():
        if target.fused is not None and target.fused in name:
            tensor = _stacked(tensor, heads, groups)
        if name.endswith("norm.weight"):
            tensor = tensor + target.gain_offset
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _renamed(tensors: State, names: Names) -> State:
    found: State = {}
    for name, tensor in tensors.items():
        for old, new in names:
            name = name.replace(old, new)
        found[name] = tensor
    # Norms of each head are stacked to one tensor.
    for part in ("attn_q_norm", "attn_k_norm"):
        for stem in sorted({n.split(f".{part}.")[0] for n in found if f"{part}.norms." in n}):
            heads = [n for n in found if n.startswith(f"{stem}.{part}.norms.")]
            found[f"{stem}.{part}.weight"] = torch.stack([found.pop(n) for n in heads])
    return found


def _stacked(tensor: torch.Tensor, heads: int, groups: int) -> torch.Tensor:
    """[q ..., k, v] a group to all q, all k, all v."""
    parts = tensor.reshape(groups, heads // groups + 2, -1, *tensor.shape[1:])
    shares = (parts[:, :-2], parts[:, -2], parts[:, -1])
    return torch.cat([share.reshape(-1, *tensor.shape[1:]) for share in shares])
