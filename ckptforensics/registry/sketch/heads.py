"""The heads of a sketch: their spectra at some ranks, the most distinctive ones."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Doubles

# Ranks of a head's singular values, and heads, that a sketch keeps.
RANKS, MOST = 16, 512
# Root mean square difference of two heads' values at which they count for exp(-1/2): copies differ
# by less, the next head of the same model by two to three times as much.
NEAR = 0.02
# Values below this share of the largest were never there: dimensions that were padded with zeros.
_PADDING = 4e-3


def at_ranks(spectra: Doubles) -> Doubles:
    """(heads, `RANKS`) of the log singular values (heads, values), less their mean.

    Ranks go evenly from the first to the last that is not padding. Heads with fewer values than
    ranks are interpolated.
    """
    spectra = spectra - spectra[:, :1]
    real = (spectra > np.log(_PADDING)).sum(axis=1)
    place = (real[:, None] - 1) * np.linspace(0, 1, RANKS)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, spectra.shape[1] - 1)
    share = place - below
    found = np.take_along_axis(spectra, below, 1) * (1 - share)
    found += np.take_along_axis(spectra, above, 1) * share
    return found - found.mean(axis=1, keepdims=True)


def most_distinctive(heads: Doubles) -> Doubles:
    """The heads whose values spread most, in that order, at most `MOST`: the same in any copy."""
    return heads[np.argsort(-heads.std(axis=1), kind="stable")[:MOST]]


def kernel(a: Doubles, b: Doubles) -> float:
    """Mean over all pairs of heads of how near they are, 1 for the same two."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return float(np.exp(-np.maximum(squares, 0) / (2 * NEAR**2 * a.shape[1])).mean())
