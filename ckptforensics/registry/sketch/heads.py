"""The heads of a sketch: their spectra at some ranks."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.registry.sketch.spectra import KINDS, RANKS

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
    """Those whose values spread most, in that order, as many as are kept: the same in any copy."""
    return heads[np.argsort(-heads.std(axis=1), kind="stable")[: KINDS["heads"].most]]
