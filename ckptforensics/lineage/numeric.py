"""Small pieces of mathematics that several tests of lineage share."""

from __future__ import annotations

import math

import numpy as np

from ckptforensics.arrays import Array, Floats, Ints

_TINY = 1e-30


def unit_rows(rows: Floats) -> Floats:
    """Rows as unit vectors; zero rows stay 0."""
    size = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.divide(rows, size, out=np.zeros_like(rows), where=size > 0)


def relative_error(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected|."""
    size = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / max(size, _TINY)


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


def log10_fixed_points(count: int, expected: float = 1.0) -> float:
    """log10 of expected^count / count!, a bound on P(at least so many fixed points).

    `expected` is their number under the null: one for each independent assignment. 0 where the
    bound exceeds 1.
    """
    if count <= expected:
        return 0.0
    return min(0.0, (count * math.log(expected) - math.lgamma(count + 1)) / math.log(10))


def log10_binomial(positive: int, count: int) -> float:
    """log10 of P(at least so many heads in `count` tosses of a fair coin).

    scipy's `binom.logsf` is -inf below the smallest float.
    """
    heads = range(positive, count + 1)
    terms = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in heads
    ]
    largest = max(terms)
    total = largest + math.log(sum(math.exp(t - largest) for t in terms)) - count * math.log(2)
    return min(0.0, total / math.log(10))
