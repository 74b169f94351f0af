"""SmolLM2-135M-Instruct against numbers published for it, and against transformers.

The published numbers come from a dense implementation of the paper's recipe (least squares, dense
SVD) on the same weights, and are given with as many digits as are tested here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptforensics
from ckptforensics import Fit, open_checkpoint
from ckptforensics.layers import stream_blocks
from ckptforensics.probes import response, trigger
from tests.support import models

# 'The quick brown fox jumps over the lazy dog.' without a begin-of-sequence token.
SENTENCE = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]
HIGH_NORM = 5000


@pytest.fixture(scope="module")
def empirical(smollm2_f32: Path) -> np.ndarray:
    """The direction of high-norm tokens, as transformers shows it.

    The mean, not normalised before, of all hidden states with a norm over 5,000, over all
    tokens of the sentence and all layers. Only the first token at layers 12 to 29 is that large,
    and since its direction turns a little from 12 to 28 and more at 29 (norm 9,000), the choice
    matters: taking layer 29 alone gives 17 degrees at layer 12 in place of 4, and unit vectors
    in place of raw ones half a degree more at layer 29.
    """
    states = models.hidden_states(models.load(smollm2_f32), [SENTENCE])[0]
    high = np.linalg.norm(states, axis=2) > HIGH_NORM
    tokens, layers = np.nonzero(high)
    assert set(tokens) == {0}
    assert set(layers + 1) == set(range(12, 30))
    mean = states[high].mean(axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="module")
def signatures(smollm2_gguf: Path, smollm2_signature):
    """By fit."""
    paper = ckptforensics.sign(smollm2_gguf, fit=Fit("paper"))
    return {"canonical": smollm2_signature, "paper": paper}


@pytest.fixture(scope="module")
def layers(smollm2_layers):
    return smollm2_layers


@pytest.fixture(scope="module")
def blocks(smollm2_gguf: Path):
    """The blocks whose response is published."""
    wanted = (12, 28, 29, 30)
    checkpoint = open_checkpoint(smollm2_gguf)
    return dict(zip(wanted, stream_blocks(checkpoint, wanted), strict=True))


# The published values come from 100,000 samples or are rounded; 1% is far less than the
# difference between the two fits.
PUBLISHED = 0.01


@pytest.mark.parametrize(
    ("fit", "layer", "expected"),
    [("paper", 3, 383.8), ("paper", 12, 1419.8), ("paper", 29, 22338.5), ("canonical", 12, 378.5)],
)
def test_leading_singular_value(signatures, fit: str, layer: int, expected: float):
    assert signatures[fit].sigma[layer - 1, 0] == pytest.approx(expected, rel=PUBLISHED)


@pytest.mark.parametrize(
    ("fit", "layer", "expected"), [("paper", 12, 7.1), ("paper", 29, 18.9), ("canonical", 12, 10.2)]
)
def test_gap(signatures, fit: str, layer: int, expected: float):
    record = signatures[fit].document.layers[layer - 1]
    assert record.gap == pytest.approx(expected, rel=PUBLISHED)
    s1, s2 = signatures[fit].sigma[layer - 1]
    assert record.gap == pytest.approx(s1 / s2, rel=1e-5)


@pytest.mark.parametrize(
    ("fit", "layer", "expected"),
    [("paper", 12, 6.0), ("paper", 29, 8.4), ("canonical", 12, 4.2), ("canonical", 29, 8.2)],
)
def test_direction_is_that_of_high_norm_tokens(
    signatures, empirical: np.ndarray, fit: str, layer: int, expected: float
):
    found = models.angle(signatures[fit].u[layer - 1], empirical)
    assert found == pytest.approx(expected, abs=0.5)


def test_residuals(signatures):
    for signature in signatures.values():
        assert signature.residual.max() < 1e-4
        assert signature.u.shape == signature.v.shape == (30, 576)
        np.testing.assert_allclose(np.linalg.norm(signature.u, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(signature.v, axis=1), 1, atol=1e-6)


def test_dense_svd_of_a_layer(smollm2_gguf: Path, signatures):
    """Matrix-free and dense agree on a layer with a gap and on one without."""
    from ckptforensics.linear import block_map

    for block in stream_blocks(open_checkpoint(smollm2_gguf), (6, 12)):
        dense = block_map(block, Fit()).dense().astype(np.float64)
        u, s, _ = np.linalg.svd(dense)
        sigma = signatures["canonical"].sigma[block.layer - 1]
        # A value is off by its residual squared: 1e-4 of the first, 1e-2 of the second.
        assert sigma[0] == pytest.approx(s[0], rel=1e-5)
        assert sigma[1] == pytest.approx(s[1], rel=1e-3)
        limit = np.degrees(1e-4 / (1 - s[1] / s[0]))
        assert models.angle(signatures["canonical"].u[block.layer - 1], u[:, 0]) < limit


def test_labels(layers, signatures):
    for document in (layers, signatures["canonical"].document):
        explosion, decay = set(document.explosion), set(document.decay)
        assert {3, 12} <= explosion <= {2, 3, 12}
        assert {10, 29, 30} <= decay <= {9, 10, 11, 29, 30}


def test_labels_of_the_paper_fit(signatures):
    document = signatures["paper"].document
    assert {3, 12} <= set(document.explosion) <= {2, 3, 12}
    assert {10, 29, 30} <= set(document.decay) <= {9, 10, 11, 29, 30}


def test_direction(layers, signatures, empirical: np.ndarray):
    assert np.abs(empirical).argmax() == 507
    for document in (layers, *(s.document for s in signatures.values())):
        coordinate, value = document.direction.top[0]
        assert coordinate == 507
        assert value == pytest.approx(abs(empirical[507]), abs=0.01)
    # Where the direction is clear it is nearly this one axis.
    for layer in (12, 29):
        assert abs(signatures["canonical"].u[layer - 1, 507]) == pytest.approx(0.99, abs=0.01)


def test_super_weights(layers):
    """Layers (from 0) 28, 11, 27, 2 and 9, measured by the activations of running text."""
    expected = {(28, 507, 678), (11, 507, 1229), (27, 199, 903), (2, 507, 90), (9, 507, 200)}
    found = [(w.layer - 1, w.row, w.column) for w in layers.super_weights]
    assert set(found[:5]) == expected
    assert found[:3] == [(28, 507, 678), (11, 507, 1229), (27, 199, 903)]
    amplitudes = [abs(w.amplitude) for w in layers.super_weights]
    assert amplitudes == sorted(amplitudes, reverse=True)
    assert layers.super_weights[0].tensor == "blk.28.ffn_down.weight"


def test_order_of_super_weights_in_the_paper_fit(smollm2_gguf: Path, signatures):
    """The published order comes from the paper's triggers."""
    v = signatures["paper"].v.astype(np.float64)
    blocks = stream_blocks(open_checkpoint(smollm2_gguf))
    amplitudes = [trigger(b.ffn, v[b.layer - 1]).super_weight.amplitude for b in blocks]
    strongest = np.argsort(-np.abs(amplitudes))[:5]
    np.testing.assert_array_equal(strongest, [28, 11, 27, 2, 9])


