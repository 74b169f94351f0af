"""Activations and their slopes against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward.activations import activation

# One name of every function, and the other names configurations use for them.
FUNCTIONS = ["silu", "gelu", "gelu_new", "quick_gelu", "relu", "relu2"]
ALIASES = [
    "swish",
    "gelu_python",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_accurate",
]


def _points() -> torch.Tensor:
    """Both tails, the bend and the neighbourhood of 0; not 0, where relu has no derivative."""
    t = np.concatenate([np.linspace(-60, 60, 2401), np.geomspace(1e-9, 1e4, 200)])
    t = np.unique(np.concatenate([t, -t]))
    return torch.tensor(t[t != 0])


def torch_value_and_slope(name: str, t: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    t = t.clone().requires_grad_(True)
    value = ACT2FN[name](t)
    value.sum().backward()
    return value.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("name", FUNCTIONS + ALIASES)
def test_value_and_slope(name: str):
    t = _points()
    value, slope = torch_value_and_slope(name, t)
    ours = activation(name)
    # gelu_fast and gelu_new spell sqrt(2 / pi) with 10 digits in transformers.
    scale = np.maximum(1, np.abs(t.numpy())) ** ours.tail_degree
    np.testing.assert_allclose(ours.value(t.numpy()) / scale, value / scale, atol=1e-10, rtol=0)
    np.testing.assert_allclose(ours.slope(t.numpy()) / scale, slope / scale, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_in_float32(name: str):
    """The precision of the argument is kept, and no large argument overflows."""
    t = torch.cat([_points(), torch.tensor([-1e6, 1e6], dtype=torch.float64)]).float()
    ours = activation(name).value(t.numpy())
    assert ours.dtype == np.float32
    expected = ACT2FN[name](t).numpy()
    # Relative to the argument: a few units in the last place of float32.
    scale = np.maximum(np.abs(t.numpy()), 1e-6).astype(np.float64)
    scale = scale**2 if name == "relu2" else scale
    assert np.max(np.abs(ours.astype(np.float64) - expected) / scale) < 1e-6


def test_slope_in_float32():
    t = _points().float()
    for name in FUNCTIONS:
        _, expected = torch_value_and_slope(name, t)
        assert (
            np.max(
                np.abs(activation(name).slope(t.numpy()) - expected)
                / np.maximum(1, np.abs(t.numpy()))
            )
            < 2e-6
        )


def test_tail_degree():
    """s(t) behaves as t**tail_degree for large t and vanishes for large -t."""
    for name in FUNCTIONS:
        t = torch.tensor([1e3, -1e3], dtype=torch.float64)
        at_plus, at_minus = ACT2FN[name](t).numpy()
        assert at_plus == pytest.approx(1e3 ** activation(name).tail_degree, rel=1e-12)
        assert at_minus == 0


def test_unknown_activation():
    with pytest.raises(NothingAnalysable, match="'snake' is not supported"):
        activation("snake")
