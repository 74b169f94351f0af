"""Compiled loops over matrices in BF16 (numba; imported only by `ckptforensics.bf16`).

A matrix is given as (rows, columns / 2) words of 32 bits, each two BF16 numbers that lie behind
each other, the first in the low half: shifted up or with the low half cleared they are float32
numbers, exactly. So vectors along the rows come in two, their even and their odd entries. Four rows
are read at a time, for one alone does not keep the memory busy. Sums may be reordered, as by a
BLAS; NaN and infinity keep their meaning. Compiled once and then kept beside this file, or where
NUMBA_CACHE_DIR says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])
_HALF = np.uint32(16)
_HIGH = np.uint32(0xFFFF0000)


def _compiled(function: _Function) -> _Function:
    reordered = {"reassoc", "contract", "nsz"}
    return njit(cache=True, nogil=True, fastmath=reordered)(function)


@njit(inline="always")  # type: ignore[misc]
def _even(word: Any) -> Any:
    return np.uint32(word << _HALF).view(np.float32)


@njit(inline="always")  # type: ignore[misc]
def _odd(word: Any) -> Any:
    return np.uint32(word & _HIGH).view(np.float32)


@_compiled
def multiply(w: Any, even: Any, odd: Any, y: Any, begin: int, end: int) -> None:
    """Rows `begin` to `end` of y = W x."""
    words = w.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        s = t = u = v = np.float32(0)
        for j in range(words):
            e, o = even[j], odd[j]
            s += _even(w[i, j]) * e + _odd(w[i, j]) * o
            t += _even(w[i + 1, j]) * e + _odd(w[i + 1, j]) * o
            u += _even(w[i + 2, j]) * e + _odd(w[i + 2, j]) * o
            v += _even(w[i + 3, j]) * e + _odd(w[i + 3, j]) * o
        y[i], y[i + 1], y[i + 2], y[i + 3] = s, t, u, v
    for i in range(fours, end):
        s = np.float32(0)
        for j in range(words):
            s += _even(w[i, j]) * even[j] + _odd(w[i, j]) * odd[j]
        y[i] = s


@_compiled
def multiply_adjoint(w: Any, y: Any, even: Any, odd: Any, begin: int, end: int) -> None:
    """Add what rows `begin` to `end` contribute to W'y."""
    words = w.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        s, t, u, v = y[i], y[i + 1], y[i + 2], y[i + 3]
        for j in range(words):
            a, b, c, d = w[i, j], w[i + 1, j], w[i + 2, j], w[i + 3, j]
            even[j] += _even(a) * s + _even(b) * t + _even(c) * u + _even(d) * v
            odd[j] += _odd(a) * s + _odd(b) * t + _odd(c) * u + _odd(d) * v
    for i in range(fours, end):
        s = y[i]
        for j in range(words):
            even[j] += _even(w[i, j]) * s
            odd[j] += _odd(w[i, j]) * s


@_compiled
def multiply_and_back(
    w: Any, even: Any, odd: Any, y: Any, back_even: Any, back_odd: Any, begin: int, end: int
) -> None:
    """Add W x to rows `begin` to `end` of y, and what they contribute to W'y to `back`."""
    words = w.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        s, t, u, v = y[i], y[i + 1], y[i + 2], y[i + 3]
        for j in range(words):
            e, o = even[j], odd[j]
            s += _even(w[i, j]) * e + _odd(w[i, j]) * o
            t += _even(w[i + 1, j]) * e + _odd(w[i + 1, j]) * o
            u += _even(w[i + 2, j]) * e + _odd(w[i + 2, j]) * o
            v += _even(w[i + 3, j]) * e + _odd(w[i + 3, j]) * o
        y[i], y[i + 1], y[i + 2], y[i + 3] = s, t, u, v
        for j in range(words):  # finds the rows in the cache
            a, b, c, d = w[i, j], w[i + 1, j], w[i + 2, j], w[i + 3, j]
            back_even[j] += _even(a) * s + _even(b) * t + _even(c) * u + _even(d) * v
            back_odd[j] += _odd(a) * s + _odd(b) * t + _odd(c) * u + _odd(d) * v
    for i in range(fours, end):
        s = y[i]
        for j in range(words):
            s += _even(w[i, j]) * even[j] + _odd(w[i, j]) * odd[j]
        y[i] = s
        for j in range(words):
            back_even[j] += _even(w[i, j]) * s
            back_odd[j] += _odd(w[i, j]) * s


@_compiled
def products(
    a: Any, b: Any, even: Any, odd: Any, aa: Any, ab: Any, bb: Any, begin: int, end: int
) -> None:
    """Sums of weight times entries: each row of A with itself, with B's, and B's with itself."""
    for i in range(begin, end):
        s = t = u = np.float32(0)
        for j in range(a.shape[1]):
            p, q, r = _even(a[i, j]), _even(b[i, j]), even[j]
            s += r * p * p
            t += r * p * q
            u += r * q * q
            p, q, r = _odd(a[i, j]), _odd(b[i, j]), odd[j]
            s += r * p * p
            t += r * p * q
            u += r * q * q
        aa[i], ab[i], bb[i] = s, t, u


@_compiled
def column_squares(w: Any, even: Any, odd: Any, begin: int, end: int) -> None:
    """Add the squares in rows `begin` to `end` to the columns' sums."""
    for i in range(begin, end):
        for j in range(w.shape[1]):
            p, q = _even(w[i, j]), _odd(w[i, j])
            even[j] += p * p
            odd[j] += q * q


@_compiled
def decode(w: Any, out: Any) -> None:
    """The numbers themselves, (rows, columns)."""
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            out[i, 2 * j] = _even(w[i, j])
            out[i, 2 * j + 1] = _odd(w[i, j])