def test_super_weights_carry_the_explosion(smollm2_f32: Path):
    """Without the strongest weight of layer 12 most of its explosion is gone in transformers."""
    model = models.load(smollm2_f32)
    before = np.linalg.norm(models.initial_states(model, [504])[0, 11])
    model.model.layers[11].mlp.down_proj.weight.data[507, 1229] = 0
    after = np.linalg.norm(models.initial_states(model, [504])[0, 11])
    assert before > 20_000
    assert after < before / 3


def test_median_norms(smollm2_gguf: Path):
    """Published over another draw of tokens: nearly all tokens follow one path."""
    document = ckptforensics.rollout(smollm2_gguf).document
    assert len(document.tokens) >= 256
    published = {
        1: 65, 2: 217, 3: 845, 4: 841, 8: 809, 9: 682, 10: 177, 11: 156,
        12: 23_805, 28: 23_460, 29: 9_403, 30: 5_431,
    }  # fmt: skip
    found = {layer: document.median[layer - 1] for layer in published}
    # A median of 256 tokens: a few percent where the norms of tokens differ (layers 1, 2, 10).
    assert found == pytest.approx(published, rel=0.05)


def test_response(blocks, empirical: np.ndarray):
    """What the true block adds along the empirical direction at norm 22,000."""
    at_29, at_30 = (response(blocks[layer], empirical, 22_000) for layer in (29, 30))
    assert at_29.plus == pytest.approx(-14_443, rel=PUBLISHED)
    # A small remainder, published with two digits.
    assert at_29.minus == pytest.approx(46, abs=2)
    assert at_30.plus == pytest.approx(-6_761, rel=PUBLISHED)


def test_response_is_that_of_transformers(blocks, empirical: np.ndarray, smollm2_f32: Path):
    model = models.load(smollm2_f32)
    x = models.torch.tensor(22_000 * np.stack([empirical, -empirical]), dtype=models.torch.float32)
    position = models.torch.zeros(2, 1, dtype=models.torch.long)
    angles = model.model.rotary_emb(x[:, None], position)
    for layer in (29, 30):
        with models.torch.no_grad():
            out = model.model.layers[layer - 1](x[:, None], position_embeddings=angles)
        states = (out if models.torch.is_tensor(out) else out[0]).reshape(2, -1)
        added = (states - x).double().numpy() @ empirical
        found = response(blocks[layer], empirical, 22_000)
        # Float32 at norm 22,000: the last place is 0.002, and 576 of them meet.
        assert found.plus == pytest.approx(added[0], rel=1e-4)
        assert found.minus == pytest.approx(added[1], rel=1e-2, abs=0.1)


def test_trigger_norms(blocks, signatures, layers):
    """What the true FFN answers to +-v1 of the paper's fit."""
    v = signatures["paper"].v.astype(np.float64)
    found = {layer: trigger(blocks[layer].ffn, v[layer - 1]).norm for layer in (12, 28, 29)}
    assert found == pytest.approx({12: 67_106, 28: 59_298, 29: 343_264}, rel=PUBLISHED)
    # Canonical triggers are other vectors, and tell the same layers from the rest.
    norms = {record.layer: record.trigger_norm for record in layers.layers}
    assert sorted(norms, key=norms.get)[-3:] == [28, 12, 29]
    others = [norm for layer, norm in norms.items() if layer not in (12, 28, 29)]
    assert min(others) > 200
    assert max(others) < 9_500
    assert min(norms[layer] for layer in (12, 28, 29)) > 50_000


def test_layers_document_tells_what_was_measured(layers):
    """Ratios of the rollout and signed responses, as published for the decay layers."""
    records = {record.layer: record for record in layers.layers}
    assert records[12].rollout_ratio == pytest.approx(23_805 / 156, rel=0.1)
    assert records[10].rollout_ratio == pytest.approx(177 / 682, rel=0.1)
    assert records[29].rollout_ratio == pytest.approx(9_403 / 23_460, rel=0.05)
    assert records[29].response.direction == "tokens"
    assert records[29].response.size == pytest.approx(23_460, rel=0.05)
    assert records[29].response.plus == pytest.approx(-14_443, rel=0.05)
    # The eigenvalue there is positive, unlike the paper's: +516 at 11 degrees.
    assert records[29].eigenvalue.real > 0
    assert records[29].eigenvalue.angle_deg < 15
