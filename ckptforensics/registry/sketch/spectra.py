"""Sets of spectra in a sketch, and how alike two sets are: one for each channel of this kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from ckptforensics.arrays import Doubles

# What the spectra are of.
Of = Literal["heads", "attention"]
OF: tuple[Of, ...] = get_args(Of)
# Singular values of each that a sketch keeps.
RANKS = 16
# Values below this share of the largest were never there: dimensions that were padded with zeros.
PADDING = 4e-3


@dataclass(frozen=True)
class Kind:
    """How many spectra a sketch keeps at most, and when two are the same one.

    Attributes
    ----------
    most : so many are kept
    near : root mean square difference of two at which they count for exp(-1/2)
    """

    most: int
    near: float


# Heads of copies differ by less than .02, the next head of the same model by two to three times as
# much. The shapes of attention on single tokens differ by less than .005 in copies that were
# re-parameterised or are kept in 8 bits, and by .04 or more in other models (docs/find.md).
KINDS: Mapping[Of, Kind] = MappingProxyType({"heads": Kind(512, 0.02), "attention": Kind(16, 0.03)})


def at_ranks(spectra: Doubles) -> Doubles:
    """(count, `RANKS`) of the log singular values (count, values), less their mean.

    Ranks go evenly from the first to the last that is not padding. Where there are fewer values
    than ranks they are interpolated.
    """
    spectra = spectra - spectra[:, :1]
    real = (spectra > np.log(PADDING)).sum(axis=1)
    place = (real[:, None] - 1) * np.linspace(0, 1, RANKS)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, spectra.shape[1] - 1)
    share = place - below
    found = np.take_along_axis(spectra, below, 1) * (1 - share)
    found += np.take_along_axis(spectra, above, 1) * share
    return found - found.mean(axis=1, keepdims=True)


def most_distinctive(heads: Doubles) -> Doubles:
    """The heads that spread most, in that order, as many as are kept: the same in any copy."""
    return heads[np.argsort(-heads.std(axis=1), kind="stable")[: KINDS["heads"].most]]


def likeness(a: Doubles, b: Doubles, of: Of) -> float:
    """The cosine of the sets' kernel means: counts those of one that are nearly one of the other's.

    It is 1 for the same sets.
    """
    own = _kernel(a, a, of) * _kernel(b, b, of)
    return _kernel(a, b, of) / float(np.sqrt(own))


def _kernel(a: Doubles, b: Doubles, of: Of) -> float:
    """Mean over all pairs of how near they are, 1 for the same two."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    width = 2 * KINDS[of].near ** 2 * a.shape[1]
    return float(np.exp(-np.maximum(squares, 0) / width).mean())
