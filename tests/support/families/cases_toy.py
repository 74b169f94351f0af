"""Networks that `ckpt toy train` writes: those of OPT and LLaMA under the names of their files."""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.families.harness import Case, State, published

_OPT = {
    "self_attn_layer_norm": "attention_norm",
    "final_layer_norm": "ffn_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "fc1": "ffn.up",
    "fc2": "ffn.down",
}
_LLAMA = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.up_proj": "ffn.up",
    "mlp.gate_proj": "ffn.gate",
    "mlp.down_proj": "ffn.down",
}


def _renamed(name: str, names: dict[str, str]) -> str:
    _, _, rest = name.partition(".layers.")
    number, _, part = rest.partition(".")
    stem, _, suffix = part.rpartition(".")
    return f"blocks.{number}.{names[stem]}.{suffix}"


def toy_from_opt(tensors: State) -> State:
    """OPT without linear biases; its first two position rows belong to no position."""
    found = {
        "tokens.weight": tensors["model.decoder.embed_tokens.weight"],
        "positions.weight": tensors["model.decoder.embed_positions.weight"][2:],
        "norm.weight": tensors["model.decoder.final_layer_norm.weight"],
        "norm.bias": tensors["model.decoder.final_layer_norm.bias"],
        "lm_head.weight": tensors.get(
            "lm_head.weight", tensors["model.decoder.embed_tokens.weight"]
        ),
    }
    return found | {_renamed(n, _OPT): t for n, t in tensors.items() if ".layers." in n}


def toy_from_llama(tensors: State) -> State:
    """LLaMA."""
    found = {
        "tokens.weight": tensors["model.embed_tokens.weight"],
        "norm.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    return found | {_renamed(n, _LLAMA): t for n, t in tensors.items() if ".layers." in n}


def opt_config(**changes: Any) -> transformers.OPTConfig:
    """OPT as the Bigram-Backcopy task has it: no linear biases."""
    sizes = {
        "hidden_size": 48,
        "word_embed_proj_dim": 48,
        "ffn_dim": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "vocab_size": 61,
        "max_position_embeddings": 16,
    }
    return transformers.OPTConfig(**{**sizes, "enable_bias": False, **changes})


def llama_config(**changes: Any) -> transformers.LlamaConfig:
    """LLaMA as the language task has it."""
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 61,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaConfig(**{**sizes, **changes})


def _config(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "vocab_size": 61,
        "attention": "softmax",
        **more,
    }


CASES = [
    Case(
        name="bigram-backcopy",
        family="bigram_backcopy",
        config=opt_config,
        blocks="model.decoder.layers",
        on_disk=published(
            lambda tensors, _: (
                toy_from_opt(tensors),
                _config(
                    "bigram_backcopy",
                    intermediate_size=192,
                    num_attention_heads=1,
                    hidden_act="relu",
                    layer_norm_eps=1e-5,
                ),
            )
        ),
    ),
    Case(
        name="toy-language",
        family="toy_language",
        config=llama_config,
        on_disk=published(
            lambda tensors, _: (
                toy_from_llama(tensors),
                _config(
                    "toy_language",
                    intermediate_size=128,
                    num_attention_heads=4,
                    hidden_act="silu",
                    rms_norm_eps=1e-5,
                    residual="sequential",
                ),
            )
        ),
    ),
]
