"""A, F, L and R: adjoints, and products against matrices built from transformers' own modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptforensics import Fit, open_checkpoint
from ckptforensics.layers import Block, stream_blocks
from ckptforensics.linear import AttentionMap, FfnMap, ResidualMap, block_map
from tests.support import models

# Products are float32 sums of some tens of terms.
FLOAT32 = 3e-6

MODELS = {
    "llama": models.tiny_llama,
    "llama, no sharing": lambda: models.tiny_llama(4, num_key_value_heads=6, attention_bias=False),
    "llama, one value head": lambda: models.tiny_llama(5, num_key_value_heads=1),
    "gpt2": models.tiny_gpt2,
}


@pytest.fixture(scope="module", params=MODELS)
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Blocks as transformers' modules and as ours."""
    model = MODELS[request.param]()
    folder: Path = models.save(model, tmp_path_factory.mktemp("model") / "model")
    blocks = list(stream_blocks(open_checkpoint(folder)))
    assert len(blocks) == 3
    return model, list(zip(models.blocks(model), blocks, strict=True))


def norm_in_torch(module, d: int) -> np.ndarray:
    """The norm's Jacobian for input of unit mean square, averaged over directions.

    diag(g) for RMSNorm, diag(g) C for LayerNorm: both are linear but for the division by the size.
    """
    gain = module.weight.detach().double().numpy()
    centring = np.eye(d) - 1 / d if isinstance(module, torch.nn.LayerNorm) else np.eye(d)
    return gain[:, None] * centring


def attention_in_torch(model, module) -> np.ndarray:
    """Jacobian of the attention module's output at one token with respect to its input.

    The weights of a single token's attention are 1 whatever q and k are, so it is constant.
    """
    attention = models.attention_of(module)
    d = model.config.hidden_size

    def one_token(n: torch.Tensor) -> torch.Tensor:
        states = n.reshape(1, 1, d)
        if hasattr(model, "model"):
            angles = model.model.rotary_emb(states, torch.zeros(1, 1, dtype=torch.long))
            out = attention(states, position_embeddings=angles, attention_mask=None)
        else:
            out = attention(states)
        return out[0].reshape(d)

    jacobian = torch.autograd.functional.jacobian
    at_random = jacobian(one_token, torch.randn(d, generator=torch.Generator().manual_seed(0)))
    return at_random.double().numpy()


def dense_maps(model, module, block: Block, fit: Fit) -> dict[str, np.ndarray]:
    """A, F, L and R as matrices in float64; the fitted map F1 itself is tested in test_fit."""
    d = model.config.hidden_size
    if hasattr(model, "model"):
        norm, down = module.input_layernorm, module.mlp.down_proj.weight
    else:
        norm, down = module.ln_1, module.mlp.c_proj.weight.T
    a = attention_in_torch(model, module) @ norm_in_torch(norm, d)
    f = down.detach().double().numpy() @ block_map(block, fit).ffn.f1.astype(np.float64)
    identity = np.eye(d)
    residual_stream = (identity + f) @ (identity + a)
    return {"A": a, "F": f, "L": residual_stream, "R": residual_stream - identity}


def operators(block: Block, fit: Fit = Fit()):  # noqa: B008 (frozen)
    attention = AttentionMap(block.attention, centred=fit.kind != "paper")
    whole = block_map(block, fit)
    return {"A": attention, "F": whole.ffn, "L": whole, "R": ResidualMap(whole)}


@pytest.mark.parametrize("width", [1, 2, 7])
def test_products(pairs, width: int):
    model, both = pairs
    random = np.random.default_rng(1)
    for module, block in both:
        dense = dense_maps(model, module, block, Fit())
        for name, operator in operators(block).items():
            matrix = dense[name]
            assert operator.shape == matrix.shape
            x = random.standard_normal((matrix.shape[1], width)).astype(np.float32)
            scale = FLOAT32 * np.linalg.norm(matrix) * np.sqrt(width)
            assert np.abs(operator.matmat(x) - matrix @ x).max() < scale, name
            assert np.abs(operator.rmatmat(x) - matrix.T @ x).max() < scale, name


def test_round_trips(pairs):
    """There and back in one is a product and its adjoint's, with and without something added."""
    random = np.random.default_rng(5)
    for _, block in pairs[1]:
        for residual in ("sequential", "parallel"):
            for name, operator in operators(replace(block, residual=residual)).items():
                x, added = (
                    random.standard_normal((n, 1)).astype(np.float32) for n in operator.shape[::-1]
                )
                for extra in (None, added):
                    there, back = operator.round_trip(x, extra)
                    expected = operator.matmat(x) + (0 if extra is None else extra)
                    size = np.linalg.norm(expected)
                    assert np.linalg.norm(there - expected) < FLOAT32 * size, name
                    returned = operator.rmatmat(expected)
                    error = np.linalg.norm(back - returned)
                    assert error < FLOAT32 * size * np.linalg.norm(operator.dense()), name


