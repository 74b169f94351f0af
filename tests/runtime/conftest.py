"""Small models of transformers, saved, and the same model loaded by transformers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.models import name_tokens_within

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
PLAIN = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
GATED = {**PLAIN, "head_dim": 8}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "gemma2": lambda: transformers.Gemma2Config(**GATED, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GATED, query_pre_attn_scalar=8),
    "olmo2": lambda: transformers.Olmo2Config(**PLAIN),
    "qwen3": lambda: transformers.Qwen3Config(**GATED),
    "granite": lambda: transformers.GraniteConfig(**PLAIN, residual_multiplier=0.4),
    "olmo": lambda: transformers.OlmoConfig(**PLAIN),
    "gpt1": lambda: transformers.OpenAIGPTConfig(
        vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128
    ),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "phi": lambda: transformers.PhiConfig(**SIZES, intermediate_size=48),
    "mixtral": lambda: transformers.MixtralConfig(**PLAIN, num_local_experts=4),
}


@dataclass(frozen=True)
class Small:
    """A saved model, and itself as transformers made it."""

    folder: Path
    model: Any

    def states(self, ids: list[int]) -> list[torch.Tensor]:
        """The residual stream before layer 1 and after each layer, by hooks of this class alone."""
        return block_states(self.model, ids)


def block_states(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """transformers' hidden states; the last one is taken before the final norm."""
    norms = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
    final = [m for n, m in model.named_modules() if n.split(".")[-1] in norms and n.count(".") <= 2]
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for module in final
    ]
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    states = list(found.hidden_states)
    if seen:
        states[-1] = seen[-1]
    return states


def make_small(folder: Path, name: str) -> Small:
    """Random weights, a few of them so large that norms differ."""
    torch.manual_seed(5)
    config = CONFIGS[name]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    name_tokens_within(model)
    model.save_pretrained(folder)
    return Small(folder, model)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("llama"), "llama")
