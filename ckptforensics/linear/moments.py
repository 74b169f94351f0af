"""One-dimensional Gaussian moments of an activation: all that the closed-form FFN fit needs.

For U ~ N(0, sigma^2) and a constant m, per hidden unit (docs/mathematics.md, equation 5):

    E[s(U + m)],   E[s'(U + m)],   E[U s'(U + m)]

Closed formulas serve where the activation has them. Otherwise quadrature in two regimes:

* sigma <= 4: the trapezoidal rule in U / sigma, which converges exponentially for analytic
  integrands; the step resolves the activation's nearest pole (sigmoid(1.702 t): 1.85 from the
  real axis) at this sigma.
* sigma > 4: s = relu + r (a sigmoid: step + r) with r negligible beyond |t| = 40. The relu part is
  closed; r is smooth on either side of 0 against a wide Gaussian, and Gauss-Legendre panels
  integrate it.

Both are exact to 1e-8 or better relative to the scale of the activation; tests compare them with
adaptive quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Array, Doubles
from ckptforensics.compute.threads import in_threads
from ckptforensics.forward import Activation, activation

_SPLIT_SIGMA = 4.0
_TRAPEZOID_REACH = 8.0  # Gaussian mass beyond 8 sigma: 1e-15
# Panels of Gauss-Legendre nodes on [0, 40], fine where the activations bend.
_PANELS = (0.0, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0, 40.0)
_NODES_A_PANEL = 10
# Their nodes stay in a core's cache.
_UNITS_AT_ONCE = 256
_NODES_AN_INTERVAL = 16


def gaussian_moments(name: str, sigma: Array, mean: Array) -> tuple[Doubles, Doubles, Doubles]:
    """E[s(U + m)], E[s'(U + m)] and E[U s'(U + m)] for U ~ N(0, sigma^2), unit by unit.

    Parameters
    ----------
    name : activation, as a configuration names it
    sigma : (units,), at least 0
    mean : (units,), the constants m

    Returns
    -------
    three (units,) float64 arrays

    Raises
    ------
    NothingAnalysable
        if the activation is unknown.
    """
    s = activation(name)
    sigma64, mean64 = np.asarray(sigma, np.float64), np.asarray(mean, np.float64)
    if s.closed_moments is not None:
        return s.closed_moments(sigma64, mean64)
    out = np.empty((3, sigma64.size))
    # Units of like sigma share a step, so they are integrated in groups sorted by it.
    order = np.argsort(sigma64, kind="stable")
    small = int(np.searchsorted(sigma64[order], _SPLIT_SIGMA, side="right"))
    groups = [
        (regime, part[begin : begin + _UNITS_AT_ONCE])
        for regime, part in ((_trapezoid, order[:small]), (_split, order[small:]))
        for begin in range(0, part.size, _UNITS_AT_ONCE)
    ]

    def integrate(group: tuple[Callable[..., Doubles], NDArray[np.intp]]) -> None:
        regime, units = group
        out[:, units] = regime(s, sigma64[units], mean64[units])

    in_threads(integrate, groups)
    return out[0], out[1], out[2]


def _trapezoid(s: Activation, sigma: Doubles, mean: Doubles) -> Doubles:
    step = min(0.5, 0.45 / max(float(sigma.max()), 1e-9))
    reach = np.ceil(_TRAPEZOID_REACH / step)
    z = np.arange(-reach, reach + 1) * step
    weight = np.exp(-0.5 * z * z) * (step / np.sqrt(2 * np.pi))
    u = sigma[:, None] * z
    t = u + mean[:, None]
    slope = s.slope(t)
    return np.stack([s.value(t) @ weight, slope @ weight, (slope * u) @ weight])


def _split(s: Activation, sigma: Doubles, mean: Doubles) -> Doubles:
    relu_moments = activation("relu").closed_moments
    assert relu_moments is not None
    relu, step, edge = relu_moments(sigma, mean)
    # The limit for large |t|: relu with slope 1 beyond 0, or a step with slope 0.
    zero = np.zeros_like(step)
    total = np.stack([relu, step, edge] if s.tail_degree == 1 else [step, zero, zero])
    t, weight, value, slope = _beyond_relu(s.name)
    u = t - mean[:, None]
    density = np.exp(-0.5 * (u / sigma[:, None]) ** 2) / (np.sqrt(2 * np.pi) * sigma[:, None])
    total[0] += density @ (value * weight)
    total[1] += density @ (slope * weight)
    total[2] += (density * u) @ (slope * weight)
    return total


@cache
def _beyond_relu(name: str) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Nodes and weights on [-40, 40], with s - relu and s' - relu' there."""
    s = activation(name)
    x, w = np.polynomial.legendre.leggauss(_NODES_A_PANEL)
    ends = np.array(_PANELS)
    half = np.diff(ends)[:, None] / 2
    positive = (ends[:-1, None] + half + half * x).ravel()
    weights = (half * w).ravel()
    t = np.concatenate([-positive[::-1], positive])
    weight = np.concatenate([weights[::-1], weights])
    if s.tail_degree == 1:
        return t, weight, s.value(t) - np.maximum(t, 0), s.slope(t) - (t > 0)
    return t, weight, s.value(t) - (t > 0), s.slope(t)


