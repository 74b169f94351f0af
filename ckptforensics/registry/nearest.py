"""Which models are near: candidates for a pair test, never a verdict.

Of signatures the fingerprint is compared, which sees relatives in the stored basis, and the leading
singular values of all layers, which no change of basis, order of neurons or scale moves. Of
sketches it is what `ckpt find` searches by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.registry.catalog.models import CataloguedModel

# Share of a fingerprint's bits. Strangers' differ in half of them, 128 give or take .044; those of
# the zoo's relatives in .09 to .41 where the basis is the same.
_FINGERPRINT = 0.4
# Mean difference of log10 of the two leading singular values, over layers, once the median is taken
# off: a residual stream that is scaled moves all large ones alike. In the zoo relatives differ by
# .004 to .04, strangers of one recipe by .011 to .03, a copy in another basis by nothing, and one
# whose stream was scaled as well by .11.
_SPECTRUM = 0.15


@dataclass(frozen=True)
class Neighbour:
    """A candidate: the model's index, and how near it is, 0 the same and 1 at the limit."""

    index: int
    distance: float


# Pairs of sketches that are near, by their places among those that are numbered, with a distance.
NearSketches = Callable[[Sequence[int]], Iterable[tuple[int, int, float]]]


def neighbours(
    models: Sequence[CataloguedModel], near_sketches: NearSketches
) -> dict[int, list[Neighbour]]:
    """For each model, the others that may be relatives, the nearest first.

    Models with neither signature nor sketch have no neighbours, and are nobody's.
    """
    found: dict[int, dict[int, float]] = defaultdict(dict)
    sketched = {i: m.sketch for i, m in enumerate(models) if m.sketch is not None}
    owners = list(sketched)
    by_sketch = (
        (owners[i], owners[j], distance)
        for i, j, distance in near_sketches(list(sketched.values()))
    )
    for pairs in (_by_fingerprint(models), _by_spectrum(models), by_sketch):
        for i, j, distance in pairs:
            for a, b in ((i, j), (j, i)):
                found[a][b] = min(distance, found[a].get(b, np.inf))
    return {
        i: [Neighbour(j, d) for j, d in sorted(near.items(), key=lambda row: (row[1], row[0]))]
        for i, near in found.items()
    }


def _by_fingerprint(models: Sequence[CataloguedModel]) -> Iterator[tuple[int, int, float]]:
    rows, owners = [], []
    for i, model in enumerate(models):
        facts = model.reading.signature
        if facts is not None and facts.fingerprint is not None:
            digits = facts.fingerprint.rpartition("-")[2]
            rows.append(np.frombuffer(bytes.fromhex(digits), np.uint8))
            owners.append(i)
    if len(rows) < 2:
        return
    bits = np.unpackbits(np.stack(rows), axis=1).astype(np.float32) * 2 - 1
    for i in range(len(owners)):
        differing = (1 - bits[i + 1 :] @ bits[i] / bits.shape[1]) / 2
        for k in np.flatnonzero(differing <= _FINGERPRINT):
            yield owners[i], owners[i + 1 + k], float(differing[k] / _FINGERPRINT)


def _by_spectrum(models: Sequence[CataloguedModel]) -> Iterator[tuple[int, int, float]]:
    depth: dict[int, list[int]] = defaultdict(list)
    for i, model in enumerate(models):
        facts = model.reading.signature
        if facts is not None and facts.layers:
            depth[len(facts.layers)].append(i)
    for members in depth.values():
        if len(members) < 2:
            continue
        profiles = np.stack([_profile(models[i]) for i in members])
        for k in range(len(members)):
            differences = profiles[k + 1 :] - profiles[k]
            differences -= np.median(differences, axis=1, keepdims=True)
            distances = np.abs(differences).mean(axis=1)
            for other in np.flatnonzero(distances <= _SPECTRUM):
                yield members[k], members[k + 1 + other], float(distances[other] / _SPECTRUM)


def _profile(model: CataloguedModel) -> Doubles:
    """(2 layers,) log10 of the leading singular values."""
    assert model.reading.signature is not None
    sigma = np.array([layer.sigma for layer in model.reading.signature.layers])
    return np.log10(np.maximum(sigma, 1e-12)).ravel()
