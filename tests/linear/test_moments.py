"""Activations against torch, their Gaussian moments against adaptive quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec
from transformers.activations import ACT2FN

from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward import activation
from ckptforensics.linear import gaussian_moments

# One name of every function, and the other names configurations use for them.
FUNCTIONS = ["silu", "gelu", "gelu_new", "quick_gelu", "relu", "relu2"]
ALIASES = [
    "swish",
    "gelu_python",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_accurate",
]

# Widths far below 1, around the change of method at 4, and far above; means in both tails.
SIGMAS = np.array([1e-6, 1e-3, 0.05, 0.5, 1, 2, 3.9, 4, 4.1, 6, 10, 40, 300, 1e4])
MEANS = np.array([0, 1e-3, -0.3, 1, -3, 7, -20, 45, 300, -300])


def _points() -> torch.Tensor:
    """Both tails, the bend and the neighbourhood of 0; not 0, where relu has no derivative."""
    t = np.concatenate([np.linspace(-60, 60, 2401), np.geomspace(1e-9, 1e4, 200)])
    t = np.unique(np.concatenate([t, -t]))
    return torch.tensor(t[t != 0])


def _torch_value_and_slope(name: str, t: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    t = t.clone().requires_grad_(True)
    value = ACT2FN[name](t)
    value.sum().backward()
    return value.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("name", FUNCTIONS + ALIASES)
def test_value_and_slope(name: str):
    t = _points()
    value, slope = _torch_value_and_slope(name, t)
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
        _, expected = _torch_value_and_slope(name, t)
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments(name: str):
    """E[s(U + m)], E[s'(U + m)], E[U s'(U + m)] by adaptive Gauss-Kronrod on torch's s and s'."""
    sigma, mean = (grid.ravel() for grid in np.meshgrid(SIGMAS, MEANS))
    # In units of what the moment can be at most, else the widest case hides the others.
    size = 1 + sigma + np.abs(mean)
    degree = 2 if name == "relu2" else 1
    scale = np.stack([size**degree, size ** (degree - 1), size**degree])

    def integrand(z: float) -> np.ndarray:
        value, slope = _torch_value_and_slope(name, torch.tensor(sigma * z + mean))
        moments = np.stack([value, slope, sigma * z * slope])
        return moments / scale * (np.exp(-z * z / 2) / np.sqrt(2 * np.pi))

    # The interval is divided where an activation bends; beyond 12 sigma lies 1e-33.
    bends = [(-mean + offset) / sigma for offset in (-20, -5, -1, 0, 1, 5, 20)]
    points = np.unique(np.clip(np.concatenate(bends), -12, 12))
    expected, error = quad_vec(
        integrand, -12, 12, points=points, epsabs=1e-11, epsrel=0, norm="max", limit=3000
    )
    assert error < 1e-10
    found = np.stack(gaussian_moments(name, sigma, mean)) / scale
    # 1e-10 is what the module promises; quick_gelu's nearest pole makes it the worst, at 1.3e-10.
    np.testing.assert_allclose(found, expected, atol=3e-10, rtol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_of_a_unit_without_weights(name: str):
    """sigma = 0: U is 0, so the moments are s(m), s'(m) and 0."""
    mean = torch.tensor([-3.0, -0.5, 0.25, 4.0], dtype=torch.float64)
    value, slope = _torch_value_and_slope(name, mean)
    found = gaussian_moments(name, np.zeros(4), mean.numpy())
    np.testing.assert_allclose(found[0], value, atol=1e-10)
    np.testing.assert_allclose(found[1], slope, atol=1e-10)
    np.testing.assert_array_equal(found[2], 0)


def test_moments_do_not_depend_on_the_company():
    """A unit's moments are its own, whatever other units are integrated with it."""
    generator = np.random.default_rng(5)
    sigma, mean = generator.gamma(1, 4, 3000), generator.normal(0, 3, 3000)
    for name in FUNCTIONS:
        together = np.stack(gaussian_moments(name, sigma, mean))
        for i in (0, 1, 1500, 2999):
            alone = np.stack(gaussian_moments(name, sigma[i : i + 1], mean[i : i + 1]))[:, 0]
            np.testing.assert_allclose(
                together[:, i], alone, rtol=0, atol=1e-9 * (1 + sigma[i]) ** 2
            )


def test_unknown_activation():
    with pytest.raises(NothingAnalysable, match="'snake' is not supported"):
        activation("snake")
