"""Compiled loops over large matrices (numba; loaded by `parallel.compiled_loops`).

A matrix times three vectors, which takes as long as reading the matrix: four rows are read at a
time, for one alone does not keep the memory busy. Sums may be reordered, as by a BLAS; NaN and
infinity keep their meaning.

A matrix in BF16 is given as (rows, columns / 2) words of 32 bits, each two numbers that lie behind
each other, the first in the low half: shifted up or with the low half cleared they are float32
numbers, exactly. So what lies along the rows comes in two, its even and its odd entries.

Compiled once and then kept beside this file, or where NUMBA_CACHE_DIR says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numba import njit

_HALF = np.uint32(16)
_HIGH = np.uint32(0xFFFF0000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


_OPTIONS: Any = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}


def _part_of_a_loop(function: Callable[..., None]) -> Callable[..., None]:
    part: Callable[..., None] = njit(**_OPTIONS)(function)
    return part


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The loop, compiled once and kept; what cannot be kept or read again is compiled anew."""
    compiled = [njit(**_OPTIONS)(function)]
    with suppress(RuntimeError):  # no folder to keep it in
        compiled.append(njit(cache=True, **_OPTIONS)(function))

    def loop(*arguments: Any) -> None:
        used = compiled[-1]
        try:
            used(*arguments)
        except Exception:
            # Before the loop began, for no loop raises: what is kept is damaged, or the disk full.
            if used is compiled[0]:
                raise
            del compiled[1:]
            compiled[0](*arguments)

    return loop


@njit(inline="always")
def _even(word: Any) -> Any:
    return np.uint32(word << _HALF).view(np.float32)


@njit(inline="always")
def _odd(word: Any) -> Any:
    return np.uint32(word & _HIGH).view(np.float32)


@_compiled
def multiply(m: Any, x: Any, y: Any, begin: int, end: int) -> None:
    """Rows `begin` to `end` of y = M x, for three vectors: x is (3, columns), y (3, rows)."""
    columns = m.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        p0 = p1 = p2 = q0 = q1 = q2 = r0 = r1 = r2 = s0 = s1 = s2 = np.float32(0)
        for j in range(columns):
            x0, x1, x2 = x[0, j], x[1, j], x[2, j]
            a, b, c, d = m[i, j], m[i + 1, j], m[i + 2, j], m[i + 3, j]
            p0, p1, p2 = p0 + a * x0, p1 + a * x1, p2 + a * x2
            q0, q1, q2 = q0 + b * x0, q1 + b * x1, q2 + b * x2
            r0, r1, r2 = r0 + c * x0, r1 + c * x1, r2 + c * x2
            s0, s1, s2 = s0 + d * x0, s1 + d * x1, s2 + d * x2
        y[0, i], y[1, i], y[2, i] = p0, p1, p2
        y[0, i + 1], y[1, i + 1], y[2, i + 1] = q0, q1, q2
        y[0, i + 2], y[1, i + 2], y[2, i + 2] = r0, r1, r2
        y[0, i + 3], y[1, i + 3], y[2, i + 3] = s0, s1, s2
    for i in range(fours, end):
        p0 = p1 = p2 = np.float32(0)
        for j in range(columns):
            a = m[i, j]
            p0, p1, p2 = p0 + a * x[0, j], p1 + a * x[1, j], p2 + a * x[2, j]
        y[0, i], y[1, i], y[2, i] = p0, p1, p2


@_compiled
def multiply_adjoint(m: Any, y: Any, x: Any, begin: int, end: int) -> None:
    """Add what rows `begin` to `end` contribute to x = M'y, for three vectors as in `multiply`."""
    columns = m.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        p0, p1, p2 = y[0, i], y[1, i], y[2, i]
        q0, q1, q2 = y[0, i + 1], y[1, i + 1], y[2, i + 1]
        r0, r1, r2 = y[0, i + 2], y[1, i + 2], y[2, i + 2]
        s0, s1, s2 = y[0, i + 3], y[1, i + 3], y[2, i + 3]
        for j in range(columns):
            a, b, c, d = m[i, j], m[i + 1, j], m[i + 2, j], m[i + 3, j]
            x[0, j] += a * p0 + b * q0 + c * r0 + d * s0
            x[1, j] += a * p1 + b * q1 + c * r1 + d * s1
            x[2, j] += a * p2 + b * q2 + c * r2 + d * s2
    for i in range(fours, end):
        p0, p1, p2 = y[0, i], y[1, i], y[2, i]
        for j in range(columns):
            a = m[i, j]
            x[0, j] += a * p0
            x[1, j] += a * p1
            x[2, j] += a * p2


