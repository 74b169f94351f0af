"""Decoders with LayerNorm, parallel branches, or the fused layouts of the years before LLaMA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.support.families.harness import Case, OnDisk, State, published


def rewritten(
    tensors: Callable[[State], State] | None = None,
    config: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> OnDisk:
    """State, configuration or both as they were published before transformers wrote them."""

    def change(state: State, settings: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        return (
            state if tensors is None else tensors(state),
            settings if config is None else config(settings),
        )

    return published(change)


def renamed(*replacements: tuple[str, str]) -> Callable[[State], State]:
    """Replace parts of the names, in this order."""

    def rename(tensors: State) -> State:
        found = {}
        for name, tensor in tensors.items():
            for old, new in replacements:
                name = name.replace(old, new)
            found[name] = tensor
        return found

    return rename


def _phi_msft(tensors: State) -> State:
    """Names of Phi-2's first release, q, k and v stacked in one matrix."""
    found = renamed(
        ("model.layers.", "transformer.h."),
        ("input_layernorm", "ln"),
        ("self_attn.dense", "mixer.out_proj"),
        ("model.embed_tokens", "transformer.embd.wte"),
        ("model.final_layernorm", "lm_head.ln"),
    )(tensors)
    for name in [n for n in found if ".self_attn.q_proj." in n]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("self_attn.q_proj", "mixer.Wqkv")] = torch.cat(parts)
    return found


def _phi_msft_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "phi-msft",
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_head_kv": None,
        "activation_function": config["hidden_act"],
        "layer_norm_epsilon": config["layer_norm_eps"],
    }


