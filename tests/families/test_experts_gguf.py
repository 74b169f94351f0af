"""Experts, MLA and sinks in GGUF, laid out as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ckptforensics
from tests.families.cases_experts import CASES
from tests.families.harness import build_model, hidden_states, relative_errors, rollout_states

TOKENS = [3, 7, 11, 19, 42]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.sinks": "attn_sinks",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.gate.e_score_correction": "exp_probs_b",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
for shared in ("shared_expert", "shared_experts"):
    for part in ("gate", "up", "down"):
        NAMES[f"mlp.{shared}.{part}_proj"] = f"ffn_{part}_shexp"
# Architecture, and where its second norm is not called ffn_norm.
ARCHITECTURES = {
    "mixtral": "llama",
    "qwen2-moe": "qwen2moe",
    "qwen3-moe": "qwen3moe",
    "olmoe-clipped": "olmoe",
    "deepseek-v2-groups": "deepseek2",
    "deepseek-v3": "deepseek2",
    "kimi-k2": "deepseek2",
    "glm4-moe": "glm4moe",
    "gpt-oss-yarn": "gpt-oss",
}
POST_ATTENTION_NORM = ("glm4moe", "gpt-oss")


def tensors(model: Any, arch: str, apart: bool):
    """Name and values of every tensor; `apart` splits MLA's keys and values."""
    gpt_oss = arch == "gpt-oss"
    for name, parameter in model.state_dict().items():
        values = parameter.detach().numpy()
        if not name.startswith("model.layers."):
            outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
            yield outer.get(name.removesuffix(".weight"), "output") + ".weight", values
            continue
        layer, inner = name.removeprefix("model.layers.").split(".", 1)
        block = f"blk.{layer}."
        if inner.startswith("mlp.experts."):
            end = ".bias" if inner.endswith("bias") else ".weight"
            if gpt_oss and end == ".weight":
                values = values.swapaxes(1, 2)
            if "gate_up" in inner:
                half = values.shape[1] // 2
                gate, up = (
                    (values[:, ::2], values[:, 1::2])
                    if gpt_oss
                    else (values[:, :half], values[:, half:])
                )
                yield f"{block}ffn_gate_exps{end}", gate
                yield f"{block}ffn_up_exps{end}", up
            else:
                yield f"{block}ffn_down_exps{end}", values
            continue
        stem, end = inner.rsplit(".", 1)
        if inner.endswith(("e_score_correction_bias", "sinks")):
            stem, end = inner.removesuffix("_bias"), "bias" if "bias" in inner else "weight"
        new = NAMES[stem]
        if new == "ffn_norm" and arch in POST_ATTENTION_NORM:
            new = "post_attention_norm"
        if new == "attn_kv_b" and apart:
            heads = model.config.num_attention_heads
            keys = model.config.qk_nope_head_dim
            by_head = values.reshape(heads, -1, values.shape[1])
            yield f"{block}attn_k_b.weight", by_head[:, :keys].swapaxes(1, 2)
            yield f"{block}attn_v_b.weight", by_head[:, keys:]
            continue
        yield f"{block}{new}.{end}", values


def write(model: Any, arch: str, file: Path, apart: bool) -> None:
    """The model as GGUF in F32."""
    config = model.config
    writer = gguf.GGUFWriter(file, arch)
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if arch == "olmoe":
        writer.add_clamp_kqv(config.clip_qkv)
    if arch in ("deepseek2", "glm4moe"):
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        if (groups := getattr(config, "n_group", None)) is not None:
            writer.add_expert_group_count(groups)
            writer.add_expert_group_used_count(config.topk_group)
    if arch == "deepseek2":
        writer.add_kv_lora_rank(config.kv_lora_rank)
    if getattr(config, "norm_topk_prob", False) and arch in ("deepseek2", "glm4moe"):
        writer.add_expert_weights_norm(True)
    if config.model_type in ("deepseek_v3", "glm4_moe"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch == "gpt-oss":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    for name, values in tensors(model, arch, apart):
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("apart", [False, True], ids=["", "keys-apart"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rollout_equals_transformers(name: str, apart: bool, tmp_path: Path):
    case = next(case for case in CASES if case.name == name)
    arch = ARCHITECTURES[name]
    if apart and arch != "deepseek2":
        pytest.skip("only MLA has keys and values in one tensor")
    model = build_model(case)
    if arch == "gpt-oss":  # GGUF has no key for the limit, which is 7
        for layer in model.model.layers:
            layer.mlp.experts.limit = 7.0
    write(model, arch, tmp_path / "model.gguf", apart)
    assert ckptforensics.open_checkpoint(tmp_path).architecture.source == "gguf"
    errors = relative_errors(rollout_states(tmp_path, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < 1e-5