@_part_of_a_loop
def _add_four(w: Any, x: Any, y: Any, i: int) -> None:
    """Add rows `i` to `i + 3` of W x to y, for three vectors: x is (6, words), y (3, rows)."""
    p0, p1, p2 = y[0, i], y[1, i], y[2, i]
    q0, q1, q2 = y[0, i + 1], y[1, i + 1], y[2, i + 1]
    r0, r1, r2 = y[0, i + 2], y[1, i + 2], y[2, i + 2]
    s0, s1, s2 = y[0, i + 3], y[1, i + 3], y[2, i + 3]
    for j in range(w.shape[1]):
        e0, o0, e1, o1, e2, o2 = x[0, j], x[1, j], x[2, j], x[3, j], x[4, j], x[5, j]
        a, b = _even(w[i, j]), _odd(w[i, j])
        p0, p1, p2 = p0 + (a * e0 + b * o0), p1 + (a * e1 + b * o1), p2 + (a * e2 + b * o2)
        a, b = _even(w[i + 1, j]), _odd(w[i + 1, j])
        q0, q1, q2 = q0 + (a * e0 + b * o0), q1 + (a * e1 + b * o1), q2 + (a * e2 + b * o2)
        a, b = _even(w[i + 2, j]), _odd(w[i + 2, j])
        r0, r1, r2 = r0 + (a * e0 + b * o0), r1 + (a * e1 + b * o1), r2 + (a * e2 + b * o2)
        a, b = _even(w[i + 3, j]), _odd(w[i + 3, j])
        s0, s1, s2 = s0 + (a * e0 + b * o0), s1 + (a * e1 + b * o1), s2 + (a * e2 + b * o2)
    y[0, i], y[1, i], y[2, i] = p0, p1, p2
    y[0, i + 1], y[1, i + 1], y[2, i + 1] = q0, q1, q2
    y[0, i + 2], y[1, i + 2], y[2, i + 2] = r0, r1, r2
    y[0, i + 3], y[1, i + 3], y[2, i + 3] = s0, s1, s2


@_part_of_a_loop
def _add_one(w: Any, x: Any, y: Any, i: int) -> None:
    """Add row `i` of W x to y."""
    p0, p1, p2 = y[0, i], y[1, i], y[2, i]
    for j in range(w.shape[1]):
        a, b = _even(w[i, j]), _odd(w[i, j])
        p0, p1 = p0 + (a * x[0, j] + b * x[1, j]), p1 + (a * x[2, j] + b * x[3, j])
        p2 = p2 + (a * x[4, j] + b * x[5, j])
    y[0, i], y[1, i], y[2, i] = p0, p1, p2


@_part_of_a_loop
def _back_four(w: Any, y: Any, x: Any, i: int) -> None:
    """Add what rows `i` to `i + 3` contribute to x = W'y."""
    p0, p1, p2 = y[0, i], y[1, i], y[2, i]
    q0, q1, q2 = y[0, i + 1], y[1, i + 1], y[2, i + 1]
    r0, r1, r2 = y[0, i + 2], y[1, i + 2], y[2, i + 2]
    s0, s1, s2 = y[0, i + 3], y[1, i + 3], y[2, i + 3]
    for j in range(w.shape[1]):
        k, m, n, o = w[i, j], w[i + 1, j], w[i + 2, j], w[i + 3, j]
        a, b, c, d = _even(k), _even(m), _even(n), _even(o)
        x[0, j] += a * p0 + b * q0 + c * r0 + d * s0
        x[2, j] += a * p1 + b * q1 + c * r1 + d * s1
        x[4, j] += a * p2 + b * q2 + c * r2 + d * s2
        a, b, c, d = _odd(k), _odd(m), _odd(n), _odd(o)
        x[1, j] += a * p0 + b * q0 + c * r0 + d * s0
        x[3, j] += a * p1 + b * q1 + c * r1 + d * s1
        x[5, j] += a * p2 + b * q2 + c * r2 + d * s2


