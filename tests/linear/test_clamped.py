"""The fit of gpt-oss's clamped unit, against brute-force integration and least squares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptforensics.layers import Ffn, Linear, Norm
from ckptforensics.linear import Fit, fit_ffn
from ckptforensics.linear.moments import clamped_moments

HIDDEN, WIDTH = 12, 20
LIMITS = [7.0, 0.7]


def clamped_unit(gate: torch.Tensor, up: torch.Tensor, limit: float) -> torch.Tensor:
    """The published formula."""
    gate = gate.clamp(max=limit)
    up = up.clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def brute_force(sigma: float, mean: float, slope: float, spread: float, up_mean: float, c: float):
    """Both moments, by the derivatives of the unit summed over a fine grid of the two variables."""
    t = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    density = torch.exp(-0.5 * t * t)
    density /= density.sum()
    gate = (sigma * t + mean)[:, None].requires_grad_()
    up = (up_mean + slope * sigma * t[:, None] + spread * t[None, :]).requires_grad_()
    value = clamped_unit(gate.expand(-1, len(t)), up, c) * density[:, None] * density[None, :]
    gate_part, up_part = torch.autograd.grad(value.sum(), (gate, up))
    return float(gate_part.sum()), float(up_part.sum())


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 5.0, 40.0])
@pytest.mark.parametrize(
    ("slope", "spread"), [(0.0, 1.0), (0.8, 0.5), (-2.0, 3.0), (0.5, 0.01), (0.0, 30.0)]
)
def test_moments_equal_brute_force(sigma: float, slope: float, spread: float, limit: float):
    means = np.array([-3.0, 0.0, 0.4, 6.0])
    up_means = np.array([0.5, -1.0, 0.0, 8.0])
    ones = np.ones(4)
    found = clamped_moments(sigma * ones, means, slope * ones, spread * ones, up_means, limit)
    for i in range(4):
        expected = brute_force(sigma, means[i], slope, spread, up_means[i], limit)
        # The grid's own error: the derivatives jump, so that a step of it may be misjudged.
        jump = 0.5 * (1 + limit) * 16 / 3200
        for ours, theirs in zip((found[0][i], found[1][i]), expected, strict=True):
            assert ours == pytest.approx(theirs, abs=jump)


def make_unit(limit: float, biased: bool) -> Ffn:
    """Rows from nearly linear to always clamped."""
    random = np.random.default_rng(4)

    def matrix(rows: int, columns: int, largest: float) -> Linear:
        size = np.geomspace(0.3, largest, rows)[:, None] * columns**-0.5
        weight = (size * random.standard_normal((rows, columns))).astype(np.float32)
        bias = random.standard_normal(rows).astype(np.float32)
        return Linear(weight, 0.5 * bias if biased else None)

    gain = (1 + 0.4 * random.standard_normal(HIDDEN)).astype(np.float32)
    return Ffn(
        norm=Norm("rms", gain, None, 1e-5),
        gate=matrix(WIDTH, HIDDEN, 6),
        up=matrix(WIDTH, HIDDEN, 6),
        down=matrix(HIDDEN, WIDTH, 1),
        activation="silu",  # what the configuration says and the model does not do
        down_name="down",
        clamp=limit,
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("biased", [False, True], ids=["no biases", "biases"])
def test_closed_form_is_the_limit_of_least_squares(limit: float, biased: bool):
    ffn = make_unit(limit, biased)
    closed = fit_ffn(ffn, Fit("canonical"), layer=1)
    errors = []
    for count in (10_000, 1_000_000):
        z = torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))
        n = z * torch.tensor(ffn.norm.gain)
        gate, up = (
            n @ torch.tensor(m.weight).T + (torch.tensor(m.bias) if m.bias is not None else 0)
            for m in (ffn.gate, ffn.up)
        )
        y = clamped_unit(gate, up, limit).double()
        design = torch.cat([torch.ones(count, 1), z], dim=1).double()
        gram = torch.linalg.inv(design.T @ design)
        coefficients = gram @ (design.T @ y)
        residual = y - design @ coefficients
        # The usual error of least squares whose noise depends on the input.
        expected = float((residual.square().sum(1) @ z.double().square().sum(1)).sqrt()) / count
        errors.append(float(np.linalg.norm(closed - coefficients[1:].T.numpy())))
        assert errors[-1] / expected == pytest.approx(1, abs=0.5)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.5)
    assert errors[1] < 0.02 * np.linalg.norm(closed)


def test_paper_convention_has_the_gain_behind_the_fit():
    ffn = make_unit(7.0, biased=True)
    plain = replace(ffn, norm=replace(ffn.norm, gain=np.ones(HIDDEN, np.float32)))
    paper = fit_ffn(ffn, Fit("paper"), layer=1)
    np.testing.assert_allclose(
        paper, fit_ffn(plain, Fit("canonical"), layer=1) * ffn.norm.gain, rtol=1e-5, atol=1e-6
    )


def test_sampled_uses_the_clamped_unit():
    ffn = make_unit(0.7, biased=True)
    closed = fit_ffn(ffn, Fit("canonical"), layer=1)
    sampled = fit_ffn(ffn, Fit("sampled", samples=200_000), layer=1)
    # Sampling noise at this count, and far from what the unclamped unit would give.
    assert np.linalg.norm(sampled - closed) < 0.03 * np.linalg.norm(closed)
    unclamped = fit_ffn(replace(ffn, clamp=None), Fit("canonical"), layer=1)
    assert np.linalg.norm(unclamped - closed) > 0.5 * np.linalg.norm(closed)
