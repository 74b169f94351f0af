"""How alike two sketches are: exact values of what the search only estimates."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ckptforensics.registry.sketch.record import BY, Sketch, Tokens
from ckptforensics.registry.sketch.spectra import OF, likeness
from ckptforensics.results.find import Channel

# Fewer shared tokens say too little.
_LEAST_TOKENS = 48
# From which on a model is a candidate. Strangers that were trained on one text reach .22 by tokens
# (the zoo); by heads, whose spectra crowd, unrelated real models .42; by attention on single tokens
# .05 where they were trained, .07 where they are random (docs/find.md).
LIMITS: Mapping[Channel, float] = MappingProxyType(
    {"strings": 0.35, "ids": 0.35, "heads": 0.6, "attention": 0.4}
)


def scores(a: Sketch, b: Sketch) -> dict[Channel, float]:
    """How alike two models are in each channel that both have, 1 for the same, strangers near 0.

    `strings` and `ids`: the correlation of how they see the tokens that they share. `heads` and
    `attention`: the cosine of their kernel means, which counts the spectra that they share.
    """
    found: dict[Channel, float] = {}
    for by in BY:
        if by in a.tokens and by in b.tokens:
            value = _tokens(a.tokens[by], b.tokens[by])
            if value is not None:
                found[by] = value
    for of in OF:
        if of in a.spectra and of in b.spectra:
            found[of] = likeness(a.spectra[of], b.spectra[of], of)
    return found


def score_of(channels: Mapping[Channel, float]) -> float:
    """1 for the same sketch, 0 at the limit of a candidate: of the channel that says most."""
    found = [(value - LIMITS[name]) / (1 - LIMITS[name]) for name, value in channels.items()]
    return max(found, default=-1.0)


def _tokens(a: Tokens, b: Tokens) -> float | None:
    _, at_a, at_b = np.intersect1d(a.names, b.names, assume_unique=True, return_indices=True)
    if len(at_a) < _LEAST_TOKENS:
        return None
    upper = np.triu_indices(len(at_a), 1)
    x, y = (t.likeness[np.ix_(at, at)][upper] for t, at in ((a, at_a), (b, at_b)))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None
