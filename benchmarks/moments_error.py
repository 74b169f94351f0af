"""Largest error of the Gaussian moments, by activation and width of the Gaussian.

    python -m benchmarks.moments_error

Compares `gaussian_moments` with adaptive quadrature (scipy.integrate.quad, split at the kink and
at the Gaussian's own scale) over a grid of means, and prints the largest error of E[s], E[s'] and
E[U s'] as a share of the scale of each: sqrt(sigma^2 + m^2 + 1), 1 and max(sigma, sigma^2) (times
2 sqrt(sigma^2 + m^2 + 1) for squared ReLU, whose slope grows). The last row is the two moments of
gpt-oss's clamped unit on the scale of its clamp, with as wide a Gaussian on the other factor.
Prints a markdown table and asserts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import click
import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr

from ckptforensics.forward import activation
from ckptforensics.linear import gaussian_moments
from ckptforensics.linear.moments import clamped_moments

ACTIVATIONS = ("silu", "gelu_new", "quick_gelu", "sigmoid", "gelu", "relu", "relu2")
BANDS = (
    ("0.01 to 1", (0.01, 0.1, 0.5, 1.0)),
    ("1 to 4", (1.5, 2.5, 3.5, 4.0)),
    ("4 to 10", (4.001, 5.0, 7.0, 10.0)),
    ("10 to 300", (12.0, 30.0, 100.0, 300.0)),
)
MEANS = (-6.0, -2.0, -0.3, 0.0, 0.7, 3.0, 8.0)


def reference(name: str, sigma: float, mean: float) -> np.ndarray:
    """E[s], E[s'], E[U s'] by adaptive quadrature over the activation's argument t = U + m."""
    s = activation(name)
    low, high = mean - 12 * sigma, mean + 12 * sigma
    marks = [
        -40,
        -10,
        -4,
        -2,
        -1,
        0,
        1,
        2,
        4,
        10,
        40,
        *(mean + sigma * k for k in (-6, -2, 0, 2, 6)),
    ]
    ends = sorted({low, high, *(p for p in marks if low < p < high)})

    def density(t: float) -> float:
        return float(np.exp(-0.5 * ((t - mean) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma))

    def value(t: float) -> float:
        return float(s.value(np.array([t]))[0]) * density(t)

    def slope(t: float) -> float:
        return float(s.slope(np.array([t]))[0]) * density(t)

    def moment(t: float) -> float:
        return (t - mean) * slope(t)

    return np.array([integral(f, ends) for f in (value, slope, moment)])


def integral(function: Callable[[float], float], ends: list[float]) -> float:
    return sum(quad(function, a, b, epsabs=1e-15, epsrel=1e-13)[0] for a, b in pairwise(ends))


def scale(name: str, sigma: float, mean: float) -> np.ndarray:
    size = float(np.sqrt(sigma**2 + mean**2 + 1))
    scales = np.array([size, 1.0, max(sigma, sigma**2)])
    return scales * 2 * size if name == "relu2" else scales


def largest_error(name: str, sigmas: tuple[float, ...]) -> float:
    worst = 0.0
    for sigma in sigmas:
        for mean in MEANS:
            ours = np.array(gaussian_moments(name, np.array([sigma]), np.array([mean])))[:, 0]
            error = np.abs(ours - reference(name, sigma, mean)) / scale(name, sigma, mean)
            worst = max(worst, float(error.max()))
    return worst


def clamped_error(sigmas: tuple[float, ...], clamp: float = 7.0) -> float:
    """Largest error of the clamped unit's moments; correlation and constants are arbitrary."""
    q, up_mean, share = activation("quick_gelu"), 0.1, 0.2
    worst = 0.0
    for sigma in sigmas:
        for mean in MEANS:

            def density(g: float, sigma: float = sigma, mean: float = mean) -> float:
                u = (g - mean) / sigma
                return float(np.exp(-0.5 * u * u) / (np.sqrt(2 * np.pi) * sigma))

            def inside(g: float, sigma: float = sigma, mean: float = mean) -> tuple[float, float]:
                centre = up_mean + share * (g - mean)
                a, b = (-clamp - centre) / sigma, (clamp - centre) / sigma
                within = float(ndtr(b) - ndtr(a))
                peak = (np.exp(-0.5 * a * a) - np.exp(-0.5 * b * b)) / np.sqrt(2 * np.pi)
                clipped = centre * within + sigma * peak + clamp * (ndtr(-b) - ndtr(a))
                return within, float(clipped)

            def on_gate(g: float) -> float:
                if g >= clamp:
                    return 0.0
                return density(g) * float(q.slope(np.array([g]))[0]) * (inside(g)[1] + 1)

            def on_up(g: float) -> float:
                return density(g) * float(q.value(np.array([min(g, clamp)]))[0]) * inside(g)[0]

            low, high = mean - 12 * sigma, mean + 12 * sigma
            marks = [-20, -8, -4, -2, -1, 0, 1, 2, 4, clamp, 20]
            marks += [mean + sigma * k for k in (-6, -2, 0, 2, 6)]
            ends = sorted({low, high, *(p for p in marks if low < p < high)})
            columns = (np.array([v]) for v in (sigma, mean, share, sigma, up_mean))
            ours = np.array(clamped_moments(*columns, clamp))[:, 0]
            expected = np.array([integral(f, ends) for f in (on_gate, on_up)])
            worst = max(worst, float(np.abs(ours - expected).max()) / clamp)
    return worst


def main() -> None:
    heads = [f"sigma {name}" for name, _ in BANDS]
    click.echo(f"| activation | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in ACTIVATIONS:
        errors = [largest_error(name, sigmas) for _, sigmas in BANDS]
        click.echo(f"| {name} | {' | '.join(f'{e:.0e}' for e in errors)} |")
    errors = [clamped_error(sigmas) for _, sigmas in BANDS]
    click.echo(f"| clamped unit | {' | '.join(f'{e:.0e}' for e in errors)} |")


if __name__ == "__main__":
    main()
