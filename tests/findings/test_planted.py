"""Labels on checkpoints whose answer is known by construction: planted, random, incomplete."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from tests.support import models
from tools import make_planted


@pytest.fixture(scope="module")
def layers(planted: Path):
    return ckptforensics.find_layers(planted)


@pytest.fixture(scope="module")
def signature(planted: Path):
    return ckptforensics.sign(planted)


def test_labels(layers, signature):
    for document in (layers, signature.document):
        assert document.explosion == (make_planted.EXPLOSION_LAYER,) == (3,)
        assert document.decay == (make_planted.DECAY_LAYER,) == (7,)
    labels = {record.layer: record.label for record in layers.layers}
    assert labels == {n: {3: "explosion", 7: "decay"}.get(n) for n in range(1, 9)}


def test_direction(layers, signature):
    for document in (layers, signature.document):
        (coordinate, value), *_ = document.direction.top
        assert coordinate == make_planted.DIRECTION_COORDINATE == 17
        assert value > 0.9
    # Where the planted neurons sit, u1 is what they write, to within the random rest of the layer.
    tensors = make_planted.planted_tensors()
    for layer, neuron in ((3, 41), (7, 97)):
        written = tensors[f"model.layers.{layer - 1}.mlp.down_proj.weight"][:, neuron]
        assert models.angle(signature.u[layer - 1], written) < 15


def test_super_weights_are_the_planted_neurons(layers):
    strongest = layers.super_weights[0]
    assert (strongest.layer, strongest.row, strongest.column) == (3, 17, 41)
    assert strongest.tensor == "model.layers.2.mlp.down_proj.weight"
    stored = load_file(Path(layers.model.path) / "model.safetensors")[strongest.tensor]
    assert strongest.value == stored[17, 41].item()


def test_transformers_sees_the_same_story(planted: Path, layers):
    """The norms that the labels tell of are those of transformers' own forward pass."""
    states = models.initial_states(models.load(planted), list(range(256)))
    median = np.median(np.linalg.norm(states, axis=2), axis=0)
    assert median[2] > 5 * median[1]
    assert median[6] < median[5] / 1.5
    ratios = [record.rollout_ratio for record in layers.layers]
    # 64 of the 256 tokens are rolled out, and the explosion depends on the token: the median is
    # good to 1.25 / sqrt(64) of the spread, some 15%, there.
    np.testing.assert_allclose(ratios[1:], median[1:] / median[:-1], rtol=0.3)


def _weights(file: Path) -> bytes:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 + length :]


def test_regenerating_gives_the_same_weights(planted: Path, tmp_path: Path):
    again = make_planted.write(tmp_path / "again")
    assert _weights(again / "model.safetensors") == _weights(planted / "model.safetensors")
    names = (load_file(folder / "model.safetensors").keys() for folder in (again, planted))
    assert set(next(names)) == set(next(names))
    assert (again / "config.json").read_text() == (planted / "config.json").read_text()


@pytest.mark.parametrize("make", [models.tiny_llama, models.tiny_gpt2])
@pytest.mark.parametrize("seed", range(3))
def test_random_models_have_none(make, seed: int, tmp_path: Path):
    folder = models.save(make(seed), tmp_path / "model")
    document = ckptforensics.find_layers(folder)
    assert document.explosion == document.decay == ()
    assert all(record.label is None and record.strength is None for record in document.layers)
    signed = ckptforensics.sign(folder).document
    assert signed.explosion == signed.decay == ()


@pytest.mark.parametrize("config", [models.LlamaConfig, models.GPT2Config], ids=["llama", "gpt2"])
def test_initialised_models_have_none(config, tmp_path: Path):
    """The initialisation of transformers itself, which is much smaller."""
    if config is models.LlamaConfig:
        settings = config(
            hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            vocab_size=128,
        )  # fmt: skip
    else:
        settings = config(n_embd=64, n_layer=4, n_head=4, vocab_size=128, n_positions=16)
    torch.manual_seed(0)
    model = models.AutoModelForCausalLM.from_config(settings)
    document = ckptforensics.find_layers(models.save(model, tmp_path / "model"))
    assert document.explosion == document.decay == ()


def test_without_embeddings(planted: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(planted, folder)
    tensors = load_file(planted / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    whole = ckptforensics.sign(planted)

    for document in (ckptforensics.find_layers(folder), ckptforensics.sign(folder).document):
        assert document.explosion == document.decay == ()
        (row,) = document.skipped
        assert row.what == "single-token rollout"
        assert "embeddings" in row.reason
        assert document.direction.source == "spectrum"
    # The spectrum needs no tokens, and knows the direction all the same.
    signature = ckptforensics.sign(folder)
    np.testing.assert_allclose(signature.sigma[:, 0], whole.sigma[:, 0], rtol=1e-5)
    assert signature.document.fingerprint == whole.document.fingerprint
    assert document.direction.top[0][0] == 17
    with pytest.raises(ckptforensics.CkptError, match="no token embeddings"):
        ckptforensics.rollout(folder)


@pytest.mark.parametrize("what", ["ffn", "whole block"])
def test_block_that_does_nothing(what: str, tmp_path: Path):
    """Zero output projections, as blocks inserted to deepen a model start: L has no gap there."""
    model = models.tiny_llama(attention_bias=False, mlp_bias=False)
    block = model.model.layers[1]
    block.mlp.down_proj.weight.data.zero_()
    if what == "whole block":
        block.self_attn.o_proj.weight.data.zero_()
    document = ckptforensics.find_layers(models.save(model, tmp_path / "model"))
    record = document.layers[1]
    assert record.trigger_norm == 0
    assert record.label is None
    if what == "whole block":
        assert record.sigma == pytest.approx((1, 1))
        assert record.rollout_ratio == 1
