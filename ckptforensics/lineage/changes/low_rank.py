"""Whether a difference of two matrices has low rank, and which of the two was rounded after it.

B - A has low rank exactly when A - B has, so the rank says nothing of who came first. Rounding
does: where B = round(A + D), the error B - A - D is at most half a unit in the last place of B, and
not of A. The two differ wherever the sum passed a power of two, or where the stored types differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.lineage.changes.lattices import grid, spacing
from ckptforensics.lineage.changes.tensor_pairs import TensorPair

# A rank is low up to this share of the rows and columns looked at.
_LOW = 0.25
# What a low rank leaves over may have this much more energy than rounding gives, and the low rank
# must explain at least this share of the difference.
_LEFT_OVER = 1.5
_EXPLAINED = 0.5
# Units in the last place that a difference must have, to tell of the rounding of the sum.
_PAST = 2.0
# The rounding of an entry must be so many times the error of the fit there.
_ABOVE_FIT = 2.0


@dataclass(frozen=True)
class RoundedSum:
    """Squared rounding errors of entries whose unit in the last place differs between A and B.

    Attributes
    ----------
    entries : how many
    as_b, as_a : sum of squared errors over what rounding to B's, to A's units gives on average;
        where the model is the rounded sum it is about `entries`
    finer_b, finer_a : entries whose unit is the smaller one in B, in A, and the same sum over them
        alone for that model: where both are rounded sums it is five times their number
    """

    entries: int
    as_b: float
    as_a: float
    finer_b: tuple[int, float]
    finer_a: tuple[int, float]


def look_for_rank(tensors: TensorPair, *, rows: int) -> tuple[int | None, RoundedSum | None]:
    """Rank of B - A, if it is low and the rest is rounding, and what the rounding says.

    Parameters
    ----------
    rows : at most so many of a tall matrix are looked at
    """
    there = min(tensors.rows)
    count = min(there, rows)
    # One run of rows from the middle: of a matrix of low rank any rows have it.
    start = (there - count) // 2
    a, b = (read(start, start + count) for read in tensors.read)
    grids = (grid(a), grid(b)) if not tensors.mapped else _types(tensors)
    units = spacing(a, grids[0]), spacing(b, grids[1])
    # In float64: B - A is then exact, and small singular values can be told from rounding.
    difference = b.astype(np.float64) - a
    tall = difference.shape[0] > difference.shape[1]
    d = difference.T if tall else difference
    squares, vectors = np.linalg.eigh(d @ d.T)
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    # What is stored in a wide type may be the sum of D and a narrow one: finer rounding goes first.
    for finer in (np.minimum(*units), np.maximum(*units)):
        rank = _low_rank(squares, finer / 12**0.5)
        if rank is not None:
            part = vectors[:, :rank] @ (vectors[:, :rank].T @ d)
            low = part.T if tall else part
            # What was computed lies on no grid that could tell.
            told = None if tensors.mapped else _rounding(low, difference - low, units, rank)
            return rank, told
    return None, None


def _types(tensors: TensorPair) -> tuple[str, str]:
    """The coarser of the types that the factors of computed matrices are stored in, for both."""
    coarser = next((kind for kind in ("BF16", "F16") if kind in tensors.dtypes), "F32")
    return coarser, coarser


def _low_rank(squares: Doubles, noise: Doubles) -> int | None:
    """Number of singular values above rounding, None if it is not low or more than it is left.

    Parameters
    ----------
    squares : of the singular values, the largest first
    noise : standard deviation of each entry's rounding
    """
    edge = np.linalg.norm(noise, axis=1).max() + np.linalg.norm(noise, axis=0).max()
    rank = int(np.count_nonzero(squares > edge**2))
    if not 0 < rank <= _LOW * squares.size:
        return None
    energy, left = float(squares.sum()), float(squares[rank:].sum())
    if left > _LEFT_OVER * float(np.sum(noise**2)) or left > (1 - _EXPLAINED) * energy:
        return None
    return rank


def _rounding(
    low: Doubles, error: Doubles, units: tuple[Doubles, Doubles], rank: int
) -> RoundedSum | None:
    """What the errors of the entries say that a sum far enough past a power of two has rounded.

    The fit itself errs by a part of all errors around an entry: small entries, whose own rounding
    is smaller than that, tell nothing.
    """
    unit_a, unit_b = units
    rows, columns = low.shape
    fit = float(np.sqrt(np.mean(error**2) * rank * (1 / rows + 1 / columns)))
    chosen = (unit_a != unit_b) & (np.abs(low) >= _PAST * np.maximum(unit_a, unit_b))
    chosen &= np.minimum(unit_a, unit_b) >= _ABOVE_FIT * 12**0.5 * fit
    entries = int(np.count_nonzero(chosen))
    if entries == 0:
        return None
    left = (1 - rank / rows) ** 2 * (1 - rank / columns) ** 2  # of an entry's own error
    square = error[chosen] ** 2
    ratios = [square / (unit[chosen] ** 2 / 12 * left + fit**2) for unit in (unit_b, unit_a)]
    finer = [unit_b[chosen] < unit_a[chosen], unit_a[chosen] < unit_b[chosen]]
    return RoundedSum(
        entries,
        float(ratios[0].sum()),
        float(ratios[1].sum()),
        (int(finer[0].sum()), float(ratios[0][finer[0]].sum())),
        (int(finer[1].sum()), float(ratios[1][finer[1]].sum())),
    )
