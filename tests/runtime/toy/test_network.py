"""The trained networks against transformers' implementations, and against our own rollout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import ckptforensics
from ckptforensics.errors import FormatError
from ckptforensics.runtime.toy.network import Shape, new_tensors, run
from ckptforensics.runtime.toy.recipes import Recipe
from ckptforensics.runtime.toy.saved import save_checkpoint
from tests.support.families.cases_toy import (
    llama_config,
    opt_config,
    toy_from_llama,
    toy_from_opt,
)

IDS = torch.tensor([[0, 3, 7, 11, 19, 42, 3, 3, 1, 60], [0, 5, 5, 9, 30, 31, 2, 8, 44, 13]])
LANGUAGE = Shape(61, 3, 48, 4, 16, norm="rms", ffn="swiglu", positions="rope")


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval()


def agree(shape: Shape, tensors: dict, expected: torch.Tensor, ids: torch.Tensor = IDS) -> None:
    assert {n: tuple(t.shape) for n, t in tensors.items()} == shape.sizes()
    with torch.no_grad():
        plain = run(shape, tensors, ids)
        watched = run(shape, tensors, ids, watch=lambda *_: None)
    for found in (plain, watched):
        assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_bigram_network_is_opt_without_biases():
    model = randomised(transformers.OPTForCausalLM(opt_config()))
    with torch.no_grad():
        expected = model(IDS).logits
    agree(Shape(61, 3, 48, 1, 16), toy_from_opt(model.state_dict()), expected)


def test_language_network_is_llama():
    model = randomised(transformers.LlamaForCausalLM(llama_config()))
    with torch.no_grad():
        expected = model(IDS).logits
    agree(LANGUAGE, toy_from_llama(model.state_dict()), expected)


def test_window_is_mistrals():
    config = transformers.MistralConfig(
        **{
            k: v
            for k, v in llama_config().to_dict().items()
            if k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        },
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        sliding_window=3,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = randomised(transformers.MistralForCausalLM(config))
    with torch.no_grad():
        expected = model(IDS).logits
    agree(replace(LANGUAGE, window=3), toy_from_llama(model.state_dict()), expected)


def test_norms_of_queries_and_keys_are_qwen3s():
    config = transformers.Qwen3Config(
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=12,
        vocab_size=61,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )
    model = randomised(transformers.Qwen3ForCausalLM(config))
    with torch.no_grad():
        expected = model(IDS).logits
    state = model.state_dict()
    norms = {n: state.pop(n) for n in list(state) if "q_norm" in n or "k_norm" in n}
    tensors = toy_from_llama(state)
    for name, tensor in norms.items():
        number = name.split(".")[2]
        part = "query_norm" if "q_norm" in name else "key_norm"
        tensors[f"blocks.{number}.attention.{part}.weight"] = tensor
    agree(replace(LANGUAGE, qk_norm=True), tensors, expected)


def test_sinks_are_gpt_oss():
    """Weights of attention with a learned logit, against transformers' own function."""
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    shape = replace(LANGUAGE, layers=1, sinks=True, positions="none")
    tensors = new_tensors(shape, 0)
    seen = {}
    with torch.no_grad():
        tensors["blocks.0.attention.sinks"].copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
        run(shape, tensors, IDS, watch=lambda _, what, t: seen.setdefault(what, t))
        scores = seen["logits"]
        module = torch.nn.Module()
        module.sinks = tensors["blocks.0.attention.sinks"]
        module.num_key_value_groups = 1
        length = IDS.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        # Queries whose products with unit keys are the scores.
        keys = torch.eye(length).expand(*scores.shape[:2], length, length)
        _, expected = eager_attention_forward(
            module, scores, keys, keys, mask, scaling=1.0, dropout=0.0
        )
    assert torch.allclose(seen["weights"], expected, atol=1e-6)


def test_relu_attention_is_relu_over_the_number_of_keys():
    shape = Shape(61, 1, 16, 1, 16, attention="relu")
    seen = {}
    with torch.no_grad():
        run(shape, new_tensors(shape, 1), IDS, watch=lambda _, what, t: seen.setdefault(what, t))
    logits, weights = seen["logits"].numpy(), seen["weights"].numpy()
    for query in range(IDS.shape[1]):
        for key in range(IDS.shape[1]):
            expected = np.maximum(logits[..., query, key], 0) / (query + 1) if key <= query else 0
            np.testing.assert_allclose(weights[..., query, key], expected, atol=1e-7)


def test_an_encoder_sees_what_comes_later_and_a_decoder_does_not():
    changed = IDS.clone()
    changed[:, -1] = 20
    for mask, same in (("causal", True), ("bidirectional", False)):
        shape = replace(LANGUAGE, mask=mask)
        tensors = new_tensors(shape, 0)
        with torch.no_grad():
            first, second = run(shape, tensors, IDS)[:, 0], run(shape, tensors, changed)[:, 0]
        assert torch.equal(first, second) == same


def test_distance_bias_is_blooms():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    shape = replace(LANGUAGE, positions="alibi")
    from ckptforensics.runtime.toy.network import _bias

    found = _bias(shape, 9, torch.device("cpu"))
    # BLOOM adds slope * key, which differs by a constant a query.
    theirs = build_alibi_tensor(torch.ones(1, 9), 4, torch.float32).view(4, 1, 9)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    ours = torch.where(seen, found, 0)
    expected = theirs - theirs.transpose(1, 2)
    assert torch.allclose(ours, torch.where(seen, expected, 0), atol=1e-6)
    assert torch.isinf(found[:, ~seen]).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": "parallel"},
        {"sinks": True},
        {"gated": True},
        {"qk_norm": True},
        {"positions": "learned"},
        {"positions": "none"},
        {"mask": "bidirectional"},
        {"window": 3},
        {"sinks": True, "gated": True, "residual": "parallel"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_weight_only_tools_read_every_option(changes, tmp_path):
    """The rollout of single tokens, made of the saved file, against the running network."""

    class Saved:
        model_type = "toy_language"
        begin = 0

        def tokenizer(self) -> str:
            return "{}"

    shape = replace(LANGUAGE, **changes)
    tensors = new_tensors(shape, 0)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=torch.manual_seed(1)))
    save_checkpoint(Saved(), shape, Recipe(), tensors, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    expected = []
    with torch.no_grad():
        run(
            shape,
            tensors,
            torch.tensor([[3], [7], [42]]),
            watch=lambda _, what, t: expected.append(t[:, 0]) if what == "state" else None,
        )
    states = ckptforensics.rollout(tmp_path / "model", tokens=[3, 7, 42], states=True).states
    truth = torch.stack(expected, dim=1).numpy()
    assert np.abs(states - truth).max() < 1e-5 * np.abs(truth).max()


def test_relu_attention_is_refused_by_the_weight_only_tools(tmp_path: Path):
    class Saved:
        model_type = "bigram_backcopy"
        begin = 0

        def tokenizer(self) -> str:
            return "{}"

    shape = Shape(61, 1, 16, 1, 16, attention="relu")
    save_checkpoint(Saved(), shape, Recipe(), new_tensors(shape, 0), tmp_path / "model")
    with pytest.raises(FormatError, match="attention as 'relu'"):
        ckptforensics.open_checkpoint(tmp_path / "model")