def test_nothing_goes_along_after_an_error(pairs):
    operator = block_map(pairs[1][0][1], Fit())
    x = np.ones((operator.shape[1], 1), np.float32)
    expected = operator.rmatmat(x)
    with pytest.raises(ValueError, match="dimension"):
        operator.round_trip_along(x[1:], x)
    np.testing.assert_array_equal(operator.rmatmat(x), expected)


def test_dense(pairs):
    model, both = pairs
    module, block = both[1]
    dense = dense_maps(model, module, block, Fit())
    for name, operator in operators(block).items():
        error = np.linalg.norm(operator.dense() - dense[name])
        assert error < FLOAT32 * np.linalg.norm(dense[name]), name


def test_adjoints(pairs):
    """<y, M x> = <M' y, x> for every operator and kind of fit."""
    random = np.random.default_rng(2)
    for _, block in pairs[1]:
        for fit in (Fit("canonical"), Fit("paper"), Fit("sampled", samples=500)):
            for residual in ("sequential", "parallel"):
                for name, operator in operators(replace(block, residual=residual), fit).items():
                    rows, columns = operator.shape
                    x = random.standard_normal((columns, 5)).astype(np.float32)
                    y = random.standard_normal((rows, 5)).astype(np.float32)
                    one = np.sum(y.astype(np.float64) * operator.matmat(x), axis=0)
                    other = np.sum(operator.rmatmat(y).astype(np.float64) * x, axis=0)
                    sizes = np.linalg.norm(y, axis=0) * np.linalg.norm(operator.matmat(x), axis=0)
                    assert np.all(np.abs(one - other) < FLOAT32 * sizes), (name, fit.kind)


def test_parallel_branches(pairs):
    """Both branches read the same stream: L = I + A + F."""
    model, both = pairs
    for module, block in both:
        dense = dense_maps(model, module, block, Fit())
        expected = np.eye(len(dense["A"])) + dense["A"] + dense["F"]
        found = block_map(replace(block, residual="parallel"), Fit())
        error = np.linalg.norm(found.dense() - expected)
        assert error < FLOAT32 * np.linalg.norm(expected)
        adjoint = found.rmatmat(np.eye(len(expected), dtype=np.float32))
        assert np.linalg.norm(adjoint - expected.T) < FLOAT32 * np.linalg.norm(expected)


def test_paper_leaves_centring_out(tmp_path: Path):
    """With LayerNorm the paper's attention map has the gain only."""
    model = models.tiny_gpt2()
    blocks = stream_blocks(open_checkpoint(models.save(model, tmp_path / "model")))
    for module, block in zip(models.blocks(model), blocks, strict=True):
        gain = module.ln_1.weight.detach().double().numpy()
        expected = attention_in_torch(model, module) * gain
        found = AttentionMap(block.attention, centred=False).dense()
        assert np.linalg.norm(found - expected) < FLOAT32 * np.linalg.norm(expected)
        # And it is what the block's own map is made of.
        identity = np.eye(len(expected))
        ffn = block_map(block, Fit("paper")).ffn.dense().astype(np.float64)
        whole = (identity + ffn) @ (identity + expected)
        error = np.linalg.norm(block_map(block, Fit("paper")).dense() - whole)
        assert error < FLOAT32 * np.linalg.norm(whole)


def test_attention_is_the_derivative_of_the_block(pairs):
    """For one token, I + A is the exact Jacobian of x + attention(norm(x)) where rms(x) = 1.

    The Jacobian of the norm itself has one more term, along x, which a direction orthogonal to x
    (and, for LayerNorm, to the vector of ones) does not see.
    """
    model, both = pairs
    d = model.config.hidden_size
    random = np.random.default_rng(3)
    for module, block in both:
        x = random.standard_normal(d)
        x -= x.mean()
        x *= np.sqrt(d) / np.linalg.norm(x)
        direction = random.standard_normal(d)
        seen = np.stack([x, np.ones(d)])
        direction -= np.linalg.lstsq(seen.T, direction, rcond=None)[0] @ seen
        norm = module.input_layernorm if hasattr(module, "input_layernorm") else module.ln_1
        module_norm = torch.autograd.functional.jacobian(norm, torch.tensor(x).float())
        expected = attention_in_torch(model, module) @ (module_norm.double().numpy() @ direction)
        found = AttentionMap(block.attention).matmat(direction[:, None].astype(np.float32))
        # The norms' epsilon of 3e-4 shortens the module's answer by half of that.
        assert np.linalg.norm(found[:, 0] - expected) < 3e-4 * np.linalg.norm(expected)


def test_heaviest_neuron():
    random = np.random.default_rng(4)
    down = random.standard_normal((9, 14)).astype(np.float32)
    f1 = random.standard_normal((14, 9)).astype(np.float32)
    ffn = FfnMap(down, f1)
    # Size of the rank-one part that each neuron adds to F.
    sizes = [np.linalg.svd(np.outer(down[:, k], f1[k]), compute_uv=False)[0] for k in range(14)]
    np.testing.assert_array_equal(ffn.heaviest_neuron(), down[:, int(np.argmax(sizes))])
