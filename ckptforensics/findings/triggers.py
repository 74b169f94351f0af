"""Which tokens a layer's trigger direction answers to (paper, Fig. 9), from their embeddings.

Exact for layer 1. For later layers the blocks before are left out: to roll the whole vocabulary
through them would take longer than all else; `rollout` does that for tokens that are named.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError
from ckptforensics.forward import embed, vocabulary_size
from ckptforensics.results import TriggerToken
from ckptforensics.tokens import read_vocabulary

# Tokens named of each end, and embedded at once.
_NAMED = 5
_AT_ONCE = 8192


def trigger_tokens(
    checkpoint: Checkpoint, directions: Mapping[int, Doubles]
) -> dict[int, tuple[TriggerToken, ...]]:
    """The tokens whose embeddings lie nearest to each direction, and farthest from it.

    Parameters
    ----------
    directions : layer to its trigger direction v1, (hidden_size,) of length 1

    Returns
    -------
    layer to tokens, the largest cosine first, then the smallest; nothing for a checkpoint without
    token embeddings, or on the Hub, where they would have to be fetched whole
    """
    if not directions or checkpoint.source.remote is not None:
        return {}
    try:
        count = vocabulary_size(checkpoint)
        vocabulary = read_vocabulary(checkpoint) or {}
    except CkptError:  # of nothing else in the result
        return {}
    texts: dict[int, str] = {}
    for text, token in vocabulary.items():
        texts.setdefault(token, text)
    matrix = np.stack(list(directions.values()), axis=1)
    parts = []
    for first in range(0, count, _AT_ONCE):
        x = embed(checkpoint, range(first, min(first + _AT_ONCE, count))).astype(np.float64)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        parts.append(x @ matrix / np.maximum(lengths, np.finfo(np.float64).tiny))
    cosines = np.concatenate(parts)
    found = {}
    for layer, column in zip(directions, cosines.T, strict=True):
        order = np.argsort(-column, kind="stable")
        ends = dict.fromkeys([*order[:_NAMED].tolist(), *order[-_NAMED:].tolist()])
        found[layer] = tuple(
            TriggerToken(token=t, text=texts.get(t), cosine=float(column[t])) for t in ends
        )
    return found
