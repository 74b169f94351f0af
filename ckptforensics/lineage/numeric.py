"""Small pieces of mathematics that several tests of lineage share."""

from __future__ import annotations

import math

import numpy as np

from ckptforensics.arrays import Array, Bools, Doubles, Floats, Ints
from ckptforensics.compute import buffers
from ckptforensics.compute.products import multiply
from ckptforensics.compute.threads import over_rows

_TINY = 1e-30
# Cosine of copies, and the mean one of vectors below which their signs are tosses of their own.
_COPIES, _SHARED_MEAN = 1 - 1e-5, 0.1


def unit_rows(rows: Floats) -> Floats:
    """Rows as unit vectors; zero rows stay 0."""
    units = buffers.empty(rows.shape)

    def some(part: slice) -> None:
        size = np.sqrt(np.einsum("ij,ij->i", rows[part], rows[part]))[:, None]
        np.divide(rows[part], np.where(size > 0, size, 1), out=units[part])

    over_rows(some, *rows.shape)
    return units


def relative_error(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected|, of matrices or vectors."""
    actual, expected = np.atleast_2d(actual), np.atleast_2d(expected)

    def squares(part: slice) -> tuple[float, float]:
        size = np.ascontiguousarray(expected[part]).reshape(-1)
        off = np.subtract(actual[part], expected[part], order="C").reshape(-1)
        return float(off @ off), float(size @ size)

    off, size = np.sum(over_rows(squares, *expected.shape), axis=0, initial=0.0)
    return float(np.sqrt(off) / max(np.sqrt(size), _TINY))


def ranks(values: Floats) -> Doubles:
    """Ranks from 1; equal values have the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Doubles = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return found


def assign(score: Floats, generator: np.random.Generator) -> Ints:
    """The row for each column, all different, with the largest sum of scores; -1 where none is.

    Solvers and argmax prefer low indices among equal scores, so the rows are shuffled before and
    the answer is put back: a tie is no evidence of an order that was kept.

    Parameters
    ----------
    score : (rows, columns)

    Returns
    -------
    (columns,)
    """
    shuffle = generator.permutation(score.shape[0])
    shuffled = score[shuffle]
    best = shuffled.argmax(axis=0)
    if np.unique(best).size == best.size:  # every column has a best row of its own
        return shuffle[best]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(shuffled, maximize=True)
    order = np.full(score.shape[1], -1, np.int64)
    order[columns] = shuffle[rows]
    return order


def told_apart(units: Floats) -> Bools:
    """Which units have any values and are, but for their size, no copy of one before: (units,)."""
    rows = unit_rows(units)
    cosines = np.abs(multiply(rows, np.ascontiguousarray(rows.T)))
    copies = np.triu(cosines >= _COPIES, 1).any(axis=0)
    return np.logical_and(rows.any(axis=1), ~copies)


def effective(vectors: Floats) -> float:
    """How many independent tosses the signs of vectors are, (vectors, features).

    Vectors that are one but for their size are one toss, and those that share a mean count as
    often as a mean of so many correlated values does (Kish's design effect).
    """
    rows = unit_rows(vectors[told_apart(vectors)])
    count = len(rows)
    if count < 2:
        return float(count)
    total = rows.sum(axis=0, dtype=np.float64)
    mean = (float(total @ total) - count) / (count * (count - 1))
    return float(count) if mean < _SHARED_MEAN else count / (1 + (count - 1) * mean)


def log10_fixed_points(count: int, expected: float = 1.0) -> float:
    """log10 of a bound on P(at least so many fixed points); 0 where it exceeds 1.

    `expected` is their number under the null: one for each independent assignment. The number of
    sets of j fixed points has a mean of at most expected^j / j!, and is C(count, j) at least where
    there are `count`; so P is at most expected^j / (j! C(count, j)) for every j. The bounds fall
    with j as long as j < count - expected, and the smallest is returned.
    """
    if count <= expected:
        return 0.0
    left = math.floor(expected)
    found = (count - left) * math.log(expected) + math.lgamma(left + 1) - math.lgamma(count + 1)
    return min(0.0, found / math.log(10))


def log10_binomial(positive: int, count: int, heads: float = 0.5) -> float:
    """log10 of P(at least so many heads in `count` tosses of a coin).

    `heads` is the probability of one. scipy's `binom.logsf` is -inf below the smallest float.
    """
    if heads >= 1:
        return 0.0
    yes, no = math.log(heads), math.log1p(-heads)
    terms = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * yes
        + (count - k) * no
        for k in range(positive, count + 1)
    ]
    largest = max(terms)
    total = largest + math.log(sum(math.exp(t - largest) for t in terms))
    return min(0.0, total / math.log(10))
