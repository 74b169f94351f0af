"""LLaMA and GPT-2, the families every other one is a variation of."""

from __future__ import annotations

import transformers

from tests.support.families.harness import Case

CASES = [
    Case(
        name="llama-gqa-biases",
        family="llama",
        config=lambda: transformers.LlamaConfig(
            hidden_size=48,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=10,
            attention_bias=True,
            mlp_bias=True,
            vocab_size=61,
            tie_word_embeddings=False,
        ),
    ),
    Case(
        name="gpt2",
        family="gpt2",
        config=lambda: transformers.GPT2Config(
            n_embd=48, n_layer=3, n_head=4, n_inner=70, vocab_size=61, n_positions=16
        ),
        blocks="transformer.h",
    ),
]
