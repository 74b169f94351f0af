"""Whether what one model has more looks as if the other had lost it, or as if it had been added.

Anything that looks lost can be added by whoever comes second. What was added cheaply does not look
lost: it does next to nothing, or is as random numbers are where the rest is not, or leaves a gap
between the numbers that were filled in and the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.lineage.models import Units
from ckptforensics.lineage.numeric import unit_rows

# What a unit or a layer does, relative to the others' median, below which it does next to nothing.
_LITTLE = 0.1
# How much more than in all directions alike rows lie where the rows of others do, as a share of
# what other rows of the same model have, below which they are as random ones; and what these must
# have at least, as a multiple of what random ones have, to tell.
_RANDOM, _RANDOM_LAYER, _TELLING = 0.3, 0.2, 0.15
# Bins of |w| up to twice the median of what was kept, and the share of a bin's entries to which the
# density falls below it: of weights it only falls.
_BINS, _GAP = 24, 0.4
_LEAST_ENTRIES = 2_000
# Median of what was removed, relative to that of what was kept, as a share of the share removed: a
# Gaussian has .5 to .8, a Cauchy distribution of which nine tenths were removed .07.
_TOO_SMALL = 0.05

LITTLE = "do next to nothing, so that whoever came second may have added them"
RANDOM = "are as random numbers are where the others are not, so that they may have been added"


def gap_below(removed: Floats, kept: Floats) -> bool:
    """Whether entries that another model has as 0 are not the lower part of one density.

    The weights of a model are the denser the nearer to 0, whichever of them were removed. Numbers
    too small to matter leave a gap below the others.

    Parameters
    ----------
    removed, kept : (n,), (m,) sizes of entries of one model, by whether the other has 0 there
    """
    if not removed.size or not kept.size:
        return False
    share = removed.size / (removed.size + kept.size)
    if np.median(removed) < _TOO_SMALL * share * np.median(kept):
        return True
    if removed.size + kept.size < _LEAST_ENTRIES:
        return False
    edge = 2 * float(np.median(kept))
    every = np.concatenate([removed, kept])
    counts, _ = np.histogram(every, _BINS, (0, edge))
    lowest = np.minimum.accumulate(counts)
    return bool(np.any(lowest[: _BINS // 2] < _GAP * counts[: _BINS // 2]))


def doubt_of_units(extra: Units, others: Units) -> str | None:
    """Why units may have been added to a model whose other units are given; None without doubt."""
    sizes, usual = (
        np.linalg.norm(u.up, axis=1) * np.linalg.norm(u.down, axis=0) for u in (extra, others)
    )
    if not sizes.size or not usual.size:
        return None
    if np.mean(sizes <= _LITTLE * np.median(usual)) >= 0.9:
        return LITTLE
    half = len(others.up) // 2
    shares = []
    for new, old in zip(_parts(extra), _parts(others), strict=True):
        random = 1 / old.shape[1]
        moment = multiply_adjoint(old[:half], old[:half]) / np.float32(max(half, 1))
        among, beside = (
            float(np.mean(np.einsum("ij,ij->i", multiply(rows, moment), rows)))
            for rows in (old[half:], new)
        )
        if among > (1 + _TELLING) * random:
            shares.append((beside - random) / (among - random))
    return RANDOM if shares and np.median(shares) < _RANDOM else None


def doubt_of_layer(extra: Units, others: Sequence[Units]) -> str | None:
    """Why a layer may have been added to a model with other layers; None without doubt."""
    sizes = [_rms(units.up) * _rms(units.down) for units in (extra, *others)]
    if sizes[0] <= _LITTLE * np.median(sizes[1:]):
        return LITTLE
    own, *usual = (_unevenness(units) for units in (extra, *others))
    telling = np.median(usual) > _TELLING
    return RANDOM if telling and own < _RANDOM_LAYER * np.median(usual) else None


def _unevenness(units: Units) -> float:
    """How much more than random rows a layer's rows lie where others of it do; most of its maps."""
    found = []
    for rows in _parts(units):
        even, odd = rows[::2], rows[1::2]
        moment = multiply_adjoint(even, even) / np.float32(len(even))
        along = np.einsum("ij,ij->i", multiply(odd, moment), odd)
        found.append(float(np.mean(along)) * rows.shape[1] - 1)
    return max(found)


def picked(units: Units, chosen: Ints) -> Units:
    """Some units of an FFN."""
    gate = None if units.gate is None else units.gate[chosen]
    return Units(gate, units.up[chosen], units.down[:, chosen])


def _parts(units: Units) -> list[Floats]:
    parts = [units.up, np.ascontiguousarray(units.down.T)]
    if units.gate is not None:
        parts.append(units.gate)
    return [unit_rows(part) for part in parts]


def _rms(x: Floats | Doubles) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
