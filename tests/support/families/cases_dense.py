"""Dense decoders with RMSNorm (and OLMo 1 and Phi-3-small, which differ from them in the norm)."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tests.support.families.harness import Case, OnDisk, State, published

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
WINDOW = ["sliding_attention", "full_attention", "sliding_attention"]
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

Config = dict[str, Any]
Published = tuple[State, Config]


def _renamed(tensors: State, *names: tuple[str, str]) -> State:
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def _fused(tensors: State, layer: str, parts: list[str], fused: str, *, groups: int = 1) -> None:
    """Replace linear maps by one that holds, for each group in turn, its rows of each."""
    for kind in ("weight", "bias"):
        names = [f"{layer}{part}.{kind}" for part in parts]
        if names[0] in tensors:
            pieces = [tensors.pop(name) for name in names]
            by_group = [p.reshape(groups, -1, *p.shape[1:]) for p in pieces]
            joined = torch.cat(by_group, dim=1)
            tensors[f"{layer}{fused}.{kind}"] = joined.reshape(-1, *pieces[0].shape[1:])


QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


def _qwen(tensors: State, config: Config) -> Published:
    for layer in range(config["num_hidden_layers"]):
        _fused(tensors, f"model.layers.{layer}.", QKV, "attn.c_attn")
    tensors = _renamed(
        tensors,
        ("model.layers.", "transformer.h."),
        ("model.embed_tokens", "transformer.wte"),
        ("model.norm", "transformer.ln_f"),
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("self_attn.o_proj", "attn.c_proj"),
        ("mlp.gate_proj", "mlp.w2"),
        ("mlp.up_proj", "mlp.w1"),
        ("mlp.down_proj", "mlp.c_proj"),
    )
    return tensors, {
        "model_type": "qwen",
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "intermediate_size": 2 * config["intermediate_size"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "no_bias": True,
    }


def _exaone(tensors: State, config: Config) -> Published:
    tensors = _renamed(
        tensors,
        ("model.layers.", "transformer.h."),
        ("model.embed_tokens", "transformer.wte"),
        ("model.norm", "transformer.ln_f"),
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("self_attn.o_proj", "attn.attention.out_proj"),
        ("self_attn.", "attn.attention."),
        ("mlp.gate_proj", "mlp.c_fc_0"),
        ("mlp.up_proj", "mlp.c_fc_1"),
        ("mlp.down_proj", "mlp.c_proj"),
    )
    tensors["transformer.rotary.inv_freq"] = torch.ones(4)
    return tensors, {
        "model_type": "exaone",
        "activation_function": "silu",
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "layer_norm_epsilon": config["rms_norm_eps"],
    }


def _internlm2(tensors: State, config: Config) -> Published:
    groups = config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        _fused(tensors, f"model.layers.{layer}.", QKV, "attention.wqkv", groups=groups)
    tensors = _renamed(
        tensors,
        ("model.embed_tokens", "model.tok_embeddings"),
        ("lm_head", "output"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
    )
    return tensors, config | {"model_type": "internlm2"}


def _baichuan(tensors: State, config: Config) -> Published:
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        _fused(tensors, block, QKV, "self_attn.W_pack")
        tensors[f"{block}self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return tensors, config | {"model_type": "baichuan"}


def _minicpm(tensors: State, config: Config) -> Published:
    layers = config["num_hidden_layers"]
    return tensors, config | {
        "model_type": "minicpm",
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * layers**0.5,
    }


def _chatglm(tensors: State, config: Config) -> Published:
    for layer in range(config["num_hidden_layers"]):
        _fused(tensors, f"model.layers.{layer}.", QKV, "self_attention.query_key_value")
    tensors = _renamed(
        tensors,
        ("model.layers.", "transformer.encoder.layers."),
        ("model.norm", "transformer.encoder.final_layernorm"),
        ("model.embed_tokens", "transformer.embedding.word_embeddings"),
        ("lm_head", "transformer.output_layer"),
        ("self_attn.o_proj", "self_attention.dense"),
        ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
        ("mlp.down_proj", "mlp.dense_4h_to_h"),
    )
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(4)
    return tensors, {
        "model_type": "chatglm",
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "multi_query_group_num": config["num_key_value_heads"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
    }


def _as(model_type: str) -> OnDisk:
    def publish(tensors: State, config: Config) -> Published:
        return tensors, config | {"model_type": model_type}

    return published(publish)


def _without_heads(tensors: State, config: Config) -> Published:
    """As in multimodal models whose text part has the default number of heads."""
    del config["text_config"]["num_attention_heads"]
    return tensors, config


class Phi3SmallAttention(nn.Module):
    """Phi-3-small's attention of single tokens, to themselves with weight 1."""

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        super().__init__()
        d, self.groups = config.hidden_size, config.num_key_value_heads
        self.per_group = config.num_attention_heads // self.groups
        rows = self.groups * (self.per_group + 2) * (d // config.num_attention_heads)
        self.query_key_value = nn.Linear(d, rows)
        self.dense = nn.Linear(d, d)

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        by_group = self.query_key_value(n).unflatten(-1, (self.groups, self.per_group + 2, -1))
        value = by_group[..., -1:, :].expand(*by_group.shape[:-2], self.per_group, -1)
        return self.dense(value.reshape(n.shape))


class Phi3SmallMLP(nn.Module):
    """Phi-3-small's FFN: gate and up in turns, both clamped."""

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        both = self.up_proj(n)
        gate = both[..., ::2].clamp(max=self.limit)
        linear = both[..., 1::2].clamp(min=-self.limit, max=self.limit)
        return self.down_proj(gate * torch.sigmoid(1.702 * gate) * (linear + 1))


class Phi3SmallBlock(nn.Module):
    """Phi-3-small's block for single tokens."""

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.input_layernorm = nn.LayerNorm(d, eps=config.layer_norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(d, eps=config.layer_norm_epsilon)
        self.self_attn = Phi3SmallAttention(config)
        self.mlp = Phi3SmallMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3Small(transformers.PreTrainedModel):
    """A stack of `Phi3SmallBlock`, after the published modelling code."""

    config_class = transformers.PretrainedConfig

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        super().__init__(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (Phi3SmallBlock(config) for _ in range(config.num_hidden_layers))
        self.model.layers = nn.ModuleList(layers)
        self.model.final_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embed_tokens(input_ids) * self.config.mup_embedding_multiplier
        for layer in self.model.layers:
            x = layer(x)
        return self.model.final_layernorm(x)


CASES = [
    Case("mistral", "mistral", lambda: transformers.MistralConfig(**SIZES, **UNTIED, head_dim=10)),
    Case(
        "ministral-windows",
        "mistral",
        lambda: transformers.MinistralConfig(**SIZES, **TIED, head_dim=10, layer_types=WINDOW),
    ),
    Case("ministral3", "mistral", lambda: transformers.Ministral3Config(**SIZES, head_dim=10)),
    Case("qwen2-biases", "qwen2", lambda: transformers.Qwen2Config(**SIZES, **TIED)),
    Case(
        "qwen2-vl",
        "qwen2",
        lambda: transformers.Qwen2VLConfig(
            text_config=SIZES
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2},
        ),
        model="Qwen2VLForConditionalGeneration",
        blocks="model.language_model.layers",
    ),
    Case(
        "qwen3-biases",
        "qwen3",
        lambda: transformers.Qwen3Config(**SIZES, **TIED, head_dim=10, attention_bias=True),
    ),
    Case(
        "qwen3-vl",
        "qwen3",
        lambda: transformers.Qwen3VLConfig(
            text_config=SIZES
            | {
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "out_hidden_size": 48,
                "deepstack_visual_indexes": [0],
            },
        ),
        model="Qwen3VLForConditionalGeneration",
        blocks="model.language_model.layers",
    ),
    Case(
        "smollm3",
        "smollm3",
        lambda: transformers.SmolLM3Config(**SIZES, **TIED, no_rope_layers=[1, 0, 1]),
    ),
    Case(
        "internlm3-biases",
        "internlm",
        lambda: transformers.InternLM3Config(
            **SIZES, head_dim=10, attention_bias=True, mlp_bias=True
        ),
        on_disk=_as("internlm3"),
    ),
    Case(
        "phi3",
        "phi3",
        lambda: transformers.Phi3Config(
            **SIZES,
            **UNTIED,
            rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5},
        ),
    ),
    Case(
        "gemma",
        "gemma",
        lambda: transformers.GemmaConfig(**SIZES, head_dim=10, hidden_act="gelu"),
        gains_near=0.0,
    ),
    Case(
        "gemma-legacy-activation",
        "gemma",
        lambda: transformers.GemmaConfig(**SIZES, head_dim=10),
        gains_near=0.0,
        on_disk=published(lambda tensors, config: (tensors, config | {"hidden_act": "gelu"})),
    ),
    Case(
        "gemma2",
        "gemma2",
        lambda: transformers.Gemma2Config(**SIZES, head_dim=10, query_pre_attn_scalar=12),
        gains_near=0.0,
    ),
    Case(
        "gemma3",
        "gemma3",
        lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=10, layer_types=WINDOW),
        gains_near=0.0,
    ),
    Case(
        "gemma3-vision",
        "gemma3",
        lambda: transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**SIZES, head_dim=10),
            vision_config=VISION,
            mm_tokens_per_image=4,
        ),
        model="Gemma3ForConditionalGeneration",
        blocks="model.language_model.layers",
        gains_near=0.0,
    ),
    Case(
        "paligemma",
        "gemma",
        lambda: transformers.PaliGemmaConfig(
            text_config=transformers.GemmaConfig(**SIZES, head_dim=10),
            vision_config=VISION | {"model_type": "siglip_vision_model"},
            projection_dim=48,
        ),
        model="PaliGemmaForConditionalGeneration",
        blocks="model.language_model.layers",
        gains_near=0.0,
    ),
    Case(
        "llava",
        "llama",
        lambda: transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**SIZES, attention_bias=True),
            vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        ),
        model="LlavaForConditionalGeneration",
        blocks="model.language_model.layers",
    ),
    Case(
        "smolvlm",
        "llama",
        lambda: transformers.SmolVLMConfig(
            text_config=transformers.LlamaConfig(**SIZES), vision_config=VISION
        ),
        model="SmolVLMForConditionalGeneration",
        blocks="model.text_model.layers",
    ),
    Case(
        "llava-mistral",
        "mistral",
        lambda: transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**SIZES, head_dim=10),
            vision_config=VISION | {"model_type": "pixtral", "head_dim": 8},
        ),
        model="Mistral3ForConditionalGeneration",
        blocks="model.language_model.layers",
    ),
    Case(
        "llava-mistral-default-heads",
        "mistral",
        lambda: transformers.LlavaConfig(
            text_config=transformers.MistralConfig(
                **SIZES | {"num_attention_heads": 32, "num_key_value_heads": 8}, head_dim=2
            ),
            vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        ),
        model="LlavaForConditionalGeneration",
        blocks="model.language_model.layers",
        on_disk=published(_without_heads),
    ),
    Case(
        "gemma3-vision-default-heads",
        "gemma3",
        lambda: transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(
                **SIZES | {"num_attention_heads": 8}, head_dim=10
            ),
            vision_config=VISION,
            mm_tokens_per_image=4,
        ),
        model="Gemma3ForConditionalGeneration",
        blocks="model.language_model.layers",
        gains_near=0.0,
        on_disk=published(_without_heads),
    ),
    # A third of the values lie beyond this bound.
    Case("olmo-clip", "olmo", lambda: transformers.OlmoConfig(**SIZES, **UNTIED, clip_qkv=1.0)),
    Case("olmo", "olmo", lambda: transformers.OlmoConfig(**SIZES, **TIED)),
    Case("olmo2", "olmo2", lambda: transformers.Olmo2Config(**SIZES, **UNTIED)),
    Case("olmo3", "olmo2", lambda: transformers.Olmo3Config(**SIZES, layer_types=WINDOW)),
    Case(
        "exaone4",
        "exaone4",
        lambda: transformers.Exaone4Config(**SIZES, **TIED, layer_types=WINDOW, sliding_window=4),
    ),
    Case(
        "glm-biases",
        "glm",
        lambda: transformers.GlmConfig(**SIZES, head_dim=10, attention_bias=True),
    ),
    Case(
        "glm4",
        "glm4",
        lambda: transformers.Glm4Config(**SIZES, head_dim=10, attention_bias=True),
    ),
    Case(
        "granite-multipliers",
        "granite",
        lambda: transformers.GraniteConfig(
            **SIZES,
            attention_bias=True,
            mlp_bias=True,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.3,
            logits_scaling=8.0,
        ),
    ),
    Case("helium", "llama", lambda: transformers.HeliumConfig(**SIZES, head_dim=8)),
    Case(
        "seed-oss-biases",
        "llama",
        lambda: transformers.SeedOssConfig(
            **SIZES, head_dim=10, attention_bias=True, attention_out_bias=True, mlp_bias=True
        ),
    ),
    Case("cwm", "llama", lambda: transformers.CwmConfig(**SIZES, head_dim=10, layer_types=WINDOW)),
    Case(
        "ernie4_5-biases",
        "llama",
        lambda: transformers.Ernie4_5Config(**SIZES, **TIED, head_dim=10, use_bias=True),
    ),
    Case(
        "hunyuan-dense-biases",
        "hunyuan_dense",
        lambda: transformers.HunYuanDenseV1Config(**SIZES, head_dim=10, attention_bias=True),
    ),
    Case("arcee", "arcee", lambda: transformers.ArceeConfig(**SIZES, head_dim=10, mlp_bias=True)),
    Case(
        "vaultgemma",
        "vaultgemma",
        lambda: transformers.VaultGemmaConfig(**SIZES, head_dim=10, layer_types=WINDOW),
        gains_near=0.0,
    ),
    Case(
        "minicpm3-multipliers",
        "minicpm3",
        lambda: transformers.MiniCPM3Config(
            **SIZES | {"num_key_value_heads": 6},
            attention_bias=True,
            q_lora_rank=20,
            kv_lora_rank=18,
            qk_nope_head_dim=9,
            qk_rope_head_dim=4,
            v_head_dim=7,
            scale_emb=5.0,
            scale_depth=1.2,
        ),
    ),
    # The published code of the following is the block of the transformers class under other names.
    Case(
        "minicpm-multipliers",
        "minicpm",
        lambda: transformers.GraniteConfig(
            **SIZES, embedding_multiplier=12.0, residual_multiplier=1.4 / 3**0.5
        ),
        on_disk=published(_minicpm),
    ),
    Case(
        "qwen",
        "qwen",
        lambda: transformers.Qwen2Config(**SIZES | {"num_key_value_heads": 6}, **UNTIED),
        on_disk=published(_qwen),
    ),
    Case(
        "exaone",
        "exaone",
        lambda: transformers.LlamaConfig(**SIZES, **TIED, head_dim=8),
        on_disk=published(_exaone),
    ),
    Case(
        "internlm2",
        "internlm2",
        lambda: transformers.LlamaConfig(**SIZES, **UNTIED, attention_bias=True),
        on_disk=published(_internlm2),
    ),
    Case(
        "baichuan",
        "baichuan",
        lambda: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 6}, **UNTIED),
        on_disk=published(_baichuan),
    ),
    Case(
        "chatglm",
        "chatglm",
        lambda: transformers.GlmConfig(**SIZES, head_dim=8, attention_bias=True),
        on_disk=published(_chatglm),
    ),
    Case(
        "internlm-biases",
        "internlm",
        lambda: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 6}, attention_bias=True),
        on_disk=_as("internlm"),
    ),
    # transformers has no such model: `Phi3Small` above follows the published modelling code. The
    # bound lies inside the range of the gate, unlike the published 20.
    Case(
        "phi3small",
        "phi3small",
        lambda: transformers.PretrainedConfig(
            **SIZES,
            model_type="phi3small",
            hidden_act="gegelu",
            gegelu_limit=1.5,
            layer_norm_epsilon=1e-5,
            mup_embedding_multiplier=10.0,
        ),
        build=Phi3Small,
        on_disk=_as("phi3small"),
    ),
]