@_part_of_a_loop
def _back_one(w: Any, y: Any, x: Any, i: int) -> None:
    """Add what row `i` contributes to x = W'y."""
    p0, p1, p2 = y[0, i], y[1, i], y[2, i]
    for j in range(w.shape[1]):
        a, b = _even(w[i, j]), _odd(w[i, j])
        x[0, j] += a * p0
        x[2, j] += a * p1
        x[4, j] += a * p2
        x[1, j] += b * p0
        x[3, j] += b * p1
        x[5, j] += b * p2


@_compiled
def multiply_bf16(w: Any, x: Any, y: Any, begin: int, end: int) -> None:
    """Rows `begin` to `end` of y = W x, for three vectors: x is (6, words), y (3, rows)."""
    y[:, begin:end] = 0
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        _add_four(w, x, y, i)
    for i in range(fours, end):
        _add_one(w, x, y, i)


@_compiled
def multiply_adjoint_bf16(w: Any, y: Any, x: Any, begin: int, end: int) -> None:
    """Add what rows `begin` to `end` contribute to x = W'y, for vectors as `multiply_bf16`."""
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        _back_four(w, y, x, i)
    for i in range(fours, end):
        _back_one(w, y, x, i)


@_compiled
def multiply_and_back_bf16(w: Any, x: Any, y: Any, back: Any, begin: int, end: int) -> None:
    """Add W x to rows `begin` to `end` of y, and what these contribute to W'y to `back`.

    Vectors as in `multiply_bf16`. The second product finds each row in the cache.
    """
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        _add_four(w, x, y, i)
        _back_four(w, y, back, i)
    for i in range(fours, end):
        _add_one(w, x, y, i)
        _back_one(w, y, back, i)


@_compiled
def row_products(a: Any, b: Any, weight: Any, out: Any, begin: int, end: int) -> None:
    """Sums of weight times entries: each row of A with itself, with B's, and B's with itself."""
    for i in range(begin, end):
        s = t = u = np.float32(0)
        for j in range(a.shape[1]):
            p, q, r = _even(a[i, j]), _even(b[i, j]), weight[0, j]
            s += r * p * p
            t += r * p * q
            u += r * q * q
            p, q, r = _odd(a[i, j]), _odd(b[i, j]), weight[1, j]
            s += r * p * p
            t += r * p * q
            u += r * q * q
        out[0, i], out[1, i], out[2, i] = s, t, u


@_compiled
def column_squares(w: Any, sums: Any, begin: int, end: int) -> None:
    """Add the squares in rows `begin` to `end` to the columns' sums, (2, words)."""
    words = w.shape[1]
    fours = begin + (end - begin) // 4 * 4
    for i in range(begin, fours, 4):
        for j in range(words):
            k, m, n, o = w[i, j], w[i + 1, j], w[i + 2, j], w[i + 3, j]
            a, b, c, d = _even(k), _even(m), _even(n), _even(o)
            sums[0, j] += a * a + b * b + c * c + d * d
            a, b, c, d = _odd(k), _odd(m), _odd(n), _odd(o)
            sums[1, j] += a * a + b * b + c * c + d * d
    for i in range(fours, end):
        for j in range(words):
            a, b = _even(w[i, j]), _odd(w[i, j])
            sums[0, j] += a * a
            sums[1, j] += b * b


@_compiled
def row_peaks(w: Any, size: Any, peaks: Any, begin: int, end: int) -> None:
    """Largest |weight| times the column's size in each of the rows `begin` to `end`.

    Sizes, (2, words), are at least 0. Numbers of one sign are ordered as their bits are.
    """
    for i in range(begin, end):
        peak = np.uint32(0)
        for j in range(w.shape[1]):
            a = np.float32(_even(w[i, j]) * size[0, j]).view(np.uint32) & _MAGNITUDE
            b = np.float32(_odd(w[i, j]) * size[1, j]).view(np.uint32) & _MAGNITUDE
            peak = max(peak, np.uint32(a), np.uint32(b))
        peaks[i] = peak


@_compiled
def decode_bf16(w: Any, out: Any) -> None:
    """The numbers themselves, (rows, columns)."""
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            out[i, 2 * j] = _even(w[i, j])
            out[i, 2 * j + 1] = _odd(w[i, j])
