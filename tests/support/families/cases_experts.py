"""Families with experts, MLA, learned sinks and gated attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tests.support.families.harness import Case, OnDisk, published


def sizes(**changes: Any) -> dict[str, Any]:
    """Sizes that most configurations share; odd, with heads that share values."""
    common = {
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "max_position_embeddings": 32,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return {**common, **changes}


def mla(**changes: Any) -> dict[str, Any]:
    """MLA with a compressed query, value heads narrower than key heads, and experts."""
    latent = {
        "num_key_value_heads": 6,
        "kv_lora_rank": 20,
        "q_lora_rank": 14,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 10,
        "v_head_dim": 7,
        "moe_intermediate_size": 28,
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        # Unlike that of the norm inside MLA, which is fixed.
        "rms_norm_eps": 1e-3,
    }
    return sizes(**{**latent, **changes})


def experts(**changes: Any) -> dict[str, Any]:
    """Six experts of which three are used."""
    return sizes(
        **{
            "moe_intermediate_size": 28,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 10,
            **changes,
        }
    )


def granite(**changes: Any) -> dict[str, Any]:
    """Factors of Granite, all different from 1."""
    return sizes(
        **{
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.02,
            "logits_scaling": 5.0,
            **changes,
        }
    )


def gpt_oss(**changes: Any) -> dict[str, Any]:
    """gpt-oss; the limit is lowered to where these weights reach it."""
    return sizes(
        **{
            "head_dim": 10,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "swiglu_limit": 0.4,
            **changes,
        }
    )


def named(model_type: str) -> OnDisk:
    """The same tensors under another `model_type`."""
    return published(lambda tensors, config: (tensors, config | {"model_type": model_type}))


@published
def multimodal(tensors: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The language model as one part of a multimodal checkpoint."""
    renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    renamed["vision_model.layernorm_pre.weight"] = torch.ones(3)
    return renamed, {"model_type": "llama4", "text_config": config}


