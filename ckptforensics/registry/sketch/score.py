"""How alike two sketches are: exact values of what the search only estimates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.registry.sketch.record import BY, Sketch, Tokens

# Fewer shared tokens or heads say too little.
_LEAST_TOKENS, _LEAST_HEADS = 48, 4
# A head is another model's if it is closer than this share of the way to its own next one.
_CLOSER = 0.3


def scores(a: Sketch, b: Sketch) -> Mapping[str, float]:
    """How alike two models are in each channel that both have, 1 for the same, strangers near 0.

    `strings` and `ids`: the correlation of how they see the tokens that they share. `heads`: the
    share of the heads of one that are nearly one of the other's, the larger of both ways.
    """
    found: dict[str, float] = {}
    for by in BY:
        if by in a.tokens and by in b.tokens:
            value = _tokens(a.tokens[by], b.tokens[by])
            if value is not None:
                found[by] = value
    if a.heads is not None and b.heads is not None:
        shares = [_heads(*pair) for pair in ((a.heads, b.heads), (b.heads, a.heads))]
        if min(len(a.heads), len(b.heads)) >= _LEAST_HEADS:
            found["heads"] = max(shares)
    return found


def _tokens(a: Tokens, b: Tokens) -> float | None:
    _, at_a, at_b = np.intersect1d(a.names, b.names, assume_unique=True, return_indices=True)
    if len(at_a) < _LEAST_TOKENS:
        return None
    upper = np.triu_indices(len(at_a), 1)
    x, y = (t.likeness[np.ix_(at, at)][upper] for t, at in ((a, at_a), (b, at_b)))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def _heads(mine: Doubles, theirs: Doubles) -> float:
    between = _distances(mine, theirs).min(axis=1)
    within = _distances(mine, mine)
    np.fill_diagonal(within, np.inf)
    return float((between < _CLOSER * within.min(axis=1)).mean())


def _distances(a: Doubles, b: Doubles) -> Doubles:
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))
