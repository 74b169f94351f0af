"""Activation functions by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ckptforensics.arrays import Array
from ckptforensics.errors import NothingAnalysable


@dataclass(frozen=True)
class Activation:
    """An activation s with s' and, where one is known, closed Gaussian moments.

    Attributes
    ----------
    name : canonical name
    value : s, elementwise, in the precision of its argument
    slope : s'
    tail_degree : s(t) behaves as t**tail_degree for t to +infinity, and as 0 for t to -infinity
    closed_moments : (sigma, mean) to E[s], E[s'], E[U s'] of `moments`, None for quadrature
    """

    name: str
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    tail_degree: int = 1
    closed_moments: Callable[[Array, Array], tuple[Array, Array, Array]] | None = None


def activation(name: str) -> Activation:
    """The activation a configuration calls `name`.

    Raises
    ------
    NothingAnalysable
        if no activation of this name is implemented.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(sorted(_BY_NAME))
        raise NothingAnalysable(
            f"the activation {name!r} is not supported", hint=f"supported are {known}"
        ) from None


def sigmoid(t: Array) -> Array:
    """1 / (1 + exp(-t)) without overflow."""
    # exp of a negative number only, so nothing overflows; twice takes less time than a choice.
    return np.exp(np.minimum(t, 0)) / (1 + np.exp(-np.abs(t)))


def _swish(beta: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """t sigmoid(beta t) and its derivative."""

    def value(t: Array) -> Array:
        return t * sigmoid(beta * t)

    def slope(t: Array) -> Array:
        p = sigmoid(beta * t)
        return p + beta * t * p * (1 - p)

    return value, slope


def _gelu_tanh_argument(t: Array) -> Array:
    return np.sqrt(2 / np.pi).astype(t.dtype) * (t + 0.044715 * t * t * t)


def _gelu_tanh(t: Array) -> Array:
    return 0.5 * t * (1 + np.tanh(_gelu_tanh_argument(t)))


def _gelu_tanh_slope(t: Array) -> Array:
    w = np.tanh(_gelu_tanh_argument(t))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * t * t)
    return 0.5 * (1 + w) + 0.5 * t * (1 - w * w) * inner


def _normal_cdf(t: Array) -> Array:
    from scipy.special import ndtr

    result: Array = ndtr(t)
    return result


def _normal_density(t: Array) -> Array:
    density: Array = np.exp(-0.5 * t * t) / np.sqrt(2 * np.pi)
    return density


def _gelu(t: Array) -> Array:
    return t * _normal_cdf(t)


def _gelu_slope(t: Array) -> Array:
    return _normal_cdf(t) + t * _normal_density(t)


def _gelu_moments(sigma: Array, mean: Array) -> tuple[Array, Array, Array]:
    # E[Phi(U + m)] = Phi(m / r), E[phi(U + m)] = phi(m / r) / r with r^2 = 1 + sigma^2; the rest
    # by Stein's lemma E[U f(U)] = sigma^2 E[f'(U)], with s'' = (2 - t^2) phi(t).
    r2 = 1 + sigma**2
    r = np.sqrt(r2)
    cdf, density = _normal_cdf(mean / r), _normal_density(mean / r) / r
    value = mean * cdf + sigma**2 * density
    # Under the density phi(t) N(t - m) the variable t has mean m / r2 and variance sigma^2 / r2.
    slope = cdf + density * mean / r2
    curvature = density * (2 - sigma**2 / r2 - (mean / r2) ** 2)
    return value, slope, sigma**2 * curvature


def _relu_moments(sigma: Array, mean: Array) -> tuple[Array, Array, Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(sigma > 0, mean / sigma, np.where(mean > 0, np.inf, -np.inf))
    cdf, density = _normal_cdf(a), _normal_density(a)
    return mean * cdf + sigma * density, cdf, sigma * density


def _relu2_moments(sigma: Array, mean: Array) -> tuple[Array, Array, Array]:
    relu, cdf, edge = _relu_moments(sigma, mean)
    # s = relu^2, s' = 2 relu: E[U relu(U + m)] = sigma^2 E[relu'].
    value = (mean**2 + sigma**2) * cdf + mean * edge
    return value, 2 * relu, 2 * sigma**2 * cdf


_SILU = Activation("silu", *_swish(1.0))
_QUICK_GELU = Activation("quick_gelu", *_swish(1.702))
_GELU = Activation("gelu", _gelu, _gelu_slope, closed_moments=_gelu_moments)
_GELU_TANH = Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_slope)
_SIGMOID = Activation("sigmoid", sigmoid, lambda t: sigmoid(t) * (1 - sigmoid(t)), tail_degree=0)
_RELU = Activation(
    "relu",
    lambda t: np.maximum(t, 0),
    lambda t: (t > 0).astype(t.dtype),
    closed_moments=_relu_moments,
)
_RELU2 = Activation(
    "relu2",
    lambda t: np.square(np.maximum(t, 0)),
    lambda t: 2 * np.maximum(t, 0),
    tail_degree=2,
    closed_moments=_relu2_moments,
)

_BY_NAME = MappingProxyType(
    {
        "silu": _SILU,
        "swish": _SILU,
        "gelu": _GELU,
        "gelu_python": _GELU,
        "gelu_new": _GELU_TANH,
        "gelu_fast": _GELU_TANH,
        "gelu_tanh": _GELU_TANH,
        "gelu_pytorch_tanh": _GELU_TANH,
        "gelu_accurate": _GELU_TANH,
        "quick_gelu": _QUICK_GELU,
        "relu": _RELU,
        "sigmoid": _SIGMOID,
        "relu2": _RELU2,
    }
)
