"""The rollout is exact: it equals the initial token's hidden states in `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptforensics
from tests.support import models

# Both sides are float32 and add up in different orders; 1e-5 is some 100 units in the last place.
EXACT = 1e-5

# Special tokens, words and rare ids; the vocabulary has 49,152.
SMOLLM2_TOKENS = [1, 0, 2, 504, 30, 198, *range(17, 49152, 997)]

TINY = {
    "llama": models.tiny_llama,
    # The family is not only tried on one set of odd sizes.
    "llama without biases, tied": lambda: models.tiny_llama(
        1, attention_bias=False, mlp_bias=False, tie_word_embeddings=True, num_key_value_heads=3
    ),
    "llama, gelu, one value head": lambda: models.tiny_llama(
        2, hidden_act="gelu", num_key_value_heads=1, intermediate_size=31
    ),
    "gpt2": models.tiny_gpt2,
    "gpt2, relu": lambda: models.tiny_gpt2(3, activation_function="relu", n_head=1),
}


class Oracle:
    """SmolLM2 in float32, and in float64 to know how far float32 can be trusted.

    At the decay layers a norm of 24,000 cancels to 150 in some tokens, so that two correct float32
    implementations may differ by more than 1e-5 there. The error that is allowed is 1e-5, or
    twice the largest distance of the float32 oracle from its own float64 run in that layer.
    """

    def __init__(self, folder: Path) -> None:
        self.model = models.load(folder)
        self.folder = folder

    def states(self, tokens: list[int], **options) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states, and the error allowed in each layer."""
        expected = models.initial_states(self.model, tokens, **options)
        exact = models.initial_states(models.load(self.folder).double(), tokens, **options)
        own_error = models.relative_error(expected, exact).max(axis=0)
        return expected, np.maximum(EXACT, 2 * own_error)


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_f32: Path) -> Oracle:
    """Exactly the dequantized weights."""
    return Oracle(smollm2_f32)


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest):
    return TINY[request.param]()


def _assert_exact(found: np.ndarray, expected: np.ndarray, allowed=EXACT) -> None:
    assert found.shape == expected.shape
    errors = models.relative_error(found, expected)
    worst = np.unravel_index((errors / allowed).argmax(), errors.shape)
    where = f"token {worst[0]}, layer {worst[1] + 1}: {errors[worst]:.2g}"
    assert np.all(errors <= allowed), where


def _states(model: Path, tokens: list[int], **options) -> np.ndarray:
    result = ckptforensics.rollout(model, tokens=tokens, states=True, **options)
    assert result.document.tokens == tuple(tokens)
    # The printed norms are those of the states.
    norms = np.linalg.norm(result.states.astype(np.float64), axis=2)
    np.testing.assert_allclose(result.document.norms, norms, rtol=1e-6)
    np.testing.assert_allclose(result.document.median, np.median(norms, axis=0), rtol=1e-6)
    return result.states


def test_smollm2_gguf(smollm2_gguf: Path, smollm2_oracle: Oracle):
    expected, allowed = smollm2_oracle.states(SMOLLM2_TOKENS)
    # Only where the norm decays (layers 10, 11, 29 and 30) may the limit be wider than 1e-5.
    assert set(np.flatnonzero(allowed > EXACT) + 1) <= {10, 11, 29, 30}
    _assert_exact(_states(smollm2_gguf, SMOLLM2_TOKENS), expected, allowed)


def test_smollm2_gguf_without_attention(smollm2_gguf: Path, smollm2_oracle: Oracle):
    tokens = SMOLLM2_TOKENS[:20]
    expected, allowed = smollm2_oracle.states(tokens, with_attention=False)
    assert np.median(allowed) == EXACT
    _assert_exact(_states(smollm2_gguf, tokens, attention=False), expected, allowed)


def test_smollm2_sharded_bf16(smollm2_bf16: Path):
    assert len(list(smollm2_bf16.glob("*.safetensors"))) == 3
    expected, allowed = Oracle(smollm2_bf16).states(SMOLLM2_TOKENS)
    _assert_exact(_states(smollm2_bf16, SMOLLM2_TOKENS), expected, allowed)


def test_initial_token_of_a_sentence(smollm2_gguf: Path, smollm2_oracle: Oracle):
    """Attention is causal, so whatever follows the token does not change its path."""
    sentence = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]
    in_context = models.hidden_states(smollm2_oracle.model, [sentence])[:, 0]
    _, allowed = smollm2_oracle.states(sentence[:1])
    _assert_exact(_states(smollm2_gguf, sentence[:1]), in_context, allowed)


@pytest.mark.parametrize("shards", [1, 3])
def test_tiny_safetensors(tiny, shards: int, tmp_path: Path):
    tokens = list(range(tiny.config.vocab_size))
    folder = models.save(tiny, tmp_path / "model", shards=shards)
    _assert_exact(_states(folder, tokens), models.initial_states(tiny, tokens))


# GGUF does not name the activation: it is always the family's.
@pytest.mark.parametrize("name", ["llama", "llama without biases, tied", "gpt2"])
def test_tiny_gguf(name: str, tmp_path: Path):
    tiny = TINY[name]()
    tokens = list(range(tiny.config.vocab_size))
    file = models.write_gguf(tiny, tmp_path / "model.gguf")
    _assert_exact(_states(file, tokens), models.initial_states(tiny, tokens))


@pytest.mark.parametrize("container", ["safetensors", "gguf"])
@pytest.mark.parametrize("make", [models.tiny_llama, models.tiny_gpt2])
def test_tiny_without_attention(make, container: str, tmp_path: Path):
    model = make()
    tokens = list(range(40))
    if container == "gguf":
        file = models.write_gguf(model, tmp_path / "model.gguf")
    else:
        file = models.save(model, tmp_path / "model")
    expected = models.initial_states(model, tokens, with_attention=False)
    _assert_exact(_states(file, tokens, attention=False), expected)
    # The oracle does something: attention matters in this model.
    assert models.relative_error(expected, models.initial_states(model, tokens)).min() > 0.01


def test_oracle_sees_wrong_weights(tmp_path: Path):
    """The comparison fails if one norm gain is off by one percent."""
    model = models.tiny_llama()
    folder = models.save(model, tmp_path / "model")
    model.model.layers[1].post_attention_layernorm.weight.data[7] *= 1.01
    expected = models.initial_states(model, [3])
    assert models.relative_error(_states(folder, [3]), expected).max() > EXACT
