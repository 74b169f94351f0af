"""Gaussian moments of activations against adaptive quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec

from ckptforensics.linear import gaussian_moments
from tests.forward.test_activations import FUNCTIONS, torch_value_and_slope

# Widths far below 1, around the change of method at 4, and far above; means in both tails.
SIGMAS = np.array([1e-6, 1e-3, 0.05, 0.5, 1, 2, 3.9, 4, 4.1, 6, 10, 40, 300, 1e4])
MEANS = np.array([0, 1e-3, -0.3, 1, -3, 7, -20, 45, 300, -300])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments(name: str):
    """E[s(U + m)], E[s'(U + m)], E[U s'(U + m)] by adaptive Gauss-Kronrod on torch's s and s'."""
    sigma, mean = (grid.ravel() for grid in np.meshgrid(SIGMAS, MEANS))
    # In units of what the moment can be at most, else the widest case hides the others.
    size = 1 + sigma + np.abs(mean)
    degree = 2 if name == "relu2" else 1
    scale = np.stack([size**degree, size ** (degree - 1), size**degree])

    def integrand(z: float) -> np.ndarray:
        value, slope = torch_value_and_slope(name, torch.tensor(sigma * z + mean))
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
    value, slope = torch_value_and_slope(name, mean)
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
