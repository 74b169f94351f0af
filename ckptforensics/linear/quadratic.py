"""Means over Gaussian vectors of functions of a quadratic form, by one-dimensional integrals.

A norm inside a branch and a learned sink depend on z through a quadratic form of it. Written as an
integral of exponentials of that form, each leaves a Gaussian mean that is known in closed form, so
that one well-behaved integral is left (docs/mathematics.md, section 3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ckptforensics.arrays import Array, Doubles

_LOG_REACH = 20.0
_LOG_STEP = 0.25
# The transform of the logistic density is 3e-15 there.
_FREQUENCIES = 12.0
# Standard deviations of a score beyond which it may wrap around: a mass below 1e-10.
_DEVIATIONS = 30.0
_LOGISTIC_TAIL = 40.0


def mean_norm_jacobian(weight: Array, shift: Array, eps: float) -> Doubles:
    """H such that H W z is the best linear map of c / sqrt(|c|^2 / r + eps), c = W z + shift.

    With 1 / sqrt(q) = 2 / sqrt(pi) times the integral of exp(-s^2 q) over s > 0, taken over log s
    by the trapezoidal rule, whose error is below 1e-8 here.

    Parameters
    ----------
    weight : W, (r, d)
    shift : (r,)
    eps : the norm's

    Returns
    -------
    (r, r), symmetric
    """
    rank = weight.shape[0]
    rows = weight.astype(np.float64)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values = np.maximum(values, 0)
    mean = vectors.T @ shift
    size = values.sum() + mean @ mean + rank * eps
    if size == 0:
        return np.zeros((rank, rank))
    log_s = np.arange(-_LOG_REACH, _LOG_REACH + _LOG_STEP, _LOG_STEP) - 0.5 * np.log(size)
    square = np.exp(2 * log_s)[:, None]
    # Weighed by exp(-s^2 |c|^2), component i has variance times `shrink`, and so has its mean.
    shrink = 1 / (1 + 2 * square * values)
    exponent = 0.5 * np.log(shrink) - square * shrink * mean**2
    mass = np.exp(log_s + exponent.sum(axis=1) - square[:, 0] * rank * eps)
    mass *= 2 * _LOG_STEP * np.sqrt(rank / np.pi)
    moved = shrink * mean
    inner = np.diag(mass @ shrink) - 2 * (moved.T * (mass * square[:, 0])) @ moved
    jacobian: Doubles = vectors @ inner @ vectors.T
    return jacobian


class SigmoidMoments(NamedTuple):
    """Means over x ~ N(0, I): `value` of sigmoid(s), `slope` of sigmoid'(s) times 1, x and xx'."""

    value: float
    slope: float
    slope_x: Doubles
    slope_xx: Doubles


def sigmoid_moments(curvature: Doubles, linear: Doubles, constant: float) -> SigmoidMoments:
    """Moments of the sigmoid of s = sum_i (curvature_i x_i^2 + linear_i x_i) + constant.

    sigmoid' is the logistic density, whose Fourier transform is pi t / sinh(pi t); the mean of
    exp(its) is closed. The trapezoidal rule in t wraps s around a period, chosen so long that
    next to nothing reaches its ends.
    """
    mean = constant + curvature.sum()
    spread = np.sqrt(2 * curvature @ curvature + linear @ linear)
    step = np.pi / (abs(mean) + _DEVIATIONS * spread + _LOGISTIC_TAIL)
    t = np.arange(0, _FREQUENCIES, step)
    # Weighed by exp(its), component i has the complex variance `shrink` and mean `moved`.
    shrink = 1 / (1 - 2j * t[:, None] * curvature)
    moved = 1j * t[:, None] * linear * shrink
    exponent = 0.5 * np.log(shrink) + 0.5j * t[:, None] * linear * moved
    transform = np.exp(exponent.sum(axis=1) + 1j * t * constant)
    transform[1:] *= np.pi * t[1:] / np.sinh(np.pi * t[1:])
    mass = transform * (step / np.pi)
    mass[0] /= 2
    # Gil-Pelaez: s exceeds an independent logistic variable; the integrand at 0 is the mean of s.
    value = 0.5 + step / np.pi * (mean / 2 + float(np.sum(transform.imag[1:] / t[1:])))
    pairs = np.diag((mass @ shrink).real) + ((moved.T * mass) @ moved).real
    return SigmoidMoments(value, float(mass.sum().real), (mass @ moved).real, pairs)