def clamped_moments(
    sigma: Array,
    mean: Array,
    slope: Array,
    spread: Array,
    up_mean: Array,
    clamp: float,
) -> tuple[Doubles, Doubles]:
    """Mean Jacobian coefficients of gpt-oss's clamped unit q(min(G, c)) (clip(V, -c, c) + 1).

    G = U + m with U ~ N(0, sigma^2), and given U the other factor's argument V is Gaussian with
    mean e + slope U and standard deviation `spread`; q is quick GELU.

    Returns
    -------
    E[q'(G) 1{G < c} (clip(V) + 1)] and E[q(min(G, c)) 1{|V| < c}], each (units,)
    """
    from scipy.special import ndtr

    q = activation("quick_gelu")
    x, w = np.polynomial.legendre.leggauss(_NODES_AN_INTERVAL)
    sigma, mean = np.maximum(np.asarray(sigma, np.float64), 1e-12), np.asarray(mean, np.float64)
    spread = np.maximum(np.asarray(spread, np.float64), 1e-12)
    ends = _clamped_intervals(sigma, mean, slope, spread, up_mean, clamp)
    gate_part = np.zeros(sigma.size)
    up_part = np.zeros(sigma.size)
    for low, high in pairwise(ends):
        half = (high - low)[:, None] / 2
        u = low[:, None] + half * (x + 1)
        density = np.exp(-0.5 * (u / sigma[:, None]) ** 2) * (half * w)
        density /= np.sqrt(2 * np.pi) * sigma[:, None]
        g = u + mean[:, None]
        centre = up_mean[:, None] + slope[:, None] * u
        a, b = ((bound - centre) / spread[:, None] for bound in (-clamp, clamp))
        inside = ndtr(b) - ndtr(a)
        normal = np.exp(-0.5 * a * a) - np.exp(-0.5 * b * b)
        clipped = (
            centre * inside
            + spread[:, None] * normal / np.sqrt(2 * np.pi)
            + clamp * (ndtr(-b) - ndtr(a))
        )
        below = g < clamp
        gate_part += np.sum(density * np.where(below, q.slope(g), 0) * (clipped + 1), axis=1)
        up_part += np.sum(density * q.value(np.minimum(g, clamp)) * inside, axis=1)
    return gate_part, up_part


def _clamped_intervals(
    sigma: Doubles,
    mean: Doubles,
    slope: Array,
    spread: Doubles,
    up_mean: Array,
    clamp: float,
) -> Doubles:
    """Ends of intervals of U between which the clamped unit is smooth, (ends, units).

    They part at the clamps of G, and of V as it follows U; and where q and the density bend.
    """
    reach = _TRAPEZOID_REACH * sigma
    ends = [f * sigma for f in (-_TRAPEZOID_REACH, -3.0, 0.0, 3.0, _TRAPEZOID_REACH)]
    ends += [g - mean for g in (-20.0, -8.0, -3.0, 0.0, 3.0, clamp)]
    with np.errstate(divide="ignore", invalid="ignore"):
        for bound in (-clamp, clamp):
            for beside in (-6.0, 0.0, 6.0):
                ends.append(np.nan_to_num((bound + beside * spread - up_mean) / slope))
    return np.sort(np.clip(np.stack(ends), -reach, reach), axis=0)