class PanguExperts(nn.Module):
    """The experts of Pangu Pro MoE from those of Qwen2-MoE: other routing, no shared gate.

    The softmax over all experts; of each of as many groups as experts are used the best one, its
    share times a learned factor.
    """

    def __init__(self, block: nn.Module, groups: int) -> None:
        super().__init__()
        self.gate, self.experts, self.shared_expert = block.gate, block.experts, block.shared_expert
        self.router_scale = nn.Parameter(torch.ones(1, self.gate.weight.shape[0]))
        self.groups = groups

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        n = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = torch.softmax(n @ self.gate.weight.T, dim=1)
        best = scores.view(len(n), self.groups, -1).max(dim=2)
        chosen = best.indices + torch.arange(self.groups) * (scores.shape[1] // self.groups)
        weights = best.values * self.router_scale[0][chosen]
        out = self.experts(n, chosen, weights) + self.shared_expert(n)
        return out.reshape(hidden_states.shape)


def pangu(config: Any) -> nn.Module:
    """Pangu Pro MoE, after its published code: a bias on the output map as on q, k and v."""
    model = transformers.Qwen2MoeForCausalLM(config)
    for layer in model.model.layers:
        layer.mlp = PanguExperts(layer.mlp, config.num_experts_per_tok)
        output = layer.self_attn.o_proj
        layer.self_attn.o_proj = nn.Linear(output.in_features, output.out_features)
    return model


CASES = [
    Case(
        name="mixtral",
        family="mixtral",
        config=lambda: transformers.MixtralConfig(
            **sizes(num_local_experts=5, num_experts_per_tok=2, head_dim=10)
        ),
    ),
    Case(
        name="qwen2-moe-mixed-layers",
        family="qwen2_moe",
        config=lambda: transformers.Qwen2MoeConfig(
            **experts(
                num_hidden_layers=5,
                decoder_sparse_step=2,
                mlp_only_layers=[3],
                shared_expert_intermediate_size=34,
            )
        ),
    ),
    Case(
        name="qwen2-moe",
        family="qwen2_moe",
        config=lambda: transformers.Qwen2MoeConfig(**experts(shared_expert_intermediate_size=34)),
    ),
    Case(
        name="qwen2-moe-normalised",
        family="qwen2_moe",
        config=lambda: transformers.Qwen2MoeConfig(
            **experts(shared_expert_intermediate_size=34, norm_topk_prob=True)
        ),
    ),
    Case(
        name="qwen3-moe",
        family="qwen3_moe",
        config=lambda: transformers.Qwen3MoeConfig(
            **experts(norm_topk_prob=True, attention_bias=True)
        ),
    ),
    Case(
        name="qwen3-moe-plain-weights",
        family="qwen3_moe",
        config=lambda: transformers.Qwen3MoeConfig(**experts(mlp_only_layers=[1])),
    ),
    Case(
        name="olmoe-clipped",
        family="olmoe",
        config=lambda: transformers.OlmoeConfig(
            **sizes(num_experts=6, num_experts_per_tok=3, clip_qkv=0.5)
        ),
    ),
    Case(
        name="phimoe",
        family="phimoe",
        config=lambda: transformers.PhimoeConfig(
            **sizes(
                num_local_experts=6,
                num_experts_per_tok=2,
                router_jitter_noise=0.2,
                attention_bias=True,
                lm_head_bias=True,
                rms_norm_eps=1e-4,
            )
        ),
    ),
    Case(
        name="deepseek-v2-groups",
        family="deepseek_v2",
        config=lambda: transformers.DeepseekV2Config(
            **mla(topk_method="group_limited_greedy", n_group=3, topk_group=2, attention_bias=True)
        ),
    ),
    Case(
        name="deepseek-v2-greedy-plain-query",
        family="deepseek_v2",
        # Groups that would change the choice, were they used.
        config=lambda: transformers.DeepseekV2Config(
            **mla(topk_method="greedy", n_group=3, topk_group=1, q_lora_rank=None)
        ),
    ),
    Case(
        name="deepseek-v3",
        family="deepseek_v3",
        config=lambda: transformers.DeepseekV3Config(
            **mla(n_group=3, topk_group=2, num_mtp_layers=0, attention_bias=True)
        ),
    ),
    Case(
        name="deepseek-v3-plain-weights",
        family="deepseek_v3",
        config=lambda: transformers.DeepseekV3Config(
            **mla(n_group=1, topk_group=1, num_mtp_layers=0, norm_topk_prob=False)
        ),
    ),
    Case(
        name="kimi-k2",
        family="deepseek_v3",
        config=lambda: transformers.DeepseekV3Config(
            **mla(n_group=1, topk_group=1, num_mtp_layers=0, n_shared_experts=1)
        ),
        on_disk=named("kimi_k2"),
    ),
    Case(
        name="glm4-moe",
        family="glm4_moe",
        config=lambda: transformers.Glm4MoeConfig(
            **sizes(
                moe_intermediate_size=28,
                n_routed_experts=6,
                num_experts_per_tok=3,
                n_shared_experts=1,
                first_k_dense_replace=1,
                routed_scaling_factor=2.5,
                n_group=1,
                topk_group=1,
                head_dim=10,
                use_qk_norm=True,
                attention_bias=True,
                num_mtp_layers=0,
            )
        ),
    ),
    Case(
        name="ernie4-5-moe",
        family="ernie4_5_moe",
        config=lambda: transformers.Ernie4_5_MoeConfig(
            **sizes(
                moe_intermediate_size=28,
                moe_num_experts=6,
                moe_k=3,
                moe_num_shared_experts=2,
                moe_layer_start_index=1,
                use_bias=True,
            )
        ),
    ),
    Case(
        name="minimax-m2",
        family="minimax_m2",
        config=lambda: transformers.MiniMaxM2Config(
            **sizes(num_local_experts=6, num_experts_per_tok=3, head_dim=10)
        ),
    ),
    Case(
        name="gpt-oss-yarn",
        family="gpt_oss",
        # The published scaling: it multiplies the scores that compete with the sinks.
        config=lambda: transformers.GptOssConfig(
            **gpt_oss(
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 150000.0,
                    "factor": 32.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "truncate": False,
                    "original_max_position_embeddings": 4096,
                }
            )
        ),
    ),
    Case(
        name="gpt-oss-yarn-own-factor",
        family="gpt_oss",
        config=lambda: transformers.GptOssConfig(
            **gpt_oss(
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 150000.0,
                    "factor": 32.0,
                    "mscale": 2.0,
                    "mscale_all_dim": 0.5,
                    "original_max_position_embeddings": 4096,
                }
            )
        ),
    ),
    Case(
        name="gpt-oss-unscaled",
        family="gpt_oss",
        config=lambda: transformers.GptOssConfig(
            **gpt_oss(rope_parameters={"rope_type": "default", "rope_theta": 150000.0})
        ),
    ),
    Case(
        name="llama4",
        family="llama4",
        config=lambda: transformers.Llama4TextConfig(
            **sizes(
                num_hidden_layers=4,
                intermediate_size_mlp=52,
                num_local_experts=5,
                num_experts_per_tok=2,
                interleave_moe_layer_step=2,
                head_dim=10,
                attention_bias=True,
            )
        ),
        model="Llama4ForCausalLM",
    ),
    Case(
        name="llama4-multimodal",
        family="llama4",
        config=lambda: transformers.Llama4TextConfig(
            **sizes(
                intermediate_size_mlp=52, num_local_experts=4, num_experts_per_tok=1, head_dim=10
            )
        ),
        model="Llama4ForCausalLM",
        on_disk=multimodal,
    ),
    Case(
        name="granitemoe",
        family="granitemoe",
        config=lambda: transformers.GraniteMoeConfig(**granite(attention_bias=True)),
    ),
    Case(
        name="granitemoeshared",
        family="granitemoe",
        config=lambda: transformers.GraniteMoeSharedConfig(**granite(shared_intermediate_size=34)),
    ),
    Case(
        name="granitemoehybrid-attention-only",
        family="granitemoehybrid",
        config=lambda: transformers.GraniteMoeHybridConfig(
            **granite(shared_intermediate_size=34, layer_types=["attention"] * 3, mamba_n_heads=6)
        ),
    ),
    Case(
        name="granitemoehybrid-without-experts",
        family="granitemoehybrid",
        config=lambda: transformers.GraniteMoeHybridConfig(
            **granite(
                shared_intermediate_size=34,
                layer_types=["attention"] * 3,
                mamba_n_heads=6,
                num_local_experts=0,
                num_experts_per_tok=0,
            )
        ),
    ),
    Case(
        name="dbrx",
        family="dbrx",
        config=lambda: transformers.DbrxConfig(
            d_model=48,
            n_heads=6,
            n_layers=3,
            max_seq_len=32,
            vocab_size=61,
            attn_config={"clip_qkv": 0.5, "kv_n_heads": 2, "rope_theta": 10000.0},
            ffn_config={
                "hidden_size": 48,
                "ffn_hidden_size": 26,
                "moe_num_experts": 5,
                "moe_top_k": 2,
            },
        ),
        blocks="transformer.blocks",
    ),
    Case(
        name="jamba-attention-only",
        family="jamba",
        config=lambda: transformers.JambaConfig(
            **sizes(
                num_hidden_layers=4,
                num_experts=5,
                num_experts_per_tok=2,
                attn_layer_period=1,
                attn_layer_offset=0,
            )
        ),
    ),
    Case(
        name="qwen3-next-full-attention",
        family="qwen3_next",
        config=lambda: transformers.Qwen3NextConfig(
            **experts(
                layer_types=["full_attention"] * 3,
                mlp_only_layers=[1],
                shared_expert_intermediate_size=34,
                attention_bias=True,
            )
        ),
        gains_near=0.0,
    ),
    Case(
        name="pangu-pro-moe",
        family="pangu_pro_moe",
        config=lambda: transformers.Qwen2MoeConfig(**experts(shared_expert_intermediate_size=34)),
        build=pangu,
        on_disk=named("PanguProMoE"),
    ),
]
