"""Cases of families that mix tokens otherwise than by attention, as far as a token can be rolled.

Hybrids with all layers of attention, or of FFNs alone; test_hybrids.py shows what is left of the
others.
"""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.families.cases_experts import sizes
from tests.support.families.harness import Case


def rwkv(**more: Any) -> Any:
    """RWKV 4, its values wider than the residual stream; halving of hidden states turned off."""
    return transformers.RwkvConfig(
        vocab_size=61,
        hidden_size=48,
        attention_hidden_size=60,
        intermediate_size=80,
        num_hidden_layers=3,
        rescale_every=0,
        **more,
    )


def nemotron_h(layers: list[str], **more: Any) -> Any:
    """Layers of the named kinds; eight experts in two groups, and a shared one."""
    return transformers.NemotronHConfig(
        vocab_size=61,
        hidden_size=48,
        layers_block_type=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        mamba_num_heads=4,
        mamba_head_dim=12,
        ssm_state_size=8,
        n_groups=2,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=32,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.5,
        **more,
    )


def bamba(attention: list[int]) -> Any:
    """Attention in the named layers (from 0), Mamba 2 in the others."""
    return transformers.BambaConfig(
        **sizes(
            num_hidden_layers=3,
            attn_layer_indices=attention,
            mamba_n_heads=4,
            mamba_d_head=24,
            mamba_d_state=8,
        )
    )


def lfm2(layers: list[str]) -> Any:
    """Layers of the named kinds."""
    return transformers.Lfm2Config(
        **sizes(num_hidden_layers=len(layers), layer_types=layers, block_auto_adjust_ff_dim=False)
    )


def lfm2_moe(layers: list[str]) -> Any:
    """An FFN in the first layer, eight experts in the others."""
    return transformers.Lfm2MoeConfig(
        **sizes(
            num_hidden_layers=len(layers),
            layer_types=layers,
            num_dense_layers=1,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            routed_scaling_factor=1.5,
        )
    )


# No cache: that of RWKV is as wide as the residual stream, Nemotron-H's wants a layer of attention.
ONCE = {"use_cache": False}

CASES = [
    Case("rwkv", "rwkv", rwkv, blocks="rwkv.blocks", extra_inputs=ONCE),
    Case("bamba-attention-only", "jamba", lambda: bamba([0, 1, 2])),
    Case("lfm2-attention-only", "lfm2", lambda: lfm2(["full_attention"] * 3)),
    Case("lfm2-moe-attention-only", "lfm2", lambda: lfm2_moe(["full_attention"] * 3)),
    Case(
        "nemotron-h-ffn-only",
        "nemotron_h",
        lambda: nemotron_h(["mlp", "moe", "mlp"]),
        extra_inputs=ONCE,
    ),
]