def _refined_web(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of Falcon's first release, which had no `new_decoder_architecture`."""
    kept = ("bias", "alibi", "parallel_attn", "multi_query", "hidden_size", "layer_norm_epsilon")
    return {
        **{key: config[key] for key in kept},
        "model_type": "RefinedWeb" if config["new_decoder_architecture"] else "RefinedWebModel",
        "n_head": config["num_attention_heads"],
        "n_head_kv": config["num_kv_heads"],
        "n_layer": config["num_hidden_layers"],
    }


def _with_buffers(tensors: State) -> State:
    """Masks and rotary tables that older versions saved beside the weights."""
    layers = {n.split(".attention.")[0] for n in tensors if ".attention." in n}
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    return {
        **tensors,
        **{f"{layer}.attention.bias": mask.clone() for layer in layers},
        **{f"{layer}.attention.masked_bias": torch.tensor(-1e9) for layer in layers},
        **{f"{layer}.attention.rotary_emb.inv_freq": torch.ones(2) for layer in layers},
    }


def _phi(**changes: Any) -> transformers.PhiConfig:
    return transformers.PhiConfig(
        **{
            "hidden_size": 48,
            "intermediate_size": 70,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "vocab_size": 61,
            "layer_norm_eps": 3e-5,
            **changes,
        }
    )


def _mpt(**attention: Any) -> transformers.MptConfig:
    return transformers.MptConfig(
        d_model=48,
        n_heads=4,
        n_layers=3,
        vocab_size=61,
        max_seq_len=16,
        attn_config=transformers.models.mpt.configuration_mpt.MptAttentionConfig(**attention),
    )


def _mpt_with_positions(config: transformers.MptConfig) -> transformers.MptForCausalLM:
    """MPT without ALiBi, as SEA-LION is trained: transformers has no learned positions for it."""
    model = transformers.MptForCausalLM(config)
    positions = torch.nn.Embedding(config.max_seq_len, config.d_model)
    model.transformer.wpe = positions
    model.transformer.wte.register_forward_hook(
        lambda _module, _inputs, output: output + positions.weight[0]
    )
    return model


def _gpt_neox(**changes: Any) -> transformers.GPTNeoXConfig:
    return transformers.GPTNeoXConfig(
        **{
            "hidden_size": 48,
            "intermediate_size": 70,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": 61,
            "max_position_embeddings": 16,
            **changes,
        }
    )


def _falcon(**changes: Any) -> transformers.FalconConfig:
    return transformers.FalconConfig(
        **{
            "hidden_size": 48,
            "ffn_hidden_size": 70,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "vocab_size": 61,
            "layer_norm_epsilon": 3e-5,
            **changes,
        }
    )


def _opt(**changes: Any) -> transformers.OPTConfig:
    return transformers.OPTConfig(
        **{
            "hidden_size": 48,
            "ffn_dim": 70,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": 61,
            "max_position_embeddings": 16,
            "word_embed_proj_dim": 48,
            **changes,
        }
    )


def _stablelm(**changes: Any) -> transformers.StableLmConfig:
    return transformers.StableLmConfig(
        **{
            "hidden_size": 48,
            "intermediate_size": 70,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 61,
            "use_qkv_bias": True,
            **changes,
        }
    )


def _gpt2(**changes: Any) -> transformers.GPT2Config:
    return transformers.GPT2Config(
        **{
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": 61,
            "n_positions": 16,
            **changes,
        }
    )


def _gpt_bigcode(**changes: Any) -> transformers.GPTBigCodeConfig:
    return transformers.GPTBigCodeConfig(
        **{
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 70,
            "vocab_size": 61,
            "n_positions": 16,
            **changes,
        }
    )


CASES = [
    Case(name="phi-2", family="phi", config=_phi),
    Case(
        name="phi-qk-norm-grouped",
        family="phi",
        config=lambda: _phi(
            qk_layernorm=True, num_key_value_heads=2, hidden_act="gelu", tie_word_embeddings=True
        ),
    ),
    Case(
        name="phi-2-first-release",
        family="phi_msft",
        config=_phi,
        on_disk=rewritten(_phi_msft, _phi_msft_config),
    ),
    Case(name="mpt-alibi", family="mpt", config=_mpt, blocks="transformer.blocks"),
    Case(
        name="mpt-clipped",
        family="mpt",
        config=lambda: _mpt(clip_qkv=0.7),
        blocks="transformer.blocks",
    ),
    Case(
        name="mpt-learned-positions",
        family="mpt",
        config=lambda: _mpt(alibi=False),
        build=_mpt_with_positions,
        blocks="transformer.blocks",
    ),
    Case(
        name="pythia-parallel",
        family="gpt_neox",
        config=_gpt_neox,
        blocks="gpt_neox.layers",
        on_disk=rewritten(_with_buffers),
    ),
    Case(
        name="gpt-neox-sequential",
        family="gpt_neox",
        config=lambda: _gpt_neox(use_parallel_residual=False, layer_norm_eps=3e-5),
        blocks="gpt_neox.layers",
    ),
    Case(
        name="gpt-neox-without-attention-bias",
        family="gpt_neox",
        config=lambda: _gpt_neox(
            attention_bias=False, hidden_act="gelu_fast", tie_word_embeddings=True
        ),
        blocks="gpt_neox.layers",
    ),
    Case(name="falcon-7b", family="falcon", config=_falcon, blocks="transformer.h"),
    Case(
        name="falcon-7b-first-release",
        family="falcon",
        config=lambda: _falcon(num_kv_heads=1),
        blocks="transformer.h",
        on_disk=rewritten(config=_refined_web),
    ),
    Case(
        name="falcon-40b",
        family="falcon",
        config=lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2, bias=True),
        blocks="transformer.h",
    ),
    Case(
        name="falcon-40b-first-release",
        family="falcon",
        config=lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
        blocks="transformer.h",
        on_disk=rewritten(config=_refined_web),
    ),
    Case(
        name="falcon-2-11b",
        family="falcon",
        config=lambda: _falcon(
            new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
        ),
        blocks="transformer.h",
    ),
    Case(
        name="falcon-rw",
        family="falcon",
        config=lambda: _falcon(multi_query=False, parallel_attn=False, bias=True, alibi=True),
        blocks="transformer.h",
    ),
    Case(
        name="falcon-rw-first-release",
        family="falcon",
        config=lambda: _falcon(multi_query=False, parallel_attn=False, bias=True, alibi=True),
        blocks="transformer.h",
        on_disk=rewritten(config=_refined_web),
    ),
    Case(name="opt", family="opt", config=_opt, blocks="model.decoder.layers"),
    Case(
        name="opt-350m",
        family="opt",
        config=lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=28),
        blocks="model.decoder.layers",
        on_disk=rewritten(renamed(("model.decoder.", "decoder."))),
    ),
    Case(
        name="galactica",
        family="opt",
        config=lambda: _opt(
            enable_bias=False, activation_function="gelu", tie_word_embeddings=False
        ),
        blocks="model.decoder.layers",
    ),
    Case(
        name="biogpt",
        family="biogpt",
        config=lambda: transformers.BioGptConfig(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=61,
            max_position_embeddings=16,
            layer_norm_eps=0.1,  # which its code does not read
        ),
        blocks="biogpt.layers",
    ),
    Case(
        name="bloom",
        family="bloom",
        config=lambda: transformers.BloomConfig(
            hidden_size=48, n_layer=3, n_head=4, vocab_size=61, layer_norm_epsilon=3e-5
        ),
        blocks="transformer.h",
        on_disk=rewritten(
            renamed(("transformer.", "")),
            lambda config: {
                **{k: v for k, v in config.items() if k not in ("hidden_size", "n_head")},
                "n_embed": config["hidden_size"],
                "num_attention_heads": config["n_head"],
            },
        ),
    ),
    Case(
        name="bloom-saved-now",
        family="bloom",
        config=lambda: transformers.BloomConfig(hidden_size=48, n_layer=2, n_head=6, vocab_size=61),
        blocks="transformer.h",
    ),
    Case(
        name="gpt-j",
        family="gptj",
        config=lambda: transformers.GPTJConfig(
            n_embd=48,
            n_layer=3,
            n_head=4,
            n_inner=70,
            rotary_dim=4,
            vocab_size=61,
            n_positions=16,
            layer_norm_epsilon=3e-5,
        ),
        blocks="transformer.h",
    ),
    Case(
        name="gpt-neo",
        family="gpt_neo",
        config=lambda: transformers.GPTNeoConfig(
            hidden_size=48,
            num_layers=4,
            num_heads=4,
            intermediate_size=70,
            attention_types=[[["global", "local"], 2]],
            window_size=4,
            vocab_size=61,
            max_position_embeddings=16,
        ),
        blocks="transformer.h",
    ),
    Case(
        name="codegen",
        family="codegen",
        config=lambda: transformers.CodeGenConfig(
            n_embd=48,
            n_layer=3,
            n_head=8,
            n_inner=70,
            rotary_dim=4,
            vocab_size=61,
            n_positions=16,
        ),
        blocks="transformer.h",
    ),
    Case(
        name="starcoder-multi-query",
        family="gpt_bigcode",
        config=_gpt_bigcode,
        blocks="transformer.h",
    ),
    Case(
        name="gpt-bigcode-multi-head",
        family="gpt_bigcode",
        config=lambda: _gpt_bigcode(multi_query=False, activation_function="gelu"),
        blocks="transformer.h",
    ),
    Case(
        name="starcoder2",
        family="starcoder2",
        config=lambda: transformers.Starcoder2Config(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=61,
            norm_epsilon=3e-5,
            sliding_window=4,
        ),
    ),
    Case(
        name="starcoder2-without-biases",
        family="starcoder2",
        config=lambda: transformers.Starcoder2Config(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=61,
            use_bias=False,
            tie_word_embeddings=False,
        ),
    ),
    Case(name="stablelm-2-1.6b", family="stablelm", config=_stablelm),
    Case(
        name="stablelm-2-12b",
        family="stablelm",
        config=lambda: _stablelm(
            use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=False, layer_norm_eps=3e-5
        ),
    ),
    Case(
        name="stablelm-epoch",
        family="stablelm",
        config=lambda: _stablelm(layer_norm_eps=3e-5),
        on_disk=rewritten(
            config=lambda config: {
                **{
                    k: v
                    for k, v in config.items()
                    if k not in ("layer_norm_eps", "use_parallel_residual")
                },
                "model_type": "stablelm_epoch",
                "norm_eps": config["layer_norm_eps"],
            }
        ),
    ),
    Case(
        name="command-r-plus",
        family="cohere",
        config=lambda: transformers.CohereConfig(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=61,
            pad_token_id=0,
            bos_token_id=5,
            eos_token_id=6,
            use_qk_norm=True,
            attention_bias=True,
            layer_norm_eps=3e-5,
        ),
    ),
    Case(
        name="command-r7b",
        family="cohere",
        config=lambda: transformers.Cohere2Config(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=10,
            vocab_size=61,
            pad_token_id=0,
            bos_token_id=5,
            eos_token_id=6,
            sliding_window=4,
        ),
    ),
    Case(
        name="persimmon",
        family="persimmon",
        config=lambda: transformers.PersimmonConfig(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=61,
            layer_norm_eps=3e-5,
        ),
    ),
    Case(
        name="nemotron",
        family="nemotron",
        config=lambda: transformers.NemotronConfig(
            hidden_size=48,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=10,
            vocab_size=61,
            norm_eps=3e-5,
            attention_bias=True,
            mlp_bias=True,
        ),
        gains_near=0.0,
    ),
    Case(
        name="gpt2-without-prefix",
        family="gpt2",
        config=lambda: _gpt2(
            scale_attn_by_inverse_layer_idx=True,
            activation_function="gelu",
            layer_norm_epsilon=3e-5,
        ),
        blocks="transformer.h",
        on_disk=rewritten(renamed(("transformer.", ""))),
    ),
    Case(
        name="openai-gpt",
        family="openai",
        config=lambda: transformers.OpenAIGPTConfig(
            n_embd=48, n_layer=3, n_head=4, vocab_size=61, n_positions=16
        ),
        blocks="transformer.h",
    ),
]
