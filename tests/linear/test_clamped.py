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
    """Both moments as slopes of the unit's mean in the two constants, on a grid of both variables.

    The mean has no jumps and is smooth at the scale of the variables' spread, of which a step of
    the difference is 4 percent and a step of the grid 2.
    """
    t = torch.linspace(-8, 8, 801, dtype=torch.float64)
    density = torch.exp(-0.5 * t * t)
    density /= density.sum()

    def expected(gate_shift: float, up_shift: float) -> float:
        gate = sigma * t[:, None] + mean + gate_shift
        up = up_mean + up_shift + slope * sigma * t[:, None] + spread * t[None, :]
        return float(density @ clamped_unit(gate, up, c) @ density)

    steps = 0.04 * sigma, 0.04 * (spread**2 + (slope * sigma) ** 2) ** 0.5
    return (
        (expected(steps[0], 0) - expected(-steps[0], 0)) / (2 * steps[0]),
        (expected(0, steps[1]) - expected(0, -steps[1])) / (2 * steps[1]),
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    ("sigma", "slope", "spread"),
    [(1.0, 0.0, 1.0), (0.05, 0.8, 0.5), (5.0, -2.0, 3.0), (2.0, 0.5, 0.01), (30.0, 0.1, 20.0)],
)
@pytest.mark.parametrize(("mean", "up_mean"), [(-3.0, 0.5), (0.4, -1.0), (6.0, 8.0)])
def test_moments_equal_brute_force(
    sigma: float, slope: float, spread: float, mean: float, up_mean: float, limit: float
):
    each = (np.array([value]) for value in (sigma, mean, slope, spread, up_mean))
    found = clamped_moments(*each, limit)
    expected = brute_force(sigma, mean, slope, spread, up_mean, limit)
    np.testing.assert_allclose(np.ravel(found), expected, rtol=2e-3, atol=1e-3 * (1 + limit))


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
    for count in (4_000, 400_000):
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
    sampled = fit_ffn(ffn, Fit("sampled", samples=100_000), layer=1)
    # Sampling noise at this count, and far from what the unclamped unit would give.
    assert np.linalg.norm(sampled - closed) < 0.03 * np.linalg.norm(closed)
    unclamped = fit_ffn(replace(ffn, clamp=None), Fit("canonical"), layer=1)
    assert np.linalg.norm(unclamped - closed) > 0.5 * np.linalg.norm(closed)
