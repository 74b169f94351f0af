"""Bidirectional encoders: the controls in which nothing explodes or decays."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import ckptforensics
from ckptforensics.render import render
from tests.support.families.cases_encoders import CASES
from tests.support.families.harness import (
    Case,
    build_model,
    hidden_states,
    relative_errors,
    rollout_states,
)

TOKENS = [101, 0, 1, 2023, 7592, 29999]
_NAMES = ("bert", "roberta", "distilbert", "xlnet", "xlm")
CONTROLS = [case for case in CASES if case.name in _NAMES]


def test_rollout_of_minilm_equals_transformers(minilm: Path) -> None:
    model = transformers.BertModel.from_pretrained(minilm, dtype=torch.float32).eval()
    case = Case(name="minilm", family="bert", config=lambda: None, blocks="encoder.layer")
    errors = relative_errors(rollout_states(minilm, TOKENS), hidden_states(model, case, TOKENS))
    assert errors.max() < 1e-5


def test_nothing_is_found_in_minilm(minilm: Path) -> None:
    document = ckptforensics.find_layers(minilm)
    assert document.model.family == "bert"
    assert document.explosion == ()
    assert document.decay == ()
    assert [row.label for row in document.layers] == [None] * 6
    assert "explosion     none found" in render(document)
    assert "decay         none found" in render(document)
    # The rollout was there to see something, had there been something.
    assert all(row.rollout_ratio is not None for row in document.layers)


@pytest.mark.parametrize("case", CONTROLS, ids=lambda case: case.name)
def test_nothing_is_found_in_random_encoders(case: Case, tmp_path: Path) -> None:
    build_model(case).save_pretrained(tmp_path)
    document = ckptforensics.find_layers(tmp_path)
    assert document.model.family == case.family
    assert document.explosion == ()
    assert document.decay == ()


def test_tensors_that_are_not_read_have_reasons(minilm: Path) -> None:
    reasons = {t.name: t.skipped for t in ckptforensics.inspect(minilm).tensors if t.role is None}
    assert reasons["embeddings.position_ids"] == "a constant, not a weight"
    assert reasons["pooler.dense.weight"] == "after the last block"
    scores = "attention scores only: a single token attends to itself with weight 1"
    assert reasons["encoder.layer.0.attention.self.query.weight"] == scores
    roles = {t.name: t.role for t in ckptforensics.inspect(minilm).tensors if t.role is not None}
    assert roles["embeddings.token_type_embeddings.weight"] == "token types"
    assert roles["embeddings.LayerNorm.bias"] == "embedding norm"
    assert roles["encoder.layer.5.output.LayerNorm.weight"] == "ffn_norm"


def test_layers_of_an_encoder_without_common_prefix_are_named(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "xlm")
    build_model(case).save_pretrained(tmp_path)
    document = ckptforensics.find_layers(tmp_path)
    prefixes = [f"transformer.attentions.{i}" for i in range(3)]
    assert [row.prefix for row in document.layers] == prefixes
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.ffns.1.lin3.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ckptforensics.CkptError, match=r"no such tensor") as caught:
        ckptforensics.open_checkpoint(tmp_path)
    assert "transformer.ffns.1.lin3.weight" in str(caught.value)


def test_old_names_of_gains_and_biases(tmp_path: Path) -> None:
    """The first published BERT files call them gamma and beta."""
    case = next(case for case in CASES if case.name == "bert")
    model = build_model(case)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in load_file(file).items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    tokens = [3, 7, 42]
    errors = relative_errors(rollout_states(tmp_path, tokens), hidden_states(model, case, tokens))
    assert errors.max() < 1e-5


def test_relative_positions_are_refused(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "bert")
    build_model(case).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text().replace("{", '{"position_embedding_type": "relative_key",', 1)
    config.write_text(text)
    with pytest.raises(ckptforensics.CkptError, match="position_embedding_type"):
        ckptforensics.open_checkpoint(tmp_path)


class _NoCaches(list[None]):
    """What FlauBERT's pre-norm blocks need to run: transformers indexes the cache by block."""

    def get_seq_length(self) -> int:
        return 0


def test_flaubert_with_norms_before_the_branches(tmp_path: Path) -> None:
    case = Case(
        name="flaubert-pre-norm",
        family="xlm",
        config=lambda: transformers.FlaubertConfig(
            emb_dim=48, n_layers=3, n_heads=4, vocab_size=61, pre_norm=True
        ),
        model="FlaubertModel",
    )
    model = build_model(case)
    model.save_pretrained(tmp_path)
    tokens = [3, 7, 42]
    with torch.no_grad():
        ids = torch.tensor(tokens)[:, None]
        out = model(ids, cache=_NoCaches([None] * 3), output_hidden_states=True)
    theirs = torch.stack([h[:, 0] for h in out.hidden_states[1:]], dim=1).double().numpy()
    assert relative_errors(rollout_states(tmp_path, tokens), theirs).max() < 1e-5


def test_gguf_of_an_encoder_equals_transformers(tmp_path: Path) -> None:
    """Embedding norm, token types and norms after the sums, under llama.cpp's names."""
    case = next(case for case in CASES if case.name == "bert")
    model = build_model(case)
    model.save_pretrained(tmp_path)
    embeddings = {
        "word_embeddings": "token_embd",
        "position_embeddings": "position_embd",
        "token_type_embeddings": "token_types",
        "LayerNorm": "token_embd_norm",
    }
    in_block = {
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }
    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_block_count(3)
    writer.add_embedding_length(48)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    for name, values in load_file(tmp_path / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        if stem.startswith("bert.embeddings."):
            writer.add_tensor(f"{embeddings[stem.rpartition('.')[2]]}.{end}", values)
        elif stem.startswith("bert.encoder.layer."):
            layer, _, inner = stem.removeprefix("bert.encoder.layer.").partition(".")
            writer.add_tensor(f"blk.{layer}.{in_block[inner]}.{end}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = [3, 7, 42]
    ours = rollout_states(tmp_path / "bert.gguf", tokens)
    assert relative_errors(ours, hidden_states(model, case, tokens)).max() < 1e-5
