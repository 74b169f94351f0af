"""Bidirectional encoders with a norm after each sum: the controls without singular defects."""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.families.harness import Case

# BERT's sizes under the names that its configuration classes share.
_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}

CASES = [
    Case(
        name="bert",
        family="bert",
        config=lambda: transformers.BertConfig(**_SIZES),
        model="BertForMaskedLM",
        blocks="bert.encoder.layer",
    ),
    Case(
        name="bert-pooler-relu-epsilon",
        family="bert",
        config=lambda: transformers.BertConfig(**_SIZES, hidden_act="relu", layer_norm_eps=1e-3),
        model="BertModel",
        blocks="encoder.layer",
    ),
    Case(
        name="roberta",
        family="roberta",
        config=lambda: transformers.RobertaConfig(**_SIZES, layer_norm_eps=1e-5),
        model="RobertaForMaskedLM",
        blocks="roberta.encoder.layer",
    ),
    Case(
        name="roberta-other-padding",
        family="roberta",
        config=lambda: transformers.RobertaConfig(**_SIZES, pad_token_id=4),
        model="RobertaModel",
        blocks="encoder.layer",
    ),
    Case(
        name="xlm-roberta",
        family="roberta",
        config=lambda: transformers.XLMRobertaConfig(**_SIZES),
        model="XLMRobertaForMaskedLM",
        blocks="roberta.encoder.layer",
    ),
    Case(
        name="camembert",
        family="roberta",
        config=lambda: transformers.CamembertConfig(**_SIZES),
        model="CamembertForMaskedLM",
        blocks="roberta.encoder.layer",
    ),
    Case(
        name="distilbert",
        family="distilbert",
        config=lambda: transformers.DistilBertConfig(
            dim=48,
            hidden_dim=70,
            n_layers=3,
            n_heads=4,
            vocab_size=61,
            max_position_embeddings=16,
            activation="relu",
        ),
        model="DistilBertForMaskedLM",
        blocks="distilbert.transformer.layer",
    ),
    Case(
        name="xlnet",
        family="xlnet",
        config=lambda: transformers.XLNetConfig(
            d_model=48, n_layer=3, n_head=4, d_inner=70, vocab_size=61, ff_activation="relu"
        ),
        model="XLNetLMHeadModel",
        blocks="transformer.layer",
    ),
    # XLM's blocks are no modules; the norm of list number 2 ends each of them.
    Case(
        name="xlm",
        family="xlm",
        config=lambda: transformers.XLMConfig(
            emb_dim=48, n_layers=3, n_heads=4, vocab_size=61, n_langs=3, max_position_embeddings=16
        ),
        model="XLMWithLMHeadModel",
        blocks="transformer.layer_norm2",
    ),
    Case(
        name="xlm-relu",
        family="xlm",
        config=lambda: transformers.XLMConfig(
            emb_dim=48, n_layers=2, n_heads=4, vocab_size=61, gelu_activation=False
        ),
        model="XLMModel",
        blocks="layer_norm2",
    ),
    Case(
        name="flaubert",
        family="xlm",
        config=lambda: transformers.FlaubertConfig(
            emb_dim=48, n_layers=3, n_heads=4, vocab_size=61, max_position_embeddings=16
        ),
        model="FlaubertWithLMHeadModel",
        blocks="transformer.layer_norm2",
    ),
]
