"""Two populations of norms after a layer, and plateaus of layers that have them.

No threshold is set by hand. Ordinary tokens' norms lie close together on a logarithmic scale; what
lies many of their spreads above their median is a second population, and the widest gap on the way
to it separates the two. On SmolLM2 the spread is .06 to .25, the gap 22,000 to 200 in layers 12 to
28 and 244 to 216 in layers 3 to 8, where ordinary tokens belong to the second population too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ckptforensics.arrays import Doubles

# A second population's median is at least this many times the first one's, and lies so many
# spreads above it.
_RATIO, _SPREADS = 3.0, 5.0
# At most this share of the tokens: what more of them have is ordinary.
_SHARE = 0.1
# Layers of one plateau have norms within this factor of the highest of them; a run that is not
# around a peak needs so many layers to be one.
_WITHIN, _LEAST_LAYERS = 2.0, 3
# Share of all tokens of two layers' second populations that must be in both.
_SAME = 0.5
# Standard deviations of a Gaussian in its median absolute deviation.
_MAD = 1.4826


@dataclass(frozen=True)
class Population:
    """What the norms after one layer are made of; see `results.empirical.PopulationRecord`."""

    layer: int
    median: float
    ordinary: float | None = None
    high: float | None = None
    threshold: float | None = None
    count: int = 0
    ratio: float | None = None
    level: float = 0.0
    """Median norm of the higher population, 0 without one."""
    members: frozenset[int] = frozenset()
    """Places of the higher population's tokens among all."""


def populations(norms: Doubles, threshold: float | None = None) -> list[Population]:
    """The populations after each layer.

    Parameters
    ----------
    norms : (layers, ...) norms of all tokens after each layer
    threshold : norm that separates them, None for the gap of each layer
    """
    return [_population(layer, row.ravel(), threshold) for layer, row in enumerate(norms, 1)]


def find_plateaus(found: Sequence[Population]) -> list[tuple[int, int]]:
    """First and last layer of every plateau, in order.

    Consecutive layers whose second populations are of the same tokens are one plateau around the
    layer where their norm is highest, as far as it stays within a factor of two of that. What is
    left on either side is one more where it stays so for three layers: a model can explode in
    steps.
    """
    runs: list[list[Population]] = []
    for population in found:
        if population.threshold is None or not population.count:
            continue
        before = runs[-1][-1] if runs else None
        if before and before.layer == population.layer - 1 and _same(before, population):
            runs[-1].append(population)
        else:
            runs.append([population])
    plateaus: list[tuple[int, int]] = []
    for run in runs:
        plateaus += _within(run, least=2)
    return sorted(plateaus)


def _same(one: Population, other: Population) -> bool:
    """Whether most tokens of either are of both."""
    return len(one.members & other.members) >= _SAME * len(one.members | other.members)


def _within(run: list[Population], least: int) -> list[tuple[int, int]]:
    if len(run) < least:
        return []
    peak = max(range(len(run)), key=lambda i: run[i].level)
    first = last = peak
    bound = run[peak].level / _WITHIN
    while first > 0 and run[first - 1].level >= bound:
        first -= 1
    while last + 1 < len(run) and run[last + 1].level >= bound:
        last += 1
    whole = last - first + 1 >= least
    return [
        *_within(run[:first], _LEAST_LAYERS),
        *([(run[first].layer, run[last].layer)] if whole else []),
        *_within(run[last + 1 :], _LEAST_LAYERS),
    ]


def _population(layer: int, norms: Doubles, threshold: float | None) -> Population:
    order = np.argsort(norms, kind="stable")
    norms = norms[order]
    median = float(np.median(norms))
    alone = Population(layer, median)
    if threshold is None:
        split = _split(norms)
    else:
        split = int(np.searchsorted(norms, threshold, side="right"))
    if split is None or split == len(norms):
        return alone
    high, level = float(norms[split]), float(np.median(norms[split:]))
    if split == 0:  # of a threshold that was given: all lie above it
        everyone = frozenset(range(len(norms)))
        return replace(
            alone, high=high, threshold=threshold, count=len(norms), level=level, members=everyone
        )
    low = float(norms[split - 1])
    return Population(
        layer=layer,
        median=median,
        ordinary=low,
        high=high,
        threshold=threshold if threshold is not None else float(np.sqrt(low * high)),
        count=len(norms) - split,
        ratio=level / float(np.median(norms[:split])),
        level=level,
        members=frozenset(order[split:].tolist()),
    )


def _split(norms: Doubles) -> int | None:
    """Index of the first norm of the higher population, None if there is one population."""
    if norms[0] <= 0:
        return None
    logs = np.log(norms)
    middle = np.median(logs)
    spread = max(_MAD * float(np.median(np.abs(logs - middle))), 1e-3)
    first = int(np.searchsorted(logs, middle + _SPREADS * spread))
    if first == len(logs):
        return None
    first = max(first, 1)
    gaps = logs[first:] - logs[first - 1 : -1]
    split = first + int(np.argmax(gaps))
    higher = logs[split:]
    apart = float(np.median(higher)) - float(np.median(logs[:split]))
    if len(higher) > _SHARE * len(logs) or apart < np.log(_RATIO):
        return None
    return split
