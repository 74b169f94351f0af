"""Blocks that end each step in a norm: L against dense matrices, and against the true steps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy.special import ndtr

from ckptforensics.layers import Attention, Block, Ffn, Linear, Norm
from ckptforensics.linear import Fit, ResidualMap, block_map
from ckptforensics.linear.forward import attention_forward
from ckptforensics.linear.norms import apply_norm

D, HEADS, WIDTH, HIDDEN = 64, 4, 16, 96


def _block(kind: Literal["rms", "layer"] = "layer", scale: float = 1.0) -> Block:
    """A BERT-like block of random weights with gains, biases and (`scale`) heavy branches."""
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(
            np.float32(scale) * draw(rows, columns) / np.float32(columns**0.5), draw(rows)
        )

    def norm() -> Norm:
        return Norm(kind, 1 + 0.3 * draw(D), draw(D) if kind == "layer" else None, 1e-12)

    attention = Attention(
        norm=None,
        value=linear(HEADS * WIDTH, D),
        output=linear(D, HEADS * WIDTH),
        head_dim=WIDTH,
        repeats=1,
        after_norm=norm(),
    )
    ffn = Ffn(
        norm=None,
        gate=None,
        up=linear(HIDDEN, D),
        down=linear(D, HIDDEN),
        activation="relu",
        down_name="down",
        after_norm=norm(),
    )
    return Block(layer=1, prefix="block", residual="sequential", attention=attention, ffn=ffn)


def _step(branch: np.ndarray, norm: Norm, *, centred: bool) -> np.ndarray:
    """sqrt(d) / |C M|_F diag(g) C M with M = I + branch."""
    m = np.eye(D) + branch
    if centred:
        m = m - m.mean(axis=0)
    return np.sqrt(D) / np.linalg.norm(m) * norm.gain[:, None].astype(np.float64) * m


def _dense(block: Block, *, centred: bool) -> np.ndarray:
    attention, ffn = block.attention, block.ffn
    assert attention is not None and isinstance(ffn, Ffn)
    assert attention.after_norm is not None and ffn.after_norm is not None
    a = attention.output.weight.astype(np.float64) @ attention.value.weight
    # Stein's lemma for ReLU on N(0, I): E[s'(w.n + c)] = Phi(c / |w|).
    up = ffn.up.weight.astype(np.float64)
    f1 = ndtr(ffn.up.bias / np.linalg.norm(up, axis=1))[:, None] * up
    f = ffn.down.weight.astype(np.float64) @ f1
    first = _step(a, attention.after_norm, centred=centred)
    return _step(f, ffn.after_norm, centred=centred) @ first


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("fit", ["canonical", "paper"])
def test_l_equals_the_dense_product(
    kind: Literal["rms", "layer"], fit: Literal["canonical", "paper"]
) -> None:
    block = _block(kind)
    operator = block_map(block, Fit(fit))
    expected = _dense(block, centred=kind == "layer" and fit == "canonical")
    assert np.linalg.norm(operator.dense() - expected) < 1e-5 * np.linalg.norm(expected)
    residual = ResidualMap(operator).dense()
    assert np.linalg.norm(residual - expected + np.eye(D)) < 1e-5 * np.linalg.norm(expected)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, D, 3), dtype=np.float32)
    left, right = np.sum(y * operator.matmat(x)), np.sum(operator.rmatmat(y) * x)
    assert left == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_step_is_the_best_linear_map_of_the_true_one(kind: Literal["rms", "layer"]) -> None:
    """Least squares on the true step: the norm divides by a size that varies little."""
    block = _block(kind, scale=2.0)
    attention = block.attention
    assert attention is not None and attention.after_norm is not None
    unbiased = Attention(
        norm=None,
        value=Linear(attention.value.weight),
        output=Linear(attention.output.weight),
        head_dim=WIDTH,
        repeats=1,
    )
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60_000, D), dtype=np.float32)
    y = apply_norm(x + attention_forward(unbiased, x), attention.after_norm)
    fitted = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0), rcond=None)[0].T
    a = attention.output.weight.astype(np.float64) @ attention.value.weight
    step = _step(a, attention.after_norm, centred=kind == "layer")
    assert np.linalg.norm(fitted - step) < 0.06 * np.linalg.norm(fitted)
    if kind == "layer":
        # Leaving the centring out is worse, so the test can tell.
        wrong = _step(a, attention.after_norm, centred=False)
        assert np.linalg.norm(fitted - wrong) > 0.1 * np.linalg.norm(fitted)
