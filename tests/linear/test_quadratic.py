"""Means of functions of quadratic forms, against sums over a fine grid of Gaussian vectors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, gammaln

from ckptforensics.linear.quadratic import mean_norm_jacobian, sigmoid_moments


def gaussian_grid(step: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) and weights of the trapezoidal rule for a standard Gaussian."""
    x = np.arange(-9, 9 + step, step)
    weight = np.exp(-0.5 * x * x) * step / np.sqrt(2 * np.pi)
    points = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, np.outer(weight, weight).ravel()


@pytest.mark.parametrize("eps", [0.1, 2.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.7, -1.5)])
def test_norm_jacobian(eps: float, shift: tuple[float, float]) -> None:
    weight = np.array([[1.2, 0.3], [-0.4, 0.6]])
    points, mass = gaussian_grid()
    c = points @ weight.T + np.array(shift)
    normed = c / np.sqrt(np.mean(c * c, axis=1) + eps)[:, None]
    expected = (normed.T * mass) @ points
    found = mean_norm_jacobian(weight, np.array(shift), eps) @ weight
    assert np.abs(found - expected).max() < 1e-8


@pytest.mark.parametrize("rank", [1, 2, 30, 512])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_norm_jacobian_of_an_isotropic_vector(rank: int, size: float) -> None:
    """E|c| is known for c ~ N(0, I), and no eps is needed."""
    root = np.sqrt(2) * np.exp(gammaln((rank + 1) / 2) - gammaln(rank / 2))
    found = mean_norm_jacobian(size * np.eye(rank), np.zeros(rank), 0.0)
    expected = root / np.sqrt(rank) / size
    # 3e-9 is what the lower end of the integral over log s leaves out, at rank 1.
    assert np.abs(found - expected * np.eye(rank)).max() < 1e-8 * expected


def test_norm_jacobian_of_nothing() -> None:
    assert not mean_norm_jacobian(np.zeros((3, 5)), np.zeros(3), 0.0).any()


@pytest.mark.parametrize(
    ("curvature", "linear", "constant"),
    [
        ((0.0, 0.0), (0.0, 0.0), -0.7),
        ((0.0, 0.0), (0.5, -1.0), 0.3),
        ((0.4, -0.2), (0.5, -1.0), 0.3),
        ((3.0, -2.0), (1.0, 4.0), -6.0),
        ((8.0, 5.0), (0.0, 2.0), -30.0),
    ],
    ids=["constant", "linear", "small", "large", "one-sided"],
)
def test_sigmoid_moments(
    curvature: tuple[float, float], linear: tuple[float, float], constant: float
) -> None:
    points, mass = gaussian_grid()
    s = points**2 @ np.array(curvature) + points @ np.array(linear) + constant
    slope = expit(s) * expit(-s) * mass
    found = sigmoid_moments(np.array(curvature), np.array(linear), constant)
    assert found.value == pytest.approx(expit(s) @ mass, abs=1e-9)
    assert found.slope == pytest.approx(slope.sum(), abs=1e-9)
    assert np.abs(found.slope_x - slope @ points).max() < 1e-9
    assert np.abs(found.slope_xx - (points.T * slope) @ points).max() < 1e-9
